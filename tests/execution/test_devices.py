"""What is set before JAX starts: the number of virtual CPU devices, and how memory is kept."""

import os

import hypothesis
import hypothesis.strategies as st
import pytest
from helpers.fresh_python import run_python

from dimat_jax.execution import devices as setting
from dimat_jax.execution.devices import MAX_CPU_DEVICES, prepare_devices, virtual_devices


@hypothesis.given(st.integers(1, 2000), st.integers(1, 128))
@hypothesis.settings(deadline=None, max_examples=200)
def test_virtual_devices_keep_the_cores_busy_and_divide_the_agents_where_they_can(agents, cores):
    devices = virtual_devices(agents, cores)
    assert 1 <= devices <= min(agents, MAX_CPU_DEVICES)
    assert devices >= min(cores, agents, MAX_CPU_DEVICES)
    divisors = [d for d in range(cores, MAX_CPU_DEVICES + 1) if agents % d == 0]
    assert devices == min(divisors, default=min(cores, agents, MAX_CPU_DEVICES))


@pytest.mark.parametrize(
    ("agents", "cores", "devices"), [(67, 2, 2), (67, 8, 8), (5, 4, 5), (16, 2, 2), (3, 8, 3)]
)
def test_a_prime_number_of_agents_keeps_all_cores_busy(agents, cores, devices):
    assert virtual_devices(agents, cores) == devices


def test_virtual_devices_looks_for_the_cores_itself(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert virtual_devices(16) == virtual_devices(16, 5) == 8


@pytest.mark.parametrize(
    ("agents", "devices", "message"),
    [(0, None, "agents must be at least 1, not 0"), (4, 0, "devices must be at least 1, not 0")],
)
def test_devices_are_not_prepared_for_nobody(agents, devices, message):
    with pytest.raises(ValueError, match=message):
        prepare_devices(agents, devices)


def test_devices_are_prepared_before_jax_starts():
    code = """
import dimat_jax as dj
dj.prepare_devices(6, devices=5)
dj.prepare_devices(12, devices=3)  # The first word counts.
import jax
assert len(jax.devices()) == 5, jax.devices()
dj.prepare_devices(6)
assert len(jax.devices()) == 5, jax.devices()
"""
    assert run_python(code) == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_CPU_DEVICES": "3"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
    ],
    ids=str,
)
def test_the_number_of_devices_that_a_user_has_set_stays(environment):
    code = """
import dimat_jax as dj
dj.prepare_devices(4, devices=2)
import jax
assert len(jax.devices()) == 3, jax.devices()
"""
    assert run_python(code, **environment) == ""


def test_memory_is_kept_wherever_there_is_a_way(monkeypatch):
    set_options = {}

    class Library:
        mallopt = staticmethod(set_options.__setitem__)

    monkeypatch.setattr(setting.ctypes, "CDLL", lambda name: Library)
    setting.keep_memory()
    assert set_options == setting.MALLOC_OPTIONS
    monkeypatch.setattr(setting.ctypes, "CDLL", lambda name: object())
    setting.keep_memory()


def test_a_system_that_knows_no_affinity_has_all_its_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert setting.usable_cores() == 3 and virtual_devices(6) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert setting.usable_cores() == 1
