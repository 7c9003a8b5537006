"""Keeps what has been compiled from one process to the next."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from dimat_jax.datasets.cache import default_directory

MIN_SECONDS = 0.1
"""What compiles faster is not kept."""


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
        config.update("jax_compilation_cache_dir", str(directory))
        config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def machine() -> str:
    """Differs between processors: home folders are shared, and code for one may fail on another."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:16]
