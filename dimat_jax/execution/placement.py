"""Where the agents are: which devices, how many on each, and how their arrays get there.

A population is a pytree whose leaves carry a leading axis of agents, sharded over the devices of a
one-dimensional mesh. Every device holds as many *lanes*. Where the devices do not divide the
agents, the last lanes are masked: they repeat the last agent bit for bit, nobody takes anything
from them, and they never reach the host. ::

    5 agents on 4 devices: 2 lanes each on 3 of them

    device      0      1      2
    lanes     0  1   2  3   4  4'     4' repeats agent 4

Arrays with those lanes are ``[lanes, ...]`` in what follows, those without ``[agents, ...]``.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from dimat_jax.execution.devices import virtual_devices
from dimat_jax.execution.processes import are_several

AGENTS = PartitionSpec("agents")
REPLICATED = PartitionSpec()

FORWARD_BATCH = 64
"""Images in a batch of evaluation, matching and statistics: on CPU few enough that a layer's
activations stay in a core's cache, which is twice as fast as 500. The same for every form of
execution, for statistics depend on it."""

PATCHES_SHARE = 0.6
"""What patches of images may take of a device's memory. Gradients, activations, networks and data
need the rest: with the paper's network what is computed with is 1.15 times its patches."""

PyTree = Any


class Execution(NamedTuple):
    """How a population is laid out and run.

    Attributes:
      mesh: devices along one axis ``agents``.
      agents: number of agents.
      lanes: agents on each device, masked ones included; agent a lives on device ``a // lanes``.
      lanes_at_once: how many of a device's lanes are computed at the same time (vmapped); the
        others wait. Fewer take less memory. Divides ``lanes``.
      sequential: whether Python loops over steps and lanes, calling compiled parts; else the steps
        are scanned in one compiled call.
      products: whether convolutions are computed as matrix products, before lanes are vmapped.
      recompute: whether their patches are made again for a gradient instead of kept.
      described: whether the devices are only described, and not here: what is put on them are then
        shapes, `jax.ShapeDtypeStruct`, for which programs can be compiled.
    """

    mesh: Mesh
    agents: int
    lanes: int
    lanes_at_once: int
    sequential: bool
    products: bool = False
    recompute: bool = False
    described: bool = False

    @property
    def all_lanes(self) -> int:
        """The lanes of all devices: the agents, and the masked ones that repeat the last."""
        return self.mesh.size * self.lanes

    @property
    def agent_of_lane(self) -> Int[np.ndarray, "lanes"]:
        """Which agent each lane holds; a masked one the last."""
        return np.minimum(np.arange(self.all_lanes, dtype=np.int32), self.agents - 1)


def choose_execution(
    agents: int,
    convolutions: bool,
    devices: int | None = None,
    agents_at_once: int | None = None,
    described: Sequence[Any] | None = None,
) -> Execution:
    """Chooses where and in which form a population runs: the only place where that is decided.

    On CPU, models with convolutions run lane by lane, and Python loops over the steps: XLA's CPU
    backend turns a vmapped convolution over per-agent weights into a grouped one (12 times slower),
    and runs any convolution in a while-loop 40 times slower. Everywhere else lanes are vmapped and
    steps scanned, one call for all of them; an accelerator that computes several agents at once
    takes convolutions as matrix products, 1.8 to 3 times as fast (docs/results/gpu.md).

    Where JAX compiles nothing (``JAX_DISABLE_JIT=1``), agents take turns on one device, so that
    whoever debugs a model meets the values of one agent in it.

    Args:
      agents: number of agents.
      convolutions: whether the model has any.
      devices: how many of JAX's devices to use; by default as many as there are, at most one for
        each agent.
      agents_at_once: how many agents of a device are computed at the same time, at most; by default
        all of them, and one where they run lane by lane.
      described: devices that are not here, instead of JAX's, see `Execution`.

    Raises:
      ValueError: if there are fewer devices than asked for, or more than agents.
    """
    available = list(jax.devices() if described is None else described)
    allowed = min(len(available), agents)
    devices = allowed if devices is None else devices
    if not 1 <= devices <= allowed:
        raise ValueError(
            f"devices must be 1 to {allowed} ({len(available)} there are, for {agents} agents), "
            f"not {devices}."
        )
    eager: bool = jax.config.jax_disable_jit  # pyrefly: ignore[missing-attribute]
    if eager:
        devices = 1
    on_cpu = available[0].platform == "cpu"
    if on_cpu and described is None and not eager and len(available) == 1 < virtual_devices(agents):
        warnings.warn(
            "JAX has started with one CPU device, so the agents share one core: call "
            f"dimat_jax.prepare_devices({agents}) before anything else uses JAX.",
            stacklevel=2,
        )
    # As few lanes as so many devices allow: the fullest device decides how long a step takes.
    lanes = -(-agents // devices)
    sequential = eager or (on_cpu and convolutions)
    at_once = min(lanes, agents_at_once or (1 if sequential else lanes))
    at_once = max(d for d in range(1, at_once + 1) if lanes % d == 0)
    used = -(-agents // lanes)  # 5 agents in twos leave one of 4 devices without any.
    if described is None and are_several():
        owners = {device.process_index for device in available[:used]}
        if len(owners) < jax.process_count():
            raise ValueError(
                f"{agents} agents on {devices} devices are of {len(owners)} processes, but there "
                f"are {jax.process_count()}: use fewer, or more agents."
            )
    mesh = Mesh(np.array(available[:used]), ("agents",), axis_types=(AxisType.Auto,))
    products = not on_cpu and at_once > 1
    return Execution(
        mesh, agents, lanes, at_once, sequential, products, described=described is not None
    )


def with_patches(execution: Execution, patches: int, memory: int | float | None) -> Execution:
    """The execution, in which patches of images are kept for a gradient only where they fit.

    Args:
      execution: as chosen, which may or may not compute convolutions as products.
      patches: bytes of one agent's.
      memory: bytes of a device; None: what the device says, or enough where it does not.
    """
    if memory is None and not execution.described:
        stats = execution.mesh.local_devices[0].memory_stats() or {}
        memory = stats.get("bytes_limit")
    kept = memory is None or execution.lanes_at_once * patches <= PATCHES_SHARE * memory
    return execution._replace(recompute=execution.products and not kept)


def has_convolutions(function: Callable[..., Any], *args: PyTree) -> bool:
    """Whether a function's jaxpr, or one that it holds, has a convolution."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))


def pad(execution: Execution, tree: PyTree) -> PyTree:
    """``[agents, ...]`` → ``[lanes, ...]``: masked lanes repeat the last agent."""
    if execution.all_lanes == execution.agents:
        return tree
    return jax.tree.map(lambda x: x[execution.agent_of_lane], tree)


def put(execution: Execution, tree: PyTree, spec: PartitionSpec) -> PyTree:
    """Puts arrays on the devices; on those that are only described, their shapes.

    Of several processes all have the same arrays, and each puts on its own devices what is theirs.
    """
    sharding = NamedSharding(execution.mesh, spec)
    if execution.mesh.is_multi_process:
        return jax.tree.map(functools.partial(put_own, sharding), tree)
    if not execution.described:
        return jax.device_put(tree, sharding)

    def describe(x: Any) -> jax.ShapeDtypeStruct:
        # A key's dtype is JAX's own.
        dtype = x.dtype if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x).dtype
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def put_own(sharding: NamedSharding, x: Any) -> Any:
    """One array on the devices of several processes, of which each puts its own."""
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # From some of those devices to others.
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = put_own(sharding, jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    array = np.asarray(x)
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def own_lanes(execution: Execution) -> Int[np.ndarray, "own"]:
    """The lanes of this process's devices, in their order."""
    if not execution.mesh.is_multi_process:
        return np.arange(execution.all_lanes)
    owners = np.array([device.process_index for device in execution.mesh.devices.flat])
    return np.flatnonzero(np.repeat(owners == jax.process_index(), execution.lanes))


def shard_own(execution: Execution, tree: PyTree) -> PyTree:
    """Arrays of this process's devices alone, `own_lanes`, as a part of those of all devices."""
    if not execution.mesh.is_multi_process:
        return shard(execution, tree)
    sharding = NamedSharding(execution.mesh, AGENTS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place_own(execution: Execution, tree: PyTree) -> PyTree:
    """Puts arrays of this process's agents, as `to_own_host` gives them, on their devices."""
    if not execution.mesh.is_multi_process:
        return place(execution, tree)
    # Masked lanes repeat the last agent, who is of the same device.
    agents = np.minimum(np.arange(len(own_lanes(execution))), len(own_agents(execution)) - 1)
    return shard_own(execution, jax.tree.map(lambda x: x[agents], tree))


def shard(execution: Execution, tree: PyTree) -> PyTree:
    """Shards arrays over the devices by their first axis, which these divide."""
    return put(execution, tree, AGENTS)


def place(execution: Execution, tree: PyTree) -> PyTree:
    """Puts arrays ``[agents, ...]`` on the agents' devices, ``[lanes, ...]``."""
    return shard(execution, pad(execution, tree))


def replicate(execution: Execution, tree: PyTree) -> PyTree:
    """Puts a copy of a pytree of arrays on every device."""
    return put(execution, tree, REPLICATED)


def stacked(execution: Execution, shapes: PyTree) -> PyTree:
    """The shapes ``[lanes, ...]`` of all agents' arrays, on their devices, from one agent's."""
    sharding = NamedSharding(execution.mesh, AGENTS)

    def of_all(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((execution.all_lanes, *x.shape), x.dtype, sharding=sharding)

    return jax.tree.map(of_all, shapes)


def zeros(execution: Execution, shapes: PyTree) -> PyTree:
    """Zeros for every agent, ``[lanes, ...]``, of the shapes and dtypes of one agent's pytree."""
    shapes = stacked(execution, shapes)
    if execution.described:
        return shapes
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)


def to_host(execution: Execution, tree: PyTree) -> PyTree:
    """Arrays ``[lanes, ...]`` as NumPy arrays ``[agents, ...]``; in every process those of all."""
    if execution.mesh.is_multi_process:
        tree = jax.tree.map(gathered, tree)
    return jax.tree.map(lambda x: x[: execution.agents], jax.device_get(tree))


def gathered(x: Any) -> Any:
    """An array of several processes, whole, in each of them."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    return multihost_utils.process_allgather(x, tiled=True)


def to_own_host(execution: Execution, tree: PyTree) -> PyTree:
    """Arrays ``[lanes, ...]`` as NumPy arrays of the agents of this process alone."""
    if not execution.mesh.is_multi_process:
        return to_host(execution, tree)
    agents = len(own_agents(execution))

    def rows(x: jax.Array) -> np.ndarray:
        parts = sorted(x.addressable_shards, key=lambda part: part.index[0].start or 0)
        return np.concatenate([np.asarray(part.data) for part in parts])[:agents]

    return jax.tree.map(rows, tree)


def own_agents(execution: Execution) -> Int[np.ndarray, "own"]:
    """The agents of this process."""
    lanes = own_lanes(execution)
    return lanes[lanes < execution.agents]
