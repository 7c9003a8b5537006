"""How what one agent does becomes what all agents do.

A step is written for one agent (`Update`). `lift` makes it a step of all agents, `loop` takes many
steps, `exchange` lets all agents exchange something in between. Each of them has two forms, which
give the same numbers; `dimat_jax.execution.placement.choose_execution` says which is used:

- *sequential*: Python loops over steps and chunks of lanes, and never waits; the parts that it
  calls are compiled.
- *scanned*: the lanes of a device are vmapped (in chunks, if not all at once) and the steps scanned
  in one compiled call. A lifted step is then a function to be traced inside `loop`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dimat_jax.execution.devices import usable_cores
from dimat_jax.execution.kernels import with_kernels
from dimat_jax.execution.placement import AGENTS, REPLICATED, Execution, replicate
from dimat_jax.execution.products import with_products
from dimat_jax.execution.timing import Stopwatch, compiled, executables

PyTree = Any

Update = Callable[[PyTree, PyTree, PyTree], PyTree]
"""What one agent does in one step: ``update(carry, operands, resident) -> carry``. ``carry`` is the
agent's own state, which the step replaces; ``operands`` are the agent's own, read only;
``resident`` is what lies on the agent's device, shared by the agents there, read only."""

Step = Callable[[PyTree, PyTree, PyTree], PyTree]
"""An `Update` lifted to all agents, its carry and operands stacked ``[lanes, ...]``."""


def over_devices(execution: Execution, function: Callable[..., PyTree], in_specs: Any) -> Callable:
    """A function of what lies on one device, lifted to all; it returns stacked arrays."""
    if jax.config.jax_disable_jit:  # pyrefly: ignore[missing-attribute]
        return function  # One device has everything.
    return jax.shard_map(
        function, mesh=execution.mesh, in_specs=in_specs, out_specs=AGENTS, check_vma=False
    )


def map_agents(
    execution: Execution,
    function: Callable[..., PyTree],
    stopwatch: Stopwatch,
    donate: int | tuple[int, ...] = (),
) -> Callable[..., PyTree]:
    """Lifts a function of one agent, without convolutions, to stacked arguments ``[lanes, ...]``.

    Args:
      execution: where the agents are.
      function: of one agent's pytrees.
      stopwatch: gets the compile time.
      donate: positions of the arguments whose memory may be reused.
    """
    lifted = over_devices(execution, jax.vmap(function), AGENTS)
    return compiled(jax.jit(lifted, donate_argnums=donate), stopwatch)


def lift(
    execution: Execution,
    update: Update,
    stopwatch: Stopwatch,
    resident: PartitionSpec = REPLICATED,
) -> Step:
    """Lifts what one agent does in a step to all agents.

    Args:
      execution: the form.
      update: one agent's step.
      stopwatch: gets the compile time.
      resident: how the resident arrays lie: `REPLICATED`, or `AGENTS` where each device holds the
        rows of its own agents (``[lanes * rows, ...]``).

    Returns:
      A step; in the sequential form it reuses the memory of the carry that it is given.
    """
    if execution.sequential:
        return chunks_in_sequence(execution, update, stopwatch, resident)
    return over_devices(execution, vectorized(execution, update), (AGENTS, AGENTS, resident))


def loop(
    execution: Execution, body: Callable[..., PyTree], stopwatch: Stopwatch
) -> Callable[..., PyTree]:
    """Takes a step of all agents many times in a row.

    Args:
      execution: the form.
      body: ``body(carry, operands, resident, shared) -> carry``, made of lifted steps and
        exchanges. ``shared`` lies on every device.
      stopwatch: gets the compile time.

    Returns:
      ``run(carry, operands, resident, shared, times) -> carry``. The given carry's memory is
      reused, so it must not be used again. Returns at once: nothing waits for the device.
    """
    if execution.sequential:

        def run_sequential(carry, operands, resident, shared, times):
            for _ in range(times):
                carry = body(carry, operands, resident, shared)
            return carry

        return run_sequential

    # `times` is an array without elements: its length is known when the loop is compiled.
    def steps(carry, operands, resident, shared, times):
        def once(carry, _):
            return body(carry, operands, resident, shared), None

        return jax.lax.scan(once, carry, times)[0]

    of_agents = NamedSharding(execution.mesh, AGENTS)
    scanned = compiled(jax.jit(steps, donate_argnums=0, out_shardings=of_agents), stopwatch)

    def run_scanned(carry, operands, resident, shared, times):
        return scanned(carry, operands, resident, shared, scan_length(execution, times))

    return run_scanned


def repeat(
    execution: Execution,
    update: Update,
    stopwatch: Stopwatch,
    resident: PartitionSpec = REPLICATED,
) -> Callable[[PyTree, PyTree, PyTree, int], PyTree]:
    """Lifts what one agent does to all agents, many times in a row, without any exchange.

    As `loop` of a `lift`; where steps are scanned, each device goes through its own.

    Returns:
      ``run(carry, operands, resident, times) -> carry``, as of `loop`.
    """
    if execution.sequential:
        step = lift(execution, update, stopwatch, resident)
        run = loop(execution, lambda c, operands, r, _: step(c, operands, r), stopwatch)
        return lambda carry, operands, resident, times: run(carry, operands, resident, (), times)

    lanes = vectorized(execution, update)

    def steps(carry, operands, resident, times):
        def once(carry, _):
            return lanes(carry, operands, resident), None

        return jax.lax.scan(once, carry, times)[0]

    specs = AGENTS, AGENTS, resident, REPLICATED
    lifted = over_devices(execution, steps, specs)
    scanned = compiled(jax.jit(lifted, donate_argnums=0), stopwatch)

    def run_scanned(carry, operands, resident, times):
        return scanned(carry, operands, resident, scan_length(execution, times))

    return run_scanned


