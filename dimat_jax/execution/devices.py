"""The CPU's virtual devices, and its memory: what has to be set before JAX starts."""

import ctypes
import os
from typing import Any

import jax

from dimat_jax.registry import check_number

MAX_CPU_DEVICES = 64
FORCED_DEVICES = "xla_force_host_platform_device_count"
MALLOC_OPTIONS = {-1: 2**31 - 1, -3: 2**30, -8: 1}
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in bytes, and M_ARENA_MAX (``malloc.h``): what
threads have beside the one arena of the process is limited to 64 MB a piece."""


def usable_cores() -> int:
    """The cores that this process may use; all there are where the system cannot say."""
    if hasattr(os, "sched_getaffinity"):  # Neither macOS nor Windows has it.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def virtual_devices(agents: int, cores: int | None = None) -> int:
    """The number of virtual CPU devices that suits so many agents.

    One device for each core is enough to keep all cores busy, and fewer devices are less memory.
    The smallest divisor of the agents that is at least the number of cores wastes nothing; where
    there is none below `MAX_CPU_DEVICES`, one device for each core, the last not quite full.
    """
    cores = cores or usable_cores()
    # 5 agents on 2 cores: 5 devices of one agent, none masked. 67 agents: 2 devices of 34 lanes.
    divisors = (d for d in range(cores, min(agents, MAX_CPU_DEVICES) + 1) if agents % d == 0)
    return next(divisors, min(agents, cores, MAX_CPU_DEVICES))


def prepare_devices(agents: int, devices: int | None = None) -> None:
    """Has JAX offer as many virtual CPU devices as a population of so many agents can use.

    Call it before anything else uses JAX: the number is fixed once JAX's backend has started, and
    stays as it is if you have set it yourself (``jax_num_cpu_devices``, or the flag of XLA). Has
    the process keep memory that it frees, too; see `keep_memory`.

    Args:
      agents: number of agents.
      devices: at least how many virtual devices; by default as `virtual_devices` says.

    Raises:
      ValueError: if there is not at least one of each.
    """
    for name, value in (("agents", agents), ("devices", devices)):
        if value is not None or name == "agents":
            check_number(name, value, least=1, whole=True)
    keep_memory()
    config: Any = jax.config
    if config.jax_num_cpu_devices > 0 or FORCED_DEVICES in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        config.update("jax_num_cpu_devices", max(devices or 1, virtual_devices(agents)))
    except RuntimeError:
        pass  # The backend has started; `choose_execution` makes the best of what there is.


def keep_memory() -> None:
    """Has the C library keep memory that is freed, where it is glibc.

    XLA's CPU backend allocates a step's memory in every step and frees it after it. By default
    glibc gives large pieces back to the system each time, and getting them back, page by page, was
    a quarter of a training step.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in MALLOC_OPTIONS.items():
        set_option(option, value)
