"""Keeps what has been compiled from one process to the next."""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax

from dimat_jax.datasets.cache import default_directory
from dimat_jax.datasets.whole import digest

MIN_SECONDS = 0.1
"""What compiles faster is not kept."""
KNOWN = "dimat_jax.json"
"""Of every entry that was found whole: its size, time and SHA-256."""
ZSTANDARD = b"\x28\xb5\x2f\xfd"
"""What a file in that compression begins with."""


def keep_compilations() -> None:
    """Has JAX keep its compilations in dimat_jax's cache, so that a second run starts sooner.

    Does nothing where a folder has been chosen (``JAX_COMPILATION_CACHE_DIR``) or caching is
    switched off (``JAX_ENABLE_COMPILATION_CACHE=false``), or where the folder cannot be made.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    directory = default_directory() / f"compiled-{machine()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        heal(directory)
        # A process that is killed, or still at it, may leave an entry cut short, which the next
        # start removes; until then JAX says so for every one of them, and compiles.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        config.update("jax_compilation_cache_dir", str(directory))
        config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def machine() -> str:
    """Differs between processors: home folders are shared, and code for one may fail on another."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:16]


def heal(directory: Path) -> None:
    """Removes the damaged entries of a cache of JAX's, which JAX itself would keep for ever.

    An entry is compared with what it was when it was first found whole; a new one has to be whole:
    JAX compresses them, and what was cut short or changed cannot be decompressed.
    """
    known = _known(directory)
    found = {}
    for entry in directory.glob("*-cache"):
        try:
            stat = entry.stat()
            marks = [stat.st_size, stat.st_mtime_ns]
            before = known.get(entry.name)
            if before is not None and before[:2] == marks:
                found[entry.name] = before
            elif is_whole(entry) if before is None else digest(entry) == before[2]:
                found[entry.name] = [*marks, digest(entry)]
            else:
                entry.unlink()
        except OSError:
            continue  # Another process has removed it.
    if found != known:
        new = directory / f".{KNOWN}.{os.getpid()}"
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(found), encoding="utf-8")
            new.replace(directory / KNOWN)


def _known(directory: Path) -> dict[str, list]:
    """What was found whole at earlier starts."""
    try:
        known = json.loads((directory / KNOWN).read_text(encoding="utf-8"))
        return {name: [size, time, sha] for name, (size, time, sha) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def is_whole(entry: Path) -> bool:
    """Whether an entry can be decompressed; one in a format that cannot be read here is let be."""
    compressed = entry.read_bytes()
    try:
        if not compressed.startswith(ZSTANDARD):
            zlib.decompress(compressed)
        elif importlib.util.find_spec("zstandard"):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(compressed)
    except Exception:  # Each library has its own.
        return False
    return True
