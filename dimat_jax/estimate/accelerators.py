"""Devices that need not be here: what they can do at most, and what compiles for them.

XLA compiles for a TPU or a GPU on a machine that has neither, from a description of it, where the
packages are installed that a run on it would need.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dimat_jax.execution.devices import usable_cores
from dimat_jax.registry import choose
from dimat_jax.simulation.memory import host_memory


class Accelerator(NamedTuple):
    """What a device can do at most, as its vendor says.

    Attributes:
      label: what it is.
      operations: floating-point operations a second, in matrix products of float32 as JAX computes
        them there by default.
      bandwidth: bytes a second between the device and its memory; None: not known.
      memory: bytes.
      usable: the share of it that JAX takes.
      source: where these numbers stand.
      topology: the smallest one that can be described: TPUs come in fours.
      description: of a GPU, for XLA's compiler; None for others.
    """

    label: str
    operations: float
    bandwidth: float | None
    memory: float
    usable: float
    source: str
    topology: str = ""
    description: "Gpu | None" = None


class Gpu(NamedTuple):
    """What XLA asks of a GPU to compile for it, as CUDA's device query gives it."""

    name: str
    capability: int
    cores: int
    units_per_core: int
    clock_ghz: float
    bandwidth: int
    memory: int
    cache: int
    shared_memory: int


GPU_SHARE = 0.75
"""What JAX takes of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
TPU_SHARE = 0.98
"""A little of a TPU's is the system's own."""

H100 = Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 3352320000000, 84942979072, 52428800, 232448)
A100 = Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 2039040000000, 85100068864, 41943040, 166912)

ACCELERATORS = {
    "h100": Accelerator(
        "NVIDIA H100 SXM 80 GB",
        *(494.7e12, 3.35e12, 80e9, GPU_SHARE),
        "NVIDIA H100 Tensor Core GPU Architecture, table 2: TF32, dense",
        "1x1x{devices}",
        H100,
    ),
    "a100": Accelerator(
        "NVIDIA A100 SXM 80 GB",
        *(156e12, 2.039e12, 80e9, GPU_SHARE),
        "NVIDIA A100 Tensor Core GPU data sheet: TF32, dense",
        "1x1x{devices}",
        A100,
    ),
    "v5e": Accelerator(
        "Google TPU v5e",
        *(197e12, 0.819e12, 16 * 2**30, TPU_SHARE),
        "Google Cloud TPU v5e, system architecture: bfloat16, in which float32 is multiplied",
        "v5e:2x2",
    ),
    "v4": Accelerator(
        "Google TPU v4",
        *(275e12, 1.2e12, 32 * 2**30, TPU_SHARE),
        "Google Cloud TPU v4, system architecture: bfloat16, in which float32 is multiplied",
        "v4:2x2x1",
    ),
}
"""What can be named, besides ``cpu``, which is this machine's."""
NAMES = (*ACCELERATORS, "cpu")

PER_CYCLE = {"avx512f": 64, "fma": 32, "avx": 16, "": 8}
"""What a CPU's core has → its float32 operations a cycle: two units of so many lanes, each of which
multiplies and adds."""
SKIP_CHECKS = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
CUDA_PLUGIN = "jax_plugins.xla_cuda12"


class NotInstalled(RuntimeError):
    """The packages are missing that compile for a device."""


def accelerator(name: str) -> Accelerator:
    """What a device can do at most, by its name.

    Raises:
      ValueError: for a name that there is not.
    """
    if choose("device", name, NAMES) == "cpu":
        return this_cpu()
    return ACCELERATORS[name]


def this_cpu() -> Accelerator:
    """This machine's CPU: the products of all its cores at the clock that it has now."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    named = re.findall(r"@ ([\d.]+)GHz", "\n".join(lines))
    hertz = 1e6 * max([*clocks, *(1e3 * float(x) for x in named)], default=3e3)
    per_cycle = next(number for flag, number in PER_CYCLE.items() if not flag or flag in flags)
    cores = usable_cores()
    return Accelerator(
        label=f"this CPU, {cores} cores",
        operations=cores * per_cycle * hertz,
        bandwidth=None,
        memory=host_memory() or 0,
        usable=1.0,
        source="/proc/cpuinfo and /proc/meminfo: cores x clock x width; available memory",
    )


def described_devices(name: str, devices: int | None) -> Sequence[Any]:
    """Devices that are not here, for which programs can be compiled.

    Args:
      name: of the accelerator.
      devices: how many; None: as few as can be described.

    Raises:
      NotInstalled: where the packages are missing that compile for them.
      ValueError: for more TPUs than have been described.
    """
    found, number = ACCELERATORS[name], devices or 1
    try:
        if found.description is None:
            available = tpus(found.topology, name)
        else:
            available = gpus(found.description, found.topology.format(devices=number))
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise NotInstalled(str(error).splitlines()[0]) from error
    if devices is not None and devices > len(available):
        raise ValueError(
            f"devices must be 1 to {len(available)} for an estimate on a {name}, not {devices}."
        )
    return list(available)[:devices]


def tpus(topology: str, name: str) -> Sequence[Any]:
    """The TPUs of a topology."""
    from jax.experimental import topologies

    # Else it asks the cloud, for minutes, what machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nobody takes a TPU here: another process may compile, too.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A v4 chip is one device of two cores.
    options = {"chip_config_name": "megacore"} if name == "v4" else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def gpus(gpu: Gpu, topology: str) -> Sequence[Any]:
    """GPUs of a kind: processes x hosts x devices."""
    from jax.experimental import topologies

    os.environ.setdefault(SKIP_CHECKS, "1")  # It would look for the driver of a GPU.
    options = {"target_config": description(gpu), "topology": topology}
    try:
        return topologies.get_topology_desc("gpu", "cuda", **options).devices
    except NotImplementedError:
        # JAX has looked for its plugins before, and given this one up for want of a driver.
        jax.devices()
        importlib.import_module(CUDA_PLUGIN)
        sys.modules[CUDA_PLUGIN].initialize()
        return topologies.get_topology_desc("gpu", "cuda", **options).devices


def compiler_options(name: str) -> dict[str, Any]:
    """What XLA is told where it cannot try on a GPU which of several programs is fastest."""
    if name == "cpu" or ACCELERATORS[name].description is None:
        return {}
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def description(gpu: Gpu) -> str:
    """A GPU as XLA's ``GpuTargetConfigProto``, in text."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory + 1024}
  shared_memory_per_block_optin: {gpu.shared_memory}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{gpu.name}"
"""
