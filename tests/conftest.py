"""Eight virtual CPU devices for every test: the same forms run as in the main job."""

import os
import shutil
import tempfile

# Small programs are compiled more often than they run. It is read when the first of them is.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

CHECKED = """algorithms datasets matching merging metrics models partition spectral tasks topology
training types""".split()
"""Rooms of functions of arrays, whose annotations are checked when they are called. Elsewhere few
are of arrays, and a walk through a jaxpr calls small functions hundreds of thousands of times."""
# Before any of them is imported.
install_import_hook([f"dimat_jax.{name}" for name in CHECKED], "beartype.beartype")

COMPILED = "DIMAT_JAX_TESTS_COMPILED"
"""The folder in which this run of the tests keeps what it has compiled, for its workers alike."""

jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # The number is fixed from here on, whatever a run prepares.


def pytest_configure(config):
    """Many tests compile the same small programs: each is compiled once a run, by one worker."""
    if COMPILED not in os.environ:
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="dimat_jax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(COMPILED), ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped():
    """Runs one test as users run the library: annotations are not checked."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