def exchange(
    execution: Execution, function: Callable[..., PyTree], stopwatch: Stopwatch, donate: int
) -> Callable[..., PyTree]:
    """Compiles a function of all agents at once, which may move data between devices.

    Args:
      execution: the form.
      function: of pytrees stacked ``[lanes, ...]``, or that lie on every device; returns stacked
        ones.
      stopwatch: gets the compile time.
      donate: so many arguments, the first ones, have their memory reused.
    """
    of_agents = NamedSharding(execution.mesh, AGENTS)
    if not execution.sequential:
        return jax.jit(function, out_shardings=of_agents)
    donated = jax.jit(function, donate_argnums=tuple(range(donate)), out_shardings=of_agents)
    call = compiled(donated, stopwatch)

    def wait_and_call(*args: PyTree) -> PyTree:
        # It holds a thread of XLA's pool for each device until all have come. It has them to
        # itself: behind a full queue of calls the last would wait for ever.
        return jax.block_until_ready(call(*jax.block_until_ready(args)))

    return wait_and_call


def for_each(execution: Execution, function: Callable[..., Any], carry: PyTree, items: list) -> Any:
    """``function(carry, item) -> (carry, result)`` over several items, inside a body of `loop`.

    Where steps are scanned, so are the items, which then have to be alike: one is compiled.

    Returns:
      The last carry, and the list of results.
    """
    if execution.sequential or len(items) == 1:
        results = []
        for item in items:
            carry, result = function(carry, item)
            results.append(result)
        return carry, results
    # [items, lanes, ...]: a scan over items inside the scan over steps.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)
    carry, results = jax.lax.scan(function, carry, stacked)
    return carry, [jax.tree.map(lambda x: x[i], results) for i in range(len(items))]  # noqa: B023


def vectorized(execution: Execution, update: Update) -> Step:
    """One step of all lanes of a device, so many of them at once as the execution says."""
    if execution.products:
        update = with_products(update)
    if execution.lanes_at_once == execution.lanes:
        lanes = jax.vmap(update, in_axes=(0, 0, None))
    else:

        def lanes(carry, operands, resident):
            def one(both):
                carry, operands = both
                return update(carry, operands, resident)

            return jax.lax.map(one, (carry, operands), batch_size=execution.lanes_at_once)

    on_cpu = execution.mesh.devices.flat[0].platform == "cpu"
    return with_kernels(lanes, threads_each(execution)) if on_cpu else lanes


def threads_each(execution: Execution) -> int:
    """How many cores there are for each of this process's devices, where these are CPU devices."""
    return max(1, usable_cores() // len(execution.mesh.local_devices))


def chunks_in_sequence(
    execution: Execution, update: Update, stopwatch: Stopwatch, resident: PartitionSpec
) -> Step:
    """One step of all agents, chunk of lanes by chunk of lanes.

    Two calls a chunk: one computes, and one writes what it gave into the carry, which is donated.
    In one call XLA would copy the carry of all lanes, because an optimizer reads one part of it
    after another has been written.
    """
    size = execution.lanes_at_once
    update = with_kernels(update, threads_each(execution))

    # Lanes [start, start + size) of a device; `start` is an array on it, so that all chunks share
    # one compiled call.
    def compute(carry, operands, resident, start):
        def pick(tree):
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 0), tree)

        # A single lane is not vmapped: a convolution would become a grouped one.
        if size > 1:
            return jax.vmap(update, in_axes=(0, 0, None))(pick(carry), pick(operands), resident)
        one = jax.tree.map(lambda x: x[0], (pick(carry), pick(operands)))
        return jax.tree.map(lambda x: x[None], update(*one, resident))

    def write(carry, new, start):
        return jax.tree.map(
            lambda x, value: jax.lax.dynamic_update_slice_in_dim(x, value, start, 0), carry, new
        )

    specs = AGENTS, AGENTS, resident, REPLICATED
    whole = size == execution.lanes  # Then what is computed is the whole carry.
    donate = (0,) if whole else ()
    computing = jax.jit(over_devices(execution, compute, specs), donate_argnums=donate)
    writing = over_devices(execution, write, (AGENTS, AGENTS, REPLICATED))
    writing = jax.jit(writing, donate_argnums=0)
    find_computing, find_writing = (executables(f, stopwatch) for f in (computing, writing))
    starts = replicate(execution, tuple(np.arange(0, execution.lanes, size, dtype=np.int32)))

    def step(carry, operands, resident):
        compute = find_computing(carry, operands, resident, starts[0])
        if whole:
            return compute(carry, operands, resident, starts[0])
        write = None
        for start in starts:
            new = compute(carry, operands, resident, start)
            write = write or find_writing(carry, new, start)
            carry = write(carry, new, start)
        return carry

    return step


def scan_length(execution: Execution, times: int) -> PyTree:
    """An array without elements, over whose first axis `jax.lax.scan` goes so many times."""
    return replicate(execution, jnp.zeros((times, 0)))
