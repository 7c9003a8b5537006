"""The compiled parts of a merge round, over all agents at once.

Neighbours are handled by slots: slot s holds one neighbour of every agent. A few slots at a time,
so that memory is O(agents × parameters) whatever the graph.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dimat_jax.execution.exchange import find_route, follow, link_bytes
from dimat_jax.execution.forms import map_agents, over_devices
from dimat_jax.execution.placement import (
    AGENTS,
    REPLICATED,
    Execution,
    pad,
    place,
    replicate,
    to_host,
)
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.alignment import (
    Correlate,
    activation_matcher,
    make_correlation,
    universe_matcher,
    weight_matcher,
)
from dimat_jax.merging.average import (
    add_neighbors,
    add_weighted,
    average_all,
    permute_state,
)
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.frames import compose_along
from dimat_jax.merging.repair import Goal, make_repair
from dimat_jax.merging.statistics import make_recompute
from dimat_jax.symmetries import Symmetries, permute
from dimat_jax.types import Batch, Permutations, Prepare, Task, Variables

SLOTS_AT_ONCE = 4
"""Neighbours of an agent that are held at the same time: more of them share one forward pass of the
agent's own network, and take more memory."""


class Merger(NamedTuple):
    """The compiled parts of a merge round; all stacked arrays are ``[lanes, ...]``.

    Attributes:
      symmetries: the model's permutation groups.
      match: how units are compared → what finds permutations: ``activations`` and ``weights`` of
        each source into the frame of the target, ``universe`` of all into one. See
        `dimat_jax.merging.alignment`.
      correlate: what matching by activations does on the devices, before units are assigned.
      gather: ``(variables, sources [agents]) -> variables``: agent a gets those of ``sources[a]``.
      gather_slots: ``(variables, sources [agents, slots]) -> [variables]``: the same of several
        slots, one after the other; what a device needs for two of them is sent to it once.
      average: ``(variables, sources [agents, slots], weights [agents, slots]) -> total``: what
        `add` of each slot comes to, where nothing is aligned. Slot 0 is the agents' own.
      permute: ``(permutations, variables) -> variables``.
      compose: ``(permutations, ancestors [agents]) -> permutations``, see
        `dimat_jax.merging.frames.compose_along`.
      permute_state: ``(permutations, variables, state) -> state``, see
        `dimat_jax.merging.average.permute_state`.
      add: ``(total, weights [agents], variables) -> total + weights * variables``; the total's
        memory is reused; None for none yet. See `dimat_jax.merging.average.add_weighted`.
      recompute: ``(variables, batches) -> variables`` with the statistics of these batches.
      repair: `read` and `correct` of units' moments (REPAIR).
    """

    symmetries: Symmetries
    match: Mapping[str, Callable[..., list[Permutations]]]
    correlate: Correlate
    gather: Callable[[Variables, Any], Variables]
    gather_slots: Callable[[Variables, Any], Sequence[Variables]]
    average: Callable[[Any, Any, Any], Any]
    permute: Callable[[Permutations, Variables], Variables]
    compose: Callable[[Permutations, Any], Permutations]
    permute_state: Callable[[Permutations, Variables, Any], Any]
    add: Callable[[Any, Any, Any], Any]
    recompute: Callable[[Variables, Batches], Variables]
    repair: "Repair"


class Repair(NamedTuple):
    """What REPAIR does to a population.

    Attributes:
      read: ``(variables, batches) -> goal``: mean and deviation of every hidden unit.
      correct: ``(variables, goal, batches) -> variables`` whose units have them. Warns of layers
        that cannot be corrected.
    """

    read: Callable[[Variables, Batches], Goal]
    correct: Callable[[Variables, Goal, Batches], Variables]


