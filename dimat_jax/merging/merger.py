"""The merge round of a population: gather, match, assign, permute and mix, recompute statistics.

Neighbours are handled by slots: slot s holds one neighbour of every agent. A few slots at a time,
so that memory is O(agents × parameters) whatever the graph.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, UInt8

from dimat_jax.execution.population import (
    AGENTS,
    REPLICATED,
    Execution,
    Update,
    map_agents,
    repeat,
    spread,
    take,
    zeros,
)
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.matching import (
    assign,
    combine_moments,
    cross_moments,
    match_universe,
    match_weights,
    scores,
)
from dimat_jax.merging.average import add_weighted, scale
from dimat_jax.merging.repair import (
    Goal,
    PreactivationSum,
    fold,
    mean_preactivations,
    preactivation_update,
)
from dimat_jax.merging.statistics import StatisticsSum, mean_statistics, statistics_update
from dimat_jax.merging.units import Units, find_units
from dimat_jax.symmetries import Symmetries, permute, read_sites
from dimat_jax.types import Key, Model, Permutations, Prepare, Variables

COUNTER = jax.ShapeDtypeStruct((), jnp.int32)


class Batches(NamedTuple):
    """Images that agents run networks on, where they lie on the devices.

    Attributes:
      rows: int32 ``[agents, batches, batch]``, rows of ``images`` on the agent's device.
      images: uint8 ``[rows, height, width, channels]``.
    """

    rows: Int[Array, "agents batches batch"]
    images: UInt8[Array, "rows height width channels"]


class Merger(NamedTuple):
    """The compiled parts of a merge round, over all agents at once.

    Attributes:
      symmetries: the model's permutation groups.
      gather: ``(variables, sources [agents]) -> variables``: agent a gets those of ``sources[a]``.
      align: ``(target, sources, batches) -> permutations``, one a source: for each agent those that
        bring it into the frame of ``target``, by their activations on the agent's batches. None at
        all for a model without hidden units to align.
      align_weights: ``(target, sources, key) -> permutations``, the same by their weights.
      align_universe: ``(variables, key) -> permutations``: one dict, of every agent into a frame
        that is found for all of them together; none for a model without hidden units.
      permute: ``(permutations, variables) -> variables``.
      scale: ``(variables, weights [agents]) -> weights * variables``.
      mix: ``(total, weights [agents], variables) -> total + weights * variables``.
      recompute: ``(variables, batches) -> variables`` with the statistics of these batches.
      preactivations: ``(variables, batches) -> goal``: mean and deviation of every hidden unit.
      correct: ``(variables, goal, batches) -> variables`` whose units have them (REPAIR). Warns of
        layers that cannot be corrected.
    """

    symmetries: Symmetries
    gather: Callable[[Variables, Any], Variables]
    align: Callable[[Variables, Sequence[Variables], Batches], list[Permutations]]
    align_weights: Callable[[Variables, Sequence[Variables], Key], list[Permutations]]
    align_universe: Callable[[Variables, Key], list[Permutations]]
    permute: Callable[[Permutations, Variables], Variables]
    scale: Callable[[Variables, Any], Variables]
    mix: Callable[[Variables, Any, Variables], Variables]
    recompute: Callable[[Variables, Batches], Variables]
    preactivations: Callable[[Variables, Batches], Goal]
    correct: Callable[[Variables, Goal, Batches], Variables]


class MatchState(NamedTuple):
    """What matching adds up; stacked with a leading ``agents`` axis.

    Attributes:
      moments: of the target's units with those of each source, by read site.
      batch: the next batch, int32. shape=()
    """

    moments: Any
    batch: Int[Array, "*agents"]


def match_update(symmetries: Symmetries, model: Model, normalise: Prepare) -> Update:
    """Adds the moments of one batch to one agent's `MatchState`.

    The operands are the variables of the target, those of each source, and the rows of the batches
    ``[batches, batch]``; the resident arrays are the images on the agent's device.
    """
    read = read_sites(symmetries, model)

    def update(state: MatchState, operands: Any, images: Any) -> MatchState:
        target, sources, rows = operands
        x = normalise(images[rows[state.batch]])
        activations = read(target, x)
        moments = [
            combine_moments(before, cross_moments(symmetries, activations, read(source, x)))
            for before, source in zip(state.moments, sources, strict=True)
        ]
        return MatchState(moments, state.batch + 1)

    return update


def make_merger(
    execution: Execution,
    model: Model,
    symmetries: Symmetries,
    normalise: Prepare,
    abstract: tuple[Variables, jax.ShapeDtypeStruct],
    stopwatch: Stopwatch,
    own_images: bool = True,
    own_statistics: bool = True,
) -> Merger:
    """Builds the parts of a merge round; each is compiled when it is first used.

    Args:
      execution: the form in which the population runs.
      model: the model of all agents.
      symmetries: its permutation groups.
      normalise: images as stored → what the model takes.
      abstract: shapes of one agent's variables, and of a batch of what the model takes.
      stopwatch: gets the seconds of ``match``, ``assign``, ``mix``, ``statistics``, ``compile``.
      own_images: whether each agent matches on its own images (which lie on its device) or all on
        the same ones (which lie on every device).
      own_statistics: likewise of the images from which statistics are recomputed.
    """
    resident = AGENTS if own_images else REPLICATED
    matching = repeat(execution, match_update(symmetries, model, normalise), stopwatch, resident)
    counted = AGENTS if own_statistics else REPLICATED
    summing = repeat(execution, statistics_update(model, normalise), stopwatch, counted)
    reading = repeat(
        execution, preactivation_update(symmetries, model, normalise), stopwatch, resident
    )
    preactivations, correct = make_repair(
        execution, model, symmetries, abstract, reading, stopwatch
    )
    of_agents = NamedSharding(execution.mesh, AGENTS)
    gathering = compiled(jax.jit(take, out_shardings=of_agents), stopwatch)
    permuting = map_agents(execution, functools.partial(permute, symmetries), stopwatch)
    adding = map_agents(execution, add_weighted, stopwatch, donate=0)
    scaling = map_agents(execution, scale, stopwatch)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args):
            with stopwatch.measure(part):
                return jax.block_until_ready(function(*args))

        return call

    return Merger(
        symmetries=symmetries,
        gather=timed("mix", gathering),
        align=make_align(execution, model, symmetries, abstract, matching, stopwatch),
        align_weights=make_align_weights(execution, symmetries, stopwatch),
        align_universe=make_align_universe(execution, symmetries, stopwatch),
        permute=timed("mix", permuting),
        scale=timed("mix", lambda v, w: scaling(v, spread(execution, w))),
        mix=timed("mix", lambda total, w, v: adding(total, spread(execution, w), v)),
        recompute=timed("statistics", make_recompute(execution, abstract[0], summing, stopwatch)),
        preactivations=timed("statistics", preactivations),
        correct=timed("statistics", correct),
    )


def make_align(
    execution: Execution,
    model: Model,
    symmetries: Symmetries,
    abstract: tuple[Variables, jax.ShapeDtypeStruct],
    matching: Callable[..., MatchState],
    stopwatch: Stopwatch,
) -> Callable[[Variables, Sequence[Variables], Batches], list[Permutations]]:
    """Builds `Merger.align` on ``matching``, the lifted `match_update`."""
    activations = jax.eval_shape(read_sites(symmetries, model), *abstract)
    moments = jax.eval_shape(functools.partial(cross_moments, symmetries), activations, activations)
    if not jax.tree.leaves(moments):
        return lambda target, sources, batches: []  # There is nothing to align.
    scoring = map_agents(execution, scores, stopwatch)

    def align(
        target: Variables, sources: Sequence[Variables], batches: Batches
    ) -> list[Permutations]:
        with stopwatch.measure("match"):
            nothing = MatchState(*zeros(execution, ([moments] * len(sources), COUNTER)))
            operands = target, tuple(sources), batches.rows
            times = batches.rows.shape[1]
            state = matching(nothing, operands, batches.images, times)
            tables = jax.device_get([scoring(moments) for moments in state.moments])
        with stopwatch.measure("assign"):
            return [spread(execution, assign(symmetries, table)) for table in tables]

    return align


def make_align_weights(
    execution: Execution, symmetries: Symmetries, stopwatch: Stopwatch
) -> Callable[[Variables, Sequence[Variables], Key], list[Permutations]]:
    """Builds `Merger.align_weights`: on the host, agent by agent."""

    def align(target: Variables, sources: Sequence[Variables], key: Key) -> list[Permutations]:
        if not symmetries.groups:
            return []
        with stopwatch.measure("assign"):
            targets = unstack(execution, target)
            keys = [jax.random.fold_in(key, agent) for agent in range(execution.agents)]
            pairs = [zip(targets, unstack(execution, s), keys, strict=True) for s in sources]
            return [
                stack(execution, [match_weights(symmetries, t, s, k) for t, s, k in of_source])
                for of_source in pairs
            ]

    return align


def make_align_universe(
    execution: Execution, symmetries: Symmetries, stopwatch: Stopwatch
) -> Callable[[Variables, Key], list[Permutations]]:
    """Builds `Merger.align_universe`: on the host."""

    def align(variables: Variables, key: Key) -> list[Permutations]:
        if not symmetries.groups:
            return []
        with stopwatch.measure("assign"):
            networks = unstack(execution, variables)
            return [stack(execution, match_universe(symmetries, networks, key))]

    return align


def unstack(execution: Execution, tree: Any) -> list[Any]:
    """Each agent's part of a stacked pytree, on the host."""
    tree = jax.device_get(tree)
    return [jax.tree.map(lambda x: x[agent], tree) for agent in range(execution.agents)]  # noqa: B023


