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
