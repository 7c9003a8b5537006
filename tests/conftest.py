"""Eight virtual CPU devices for every test: the same forms run as in the main job."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_compilation_cache", False)  # No test leans on an earlier one.
jax.devices()  # The number is fixed from here on, whatever a run prepares.


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield
