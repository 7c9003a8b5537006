"""All agents at once: where they live, and how one function advances every one of them.

A population is a pytree whose leaves carry a leading ``agents`` axis, sharded over the devices of
a one-dimensional mesh; each device holds ``lanes`` agents. What an agent does in a step is written
for one agent (`Update`), and `repeat` lifts it to the population in the form that is fast on the
backend at hand:

- On CPU, models with convolutions: `jax.shard_map` over virtual devices; a Python loop over lanes
  and steps that never blocks. XLA's CPU backend turns a vmapped convolution over per-agent weights
  into a grouped one (12 times slower), and runs any convolution in a while-loop 40 times slower.
- Everywhere else: the lanes are vmapped and the steps scanned, one call for all of them.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dimat_jax.execution.kernels import with_kernels
from dimat_jax.execution.timing import Stopwatch, compiled, executables

AGENTS = PartitionSpec("agents")
REPLICATED = PartitionSpec()
MOST_CPU_DEVICES = 64
FORCED_DEVICES = "xla_force_host_platform_device_count"
MALLOC_OPTIONS = {-1: 2**31 - 1, -3: 2**30, -8: 1}
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in bytes, and M_ARENA_MAX (``malloc.h``): what
threads have beside the one arena of the process is limited to 64 MB a piece."""

FORWARD_BATCH = 64
"""Images in a batch of evaluation, matching and statistics: on CPU few enough that a layer's
activations stay in a core's cache, which is twice as fast as 500. The same for every form of
execution, for statistics depend on it."""

PyTree = Any

Update = Callable[[PyTree, PyTree, PyTree], PyTree]
"""What one agent does in one step: ``update(carry, operands, resident) -> carry``. ``carry`` is the
agent's own state, which the step replaces; ``operands`` are the agent's own, read only;
``resident`` is what lies on the agent's device, shared by the agents there, read only."""


Between = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
"""What happens to all agents at once: ``between(carry, kept, shared) -> (carry, kept)``. ``carry``
is that of the `Update`s, stacked ``[agents, ...]``; ``kept`` are further stacked arrays that those
do not see; ``shared`` lies on every device, read only."""


Step = Callable[[PyTree, PyTree, PyTree], PyTree]
"""An `Update` lifted to all agents: ``step(carry, operands, resident) -> carry``."""


class Execution(NamedTuple):
    """How a population is laid out and run.

    Attributes:
      mesh: devices along one axis ``agents``.
      lanes: agents on each device; agent a lives on device ``a // lanes``.
      looped: Python loops over lanes and steps, else vmapped lanes and scanned steps.
    """

    mesh: Mesh
    lanes: int
    looped: bool

    @property
    def agents(self) -> int:
        """Number of agents."""
        return self.mesh.size * self.lanes


def virtual_devices(agents: int, cores: int | None = None) -> int:
    """The number of virtual CPU devices that suits so many agents.

    One device for each core is enough to keep all cores busy, and fewer devices are less memory;
    devices must divide the agents: the smallest divisor that is at least the number of cores, or
    else the largest.
    """
    cores = cores or len(os.sched_getaffinity(0))
    divisors = [d for d in range(1, min(agents, MOST_CPU_DEVICES) + 1) if agents % d == 0]
    return next((d for d in divisors if d >= cores), divisors[-1])


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
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
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

    XLA's CPU backend takes a step's memory anew in every step and frees it after it. By default
    glibc gives large pieces back to the system each time, and finding them anew, page by page, was
    a quarter of a training step.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in MALLOC_OPTIONS.items():
        set_option(option, value)


