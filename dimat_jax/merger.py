"""The merge round of a population: gather, match, assign, permute and mix, recompute statistics.

Neighbours are handled by slots: slot s holds one neighbour of every agent. A few slots at a time,
so that memory is O(agents × parameters) whatever the graph.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, UInt8

from dimat_jax.matching import assign, combine_moments, cross_moments, scores
from dimat_jax.merging import add_weighted, scale
from dimat_jax.population import (
    AGENTS,
    REPLICATED,
    Execution,
    Update,
    map_agents,
    repeat,
    spread,
    zeros,
)
from dimat_jax.statistics import StatisticsSum, mean_statistics, statistics_update
from dimat_jax.symmetries import Symmetries, permute, read_sites
from dimat_jax.timing import Stopwatch, compiled
from dimat_jax.types import Model, Permutations, Prepare, Variables

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
      permute: ``(permutations, variables) -> variables``.
      scale: ``(variables, weights [agents]) -> weights * variables``.
      mix: ``(total, weights [agents], variables) -> total + weights * variables``.
      recompute: ``(variables, batches) -> variables`` with the statistics of these batches.
    """

    symmetries: Symmetries
    gather: Callable[[Variables, Any], Variables]
    align: Callable[[Variables, Sequence[Variables], Batches], list[Permutations]]
    permute: Callable[[Permutations, Variables], Variables]
    scale: Callable[[Variables, Any], Variables]
    mix: Callable[[Variables, Any, Variables], Variables]
    recompute: Callable[[Variables, Batches], Variables]


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
    """
    resident = AGENTS if own_images else REPLICATED
    matching = repeat(execution, match_update(symmetries, model, normalise), stopwatch, resident)
    summing = repeat(execution, statistics_update(model, normalise), stopwatch, AGENTS)
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
        permute=timed("mix", permuting),
        scale=timed("mix", lambda v, w: scaling(v, spread(execution, w))),
        mix=timed("mix", lambda total, w, v: adding(total, spread(execution, w), v)),
        recompute=timed("statistics", make_recompute(execution, abstract[0], summing, stopwatch)),
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


def take(tree: Any, rows: Int[Array | np.ndarray, "agents"]) -> Any:
    """Rows of every leaf's first axis."""
    return jax.tree.map(lambda x: x[rows], tree)
