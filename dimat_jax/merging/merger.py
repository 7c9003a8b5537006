"""The compiled parts of a merge round, over all agents at once.

Neighbours are handled by slots: slot s holds one neighbour of every agent. A few slots at a time,
so that memory is O(agents × parameters) whatever the graph.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from dimat_jax.execution.exchange import take
from dimat_jax.execution.forms import map_agents
from dimat_jax.execution.placement import AGENTS, Execution, pad, place, to_host
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.alignment import (
    Correlate,
    activation_matcher,
    make_correlation,
    universe_matcher,
    weight_matcher,
)
from dimat_jax.merging.average import add_weighted, permute_state
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.frames import compose_along
from dimat_jax.merging.repair import Goal, make_repair
from dimat_jax.merging.statistics import make_recompute
from dimat_jax.symmetries import Symmetries, permute
from dimat_jax.types import Batch, Permutations, Prepare, Task, Variables


class Merger(NamedTuple):
    """The compiled parts of a merge round; all stacked arrays are ``[lanes, ...]``.

    Attributes:
      symmetries: the model's permutation groups.
      match: how units are compared → what finds permutations: ``activations`` and ``weights`` of
        each source into the frame of the target, ``universe`` of all into one. See
        `dimat_jax.merging.alignment`.
      correlate: what matching by activations does on the devices, before units are assigned.
      gather: ``(variables, sources [agents]) -> variables``: agent a gets those of ``sources[a]``.
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
    of_agents = NamedSharding(execution.mesh, AGENTS)
    gathering = compiled(jax.jit(take, out_shardings=of_agents), stopwatch)
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
        gather=timed("mix", lambda v, sources: gathering(v, pad(execution, sources))),
        permute=timed("mix", permuting),
        compose=timed("assign", composing),
        permute_state=timed("mix", permuting_state),
        add=timed("mix", lambda total, w, v: adding(total, place(execution, w), v)),
        recompute=timed("statistics", recompute),
        repair=Repair(timed("statistics", read), timed("statistics", correct)),
    )