def stack(execution: Execution, trees: Sequence[Any]) -> Any:
    """One pytree ``[agents, ...]`` of one for each agent, laid out over the devices."""
    return spread(execution, jax.tree.map(lambda *leaves: np.stack(leaves), *trees))


def make_recompute(
    execution: Execution,
    abstract: Variables,
    summing: Callable[..., StatisticsSum],
    stopwatch: Stopwatch,
) -> Callable[[Variables, Batches], Variables]:
    """Builds `Merger.recompute` on ``summing``, the lifted `statistics_update`."""
    if "batch_stats" not in abstract:
        return lambda variables, batches: variables
    averaging = map_agents(execution, mean_statistics, stopwatch)

    def recompute(variables: Variables, batches: Batches) -> Variables:
        operands, times = (variables, batches.rows), batches.rows.shape[1]
        nothing = StatisticsSum(*zeros(execution, (abstract["batch_stats"], COUNTER)))
        total = summing(nothing, operands, batches.images, times)
        return {**variables, "batch_stats": averaging(total)}

    return recompute


def make_repair(
    execution: Execution,
    model: Model,
    symmetries: Symmetries,
    abstract: tuple[Variables, jax.ShapeDtypeStruct],
    reading: Callable[..., PreactivationSum],
    stopwatch: Stopwatch,
) -> tuple[Callable[[Variables, Batches], Goal], Callable[[Variables, Goal, Batches], Variables]]:
    """Builds `Merger.preactivations` and `Merger.correct` on the lifted `preactivation_update`."""
    averaging = map_agents(execution, mean_preactivations, stopwatch)

    @functools.cache
    def units() -> Units:
        found = find_units(symmetries, model, *abstract)
        if found.missing:
            warnings.warn(
                f"REPAIR leaves these layers uncorrected: {', '.join(found.missing)}. It needs a "
                "bias after each, and both used once and outside loops.",
                stacklevel=2,
            )
        return found

    def read(variables: Variables, goal: Goal | None, batches: Batches) -> Goal:
        moments = {u.bias: jax.ShapeDtypeStruct(u.shape, abstract[1].dtype) for u in units().found}
        nothing = PreactivationSum(*zeros(execution, (moments, moments, COUNTER)))
        operands, times = (variables, goal, batches.rows), batches.rows.shape[1]
        return averaging(reading(nothing, operands, batches.images, times))

    @functools.cache
    def folding() -> Callable[..., Variables]:
        return map_agents(execution, functools.partial(fold, units().found), stopwatch)

    def correct(variables: Variables, goal: Goal, batches: Batches) -> Variables:
        return folding()(variables, read(variables, goal, batches), goal)

    return lambda variables, batches: read(variables, None, batches), correct