def choose_execution(agents: int, convolutions: bool, devices: int | None = None) -> Execution:
    """Chooses where and in which form a population runs: the only place where that is decided.

    Args:
      agents: number of agents.
      convolutions: whether the model has any.
      devices: how many of JAX's devices to use; by default the largest number of them that divides
        the agents.

    Raises:
      ValueError: if there are fewer devices than asked for, or they do not divide the agents.
    """
    available = jax.devices()
    if devices is None:
        devices = max(d for d in range(1, len(available) + 1) if agents % d == 0)
    if not 1 <= devices <= len(available):
        raise ValueError(f"devices must be 1 to {len(available)}, those there are, not {devices}.")
    if agents % devices:
        raise ValueError(f"{devices} devices do not divide {agents} agents evenly.")
    on_cpu = available[0].platform == "cpu"
    if on_cpu and len(available) == 1 < virtual_devices(agents):
        warnings.warn(
            "JAX has started with one CPU device, so the agents share one core: call "
            f"dimat_jax.prepare_devices({agents}) before anything else uses JAX.",
            stacklevel=2,
        )
    mesh = Mesh(np.array(available[:devices]), ("agents",), axis_types=(AxisType.Auto,))
    return Execution(mesh, agents // devices, looped=on_cpu and convolutions)


def has_convolutions(function: Callable[..., Any], *args: PyTree) -> bool:
    """Whether a function's jaxpr, or one that it holds, has a convolution."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))


def spread(execution: Execution, tree: PyTree) -> PyTree:
    """Lays a pytree of arrays ``[agents, ...]`` out over the devices."""
    return jax.device_put(tree, NamedSharding(execution.mesh, AGENTS))


def replicate(execution: Execution, tree: PyTree) -> PyTree:
    """Puts a copy of a pytree of arrays on every device."""
    return jax.device_put(tree, NamedSharding(execution.mesh, REPLICATED))


def zeros(execution: Execution, shapes: PyTree) -> PyTree:
    """Zeros for every agent, ``[agents, ...]``, of the shapes and dtypes of one agent's pytree."""
    sharding = NamedSharding(execution.mesh, AGENTS)

    def make(x: jax.ShapeDtypeStruct):
        return jnp.zeros((execution.agents, *x.shape), x.dtype, device=sharding)

    return jax.tree.map(make, shapes)


def map_agents(
    execution: Execution,
    function: Callable[..., PyTree],
    stopwatch: Stopwatch,
    donate: int | tuple[int, ...] = (),
) -> Callable[..., PyTree]:
    """Lifts a function of one agent, without convolutions, to stacked arguments ``[agents, ...]``.

    Args:
      execution: where the agents are.
      function: of one agent's pytrees.
      stopwatch: gets the compile time.
      donate: positions of the arguments whose memory may be reused.
    """
    lifted = shard(execution, jax.vmap(function), AGENTS)
    return compiled(jax.jit(lifted, donate_argnums=donate), stopwatch)


def repeat(
    execution: Execution,
    update: Update,
    stopwatch: Stopwatch,
    resident: PartitionSpec = REPLICATED,
) -> Callable[[PyTree, PyTree, PyTree, int], PyTree]:
    """Lifts what one agent does to all agents, many times in a row.

    Args:
      execution: the form.
      update: one agent's step.
      stopwatch: gets the compile time.
      resident: how the resident arrays lie: `REPLICATED`, or `AGENTS` where each device holds the
        rows of its own agents (``[agents * rows, ...]``).

    Returns:
      ``run(carry, operands, resident, times) -> carry``. ``carry`` and ``operands`` are stacked
      ``[agents, ...]``; the given carry's memory is reused, so it must not be used again. Returns
      at once: nothing waits for the device.
    """
    if execution.looped:
        step = lanes_in_turn(execution, update, stopwatch, resident)

        def run_looped(carry, operands, resident, times):
            for _ in range(times):
                carry = step(carry, operands, resident)
            return carry

        return run_looped

    lanes = vmapped(execution, update)

    def steps(carry, operands, resident, times):
        def body(carry, _):
            return lanes(carry, operands, resident), None

        return jax.lax.scan(body, carry, times)[0]

    specs = AGENTS, AGENTS, resident, REPLICATED
    lifted = compiled(jax.jit(shard(execution, steps, specs), donate_argnums=0), stopwatch)

    def run_scanned(carry, operands, resident, times):
        return lifted(carry, operands, resident, counted(execution, times))

    return run_scanned


def alternate(
    execution: Execution,
    update: Update,
    stopwatch: Stopwatch,
    resident: PartitionSpec = REPLICATED,
) -> Callable[[Between], Callable[..., tuple[PyTree, PyTree]]]:
    """Lifts what one agent does, and lets all agents exchange something every few times.

    Args:
      execution: the form.
      update: one agent's step.
      stopwatch: gets the compile time.
      resident: how the resident arrays lie, as in `repeat`.

    Returns:
      ``with_exchange(between)``, which gives ``run(carry, kept, operands, resident, shared, every,
      times) -> (carry, kept)``: ``times`` often ``update``, ``every`` times in a row, and then
      ``between(carry, kept, shared)``. As in `repeat`, the memory of ``carry`` and ``kept`` is
      reused. In the looped form all exchanges share one compiled ``update``, and each is waited
      for; in the scanned one nothing is.
    """
    if execution.looped:
        step = lanes_in_turn(execution, update, stopwatch, resident)
        return lambda between: alternate_looped(execution, step, between, stopwatch)
    step = shard(execution, vmapped(execution, update), (AGENTS, AGENTS, resident))
    return lambda between: alternate_scanned(execution, step, between, stopwatch)


def alternate_looped(
    execution: Execution, step: Step, between: Between, stopwatch: Stopwatch
) -> Callable[..., tuple[PyTree, PyTree]]:
    """The ``run`` of `alternate` by Python loops, on a compiled step of all agents."""
    of_agents = NamedSharding(execution.mesh, AGENTS)
    exchange = jax.jit(between, donate_argnums=(0, 1), out_shardings=of_agents)
    exchange = compiled(exchange, stopwatch)

    def run(carry, kept, operands, resident, shared, every, times):
        shared = replicate(execution, shared)
        for _ in range(times):
            for _ in range(every):
                carry = step(carry, operands, resident)
            # An exchange holds a thread of XLA's pool for each device until all have come. It has
            # them to itself: behind a full queue of calls the last would wait for ever.
            carry, kept = exchange(jax.block_until_ready(carry), kept, shared)
            jax.block_until_ready(carry)
        return carry, kept

    return run


def alternate_scanned(
    execution: Execution, step: Step, between: Between, stopwatch: Stopwatch
) -> Callable[..., tuple[PyTree, PyTree]]:
    """The ``run`` of `alternate` as one compiled call, of a step of all agents."""
    of_agents = NamedSharding(execution.mesh, AGENTS)
    exchange = jax.jit(between, out_shardings=of_agents)

    def steps(carry, kept, operands, resident, shared, every, times):
        def one(carry, _):
            return step(carry, operands, resident), None

        def body(both, _):
            carry, kept = both
            return exchange(jax.lax.scan(one, carry, every)[0], kept, shared), None

        return jax.lax.scan(body, (carry, kept), times)[0]

    lifted = compiled(jax.jit(steps, donate_argnums=(0, 1), out_shardings=of_agents), stopwatch)

    def run(carry, kept, operands, resident, shared, every, times):
        shared = replicate(execution, shared)
        counts = counted(execution, every), counted(execution, times)
        return lifted(carry, kept, operands, resident, shared, *counts)

    return run


def shard(execution: Execution, function: Callable[..., PyTree], in_specs: Any) -> Callable:
    """A function of what lies on one device, lifted to all; it returns stacked arrays."""
    return jax.shard_map(
        function, mesh=execution.mesh, in_specs=in_specs, out_specs=AGENTS, check_vma=False
    )


def vmapped(execution: Execution, update: Update) -> Step:
    """One step of all agents on a device."""
    lanes = jax.vmap(update, in_axes=(0, 0, None))
    on_cpu = execution.mesh.devices.flat[0].platform == "cpu"
    return with_kernels(lanes, threads_each(execution)) if on_cpu else lanes


def threads_each(execution: Execution) -> int:
    """How many cores there are for each of this process's devices, where these are CPU devices."""
    return max(1, len(os.sched_getaffinity(0)) // len(execution.mesh.local_devices))


def lanes_in_turn(
    execution: Execution, update: Update, stopwatch: Stopwatch, resident: PartitionSpec
) -> Step:
    """One step of all agents, lane by lane: ``step(carry, operands, resident)``.

    Two calls a lane: one computes, and one writes what it gave into the carry, which is donated. In
    one call XLA would copy the carry of all lanes, because an optimizer reads one part of it
    after another has been written.
    """
    update = with_kernels(update, threads_each(execution))

    def compute(carry, operands, resident, lane):
        def pick(tree):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, lane, 0, False), tree)

        return jax.tree.map(lambda x: x[None], update(pick(carry), pick(operands), resident))

    def write(carry, new, lane):
        return jax.tree.map(
            lambda x, value: jax.lax.dynamic_update_index_in_dim(x, value, lane, 0), carry, new
        )

    specs = AGENTS, AGENTS, resident, REPLICATED
    alone = execution.lanes == 1  # Then what is computed is the whole carry.
    computing = jax.jit(shard(execution, compute, specs), donate_argnums=(0,) if alone else ())
    writing = jax.jit(shard(execution, write, (AGENTS, AGENTS, REPLICATED)), donate_argnums=0)
    find_computing, find_writing = (executables(f, stopwatch) for f in (computing, writing))
    lanes = replicate(execution, tuple(np.arange(execution.lanes, dtype=np.int32)))

    def step(carry, operands, resident):
        compute = find_computing(carry, operands, resident, lanes[0])
        if alone:
            return compute(carry, operands, resident, lanes[0])
        write = None
        for lane in lanes:
            new = compute(carry, operands, resident, lane)
            write = write or find_writing(carry, new, lane)
            carry = write(carry, new, lane)
        return carry

    return step


def take(tree: PyTree, rows: Any) -> PyTree:
    """Rows of every leaf's first axis, an integer or an array of them; of agents, as a rule."""
    return jax.tree.map(lambda x: x[rows], tree)


def counted(execution: Execution, times: int) -> jax.Array:
    """Nothing, so many times: what `jax.lax.scan` goes through."""
    return replicate(execution, jnp.zeros((times, 0)))
