import json
import os
import subprocess
import sys
import zlib

import jax
import pytest

from dimat_jax.execution import compile_cache as compilation
from dimat_jax.execution.compile_cache import keep_compilations

DIRECTORY, ENABLED, LEAST = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """A cache folder of this test's own, and JAX's settings as they were after it."""
    before = {name: getattr(jax.config, name) for name in (DIRECTORY, ENABLED, LEAST)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update(DIRECTORY, None)
    jax.config.update(ENABLED, True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compilations_are_kept_in_a_folder_of_the_machine(tmp_path, monkeypatch):
    keep_compilations()
    chosen = jax.config.jax_compilation_cache_dir
    assert chosen == str(tmp_path / "cache" / "dimat_jax" / f"compiled-{compilation.machine()}")
    jax.config.update(DIRECTORY, None)
    monkeypatch.setattr(compilation, "machine", lambda: "another")
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir not in (None, chosen)


def test_what_has_been_chosen_stays(tmp_path):
    jax.config.update(DIRECTORY, "mine")
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir == "mine"
    jax.config.update(DIRECTORY, None)
    jax.config.update(ENABLED, False)
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("A file, where the folder should be.")
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir is None


def compile_once(tmp_path, directory):
    """What a new process says on its error stream when it compiles with that cache."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from dimat_jax.execution.compile_cache import keep_compilations\n"
        "keep_compilations()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "for n in (1, 2): print(jax.jit(lambda x: jnp.tanh(x @ x).sum() * n)(jnp.eye(8 * n)))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_damaged_entries_are_made_again(tmp_path):
    directory = tmp_path / "cache" / "dimat_jax" / f"compiled-{compilation.machine()}"
    expected = compile_once(tmp_path, directory)
    entries = sorted(directory.glob("*-cache"))
    assert len(entries) >= 2 and expected[1] == ""
    compilation.heal(directory)
    whole = {entry: entry.read_bytes() for entry in entries}
    first, second = entries[:2]
    first.write_bytes(whole[first][: len(whole[first]) // 2])
    assert compile_once(tmp_path, directory) == expected
    assert set(directory.glob("*-cache")) == set(entries)
    # Swapped: each can be read, but is another's.
    compilation.heal(directory)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert compile_once(tmp_path, directory) == expected
    # Never seen whole, and cut short, as by a kill in the middle of writing.
    (directory / compilation.KNOWN).unlink()
    second.write_bytes(whole[second][:-3])
    compilation.heal(directory)
    assert first.exists() and not second.exists()


def test_entries_that_are_whole_stay_and_are_read_once(tmp_path, monkeypatch):
    entry = tmp_path / "a-cache"
    entry.write_bytes(zlib.compress(b"compiled"))
    compilation.heal(tmp_path)
    monkeypatch.setattr(compilation, "digest", None)
    compilation.heal(tmp_path)
    assert zlib.decompress(entry.read_bytes()) == b"compiled"
    (tmp_path / compilation.KNOWN).write_text("{")
    monkeypatch.undo()
    compilation.heal(tmp_path)
    assert entry.exists() and json.loads((tmp_path / compilation.KNOWN).read_text())