def make_merger(
    execution: Execution,
    task: Task,
    symmetries: Symmetries,
    prepare: Prepare,
    abstract: tuple[Variables, Batch],
    stopwatch: Stopwatch,
) -> Merger:
    """Builds the parts of a merge round; each is compiled when it is first used.

    Args:
      execution: the form in which the population runs.
      task: what all agents learn.
      symmetries: the permutation groups of its outputs.
      prepare: ``(batch) -> batch``, from examples as stored to what the task takes.
      abstract: shapes of one agent's variables, and of a batch of what the task takes.
      stopwatch: gets the seconds of ``match``, ``assign``, ``mix``, ``statistics``, ``compile``.
    """
    gathering = make_gather(execution, stopwatch)
    permuting = map_agents(execution, functools.partial(permute, symmetries), stopwatch)
    permuting_state = map_agents(execution, functools.partial(permute_state, symmetries), stopwatch)
    adding = map_agents(execution, add_weighted, stopwatch, donate=0)
    recompute = make_recompute(execution, task, prepare, abstract[0], stopwatch)
    correlate = make_correlation(execution, task, symmetries, prepare, abstract, stopwatch)
    read, correct = make_repair(execution, task, symmetries, prepare, abstract, stopwatch)

    def composing(permutations: Permutations, ancestors: Any) -> Permutations:
        found = to_host(execution, permutations)
        return place(execution, compose_along(symmetries, ancestors, found))

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args):
            with stopwatch.measure(part):
                return jax.block_until_ready(function(*args))

        return call

    return Merger(
        symmetries=symmetries,
        match={
            "activations": activation_matcher(execution, symmetries, correlate, stopwatch),
            "weights": weight_matcher(execution, symmetries, stopwatch),
            "universe": universe_matcher(execution, symmetries, stopwatch),
        },
        correlate=correlate,
        gather=timed("mix", lambda v, sources: gathering(v, sources[:, None])[0]),
        gather_slots=timed("mix", gathering),
        average=timed("mix", make_average(execution, stopwatch)),
        permute=timed("mix", permuting),
        compose=timed("assign", composing),
        permute_state=timed("mix", permuting_state),
        add=timed("mix", lambda total, w, v: adding(total, place(execution, w), v)),
        recompute=timed("statistics", recompute),
        repair=Repair(timed("statistics", read), timed("statistics", correct)),
    )


def make_gather(execution: Execution, stopwatch: Stopwatch) -> Callable[..., list[Variables]]:
    """Builds `Merger.gather_slots`."""
    call = compiled(jax.jit(over_devices(execution, follow, AGENTS)), stopwatch)
    return lambda variables, sources: call(find_route(execution, sources), variables)


def make_average(execution: Execution, stopwatch: Stopwatch) -> Callable[..., Any]:
    """Builds `Merger.average`: slot by slot, or where everyone hears from everyone as products."""
    by_slots = over_devices(execution, add_neighbors, AGENTS)
    of_all = functools.partial(average_all, execution.mesh.size)
    of_all = over_devices(execution, of_all, (REPLICATED, AGENTS))
    adding = compiled(jax.jit(by_slots, donate_argnums=0), stopwatch)
    multiplying = compiled(jax.jit(of_all), stopwatch)

    def average(
        variables: Any,
        sources: Int[np.ndarray, "agents slots"],
        weights: Float[np.ndarray, "agents slots"],
    ) -> Any:
        slots = sources.shape[1]
        # As JAX has it: several processes compare what they put on devices, bit for bit.
        weights = weights.astype(jnp.result_type(float))
        if slots > 1 + SLOTS_AT_ONCE:
            matrix = dense(execution, sources, weights)
            # 0 times what is not finite is not 0: only who is heard by all is in a product.
            if matrix[: execution.agents, : execution.agents].all():
                return multiplying(replicate(execution, matrix), variables)
        total = None
        for start in range(1, max(2, slots), SLOTS_AT_ONCE):
            route = find_route(execution, sources[:, start : start + SLOTS_AT_ONCE])
            first = start if total is not None else 0
            of_slots = place(execution, weights[:, first : start + SLOTS_AT_ONCE])
            total = adding(total, of_slots, route, variables)
        return total

    return average


def average_link_bytes(
    execution: Execution, sources: Int[np.ndarray, "agents slots"], row: int
) -> Int[np.ndarray, "devices devices"]:
    """Bytes that each device sends to each other one in an average of agents and their neighbours.

    Args:
      execution: where the agents are.
      sources: whom each agent hears from, itself in slot 0.
      row: bytes of one agent's network.
    """
    slots, devices = sources.shape[1], execution.mesh.size
    found = np.zeros((devices, devices), np.int64)
    if slots > 1 + SLOTS_AT_ONCE and dense(execution, sources, np.ones(sources.shape)).all():
        if devices > 1:  # Sums go round all devices, see `dimat_jax.execution.exchange.product`.
            here = np.arange(devices)
            found[here, (here + 1) % devices] = (devices - 1) * execution.lanes * row
        return found
    for start in range(1, slots, SLOTS_AT_ONCE):
        found += link_bytes(find_route(execution, sources[:, start : start + SLOTS_AT_ONCE]), row)
    return found


def dense(
    execution: Execution,
    sources: Int[np.ndarray, "agents slots"],
    weights: Float[np.ndarray, "agents slots"],
) -> Float[np.ndarray, "lanes lanes"]:
    """The mixing matrix of all lanes, from each agent's neighbours."""
    matrix = np.zeros((execution.agents, execution.all_lanes), weights.dtype)
    np.add.at(matrix, (np.arange(execution.agents)[:, None], sources), weights)
    return pad(execution, matrix)
