"""Alignment of a whole population: every agent's sources brought into its own frame, at once.

By activations on the agents' devices, by weights and into one universe on the host.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from dimat_jax.datasets.data import take
from dimat_jax.execution.forms import Update, map_agents, repeat
from dimat_jax.execution.placement import (
    Execution,
    own_agents,
    place,
    place_own,
    to_host,
    to_own_host,
    zeros,
)
from dimat_jax.execution.processes import together
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.matching import (
    assign,
    combine_moments,
    cross_moments,
    match_universe,
    match_weights,
    scores,
    warn_of_unread,
)
from dimat_jax.matching.assignment import NotFinite
from dimat_jax.merging.batches import Batches
from dimat_jax.symmetries import Symmetries, read_sites
from dimat_jax.types import Batch, Key, Permutations, Prepare, Task, Variables

COUNTER = jax.ShapeDtypeStruct((), jnp.int32)


class MatchState(NamedTuple):
    """What matching adds up; stacked with a leading ``lanes`` axis.

    Attributes:
      moments: of the target's units with those of each source, by read site.
      batch: the next batch, int32. shape=()
    """

    moments: Any
    batch: Int[Array, "*lanes"]


def match_update(symmetries: Symmetries, task: Task, prepare: Prepare) -> Update:
    """Adds the moments of one batch to one agent's `MatchState`.

    The operands are the variables of the target, those of each source, and the rows of the batches
    ``[batches, batch]``; the resident arrays are the examples on the agent's device.
    """
    read = read_sites(symmetries, task.outputs)

    def update(state: MatchState, operands: Any, examples: Any) -> MatchState:
        target, sources, rows = operands
        batch = prepare(take(examples, rows[state.batch]))
        activations = read(target, batch)
        moments = [
            combine_moments(before, cross_moments(symmetries, activations, read(source, batch)))
            for before, source in zip(state.moments, sources, strict=True)
        ]
        return MatchState(moments, state.batch + 1)

    return update


Correlate = Callable[[Variables, Sequence[Variables], Batches], list[Any]]
"""``(target, sources, batches) -> scores``, one pytree ``[lanes, ..., units, units]`` per source:
how much each unit of an agent's target is like each of its source, on the agent's batches."""


def make_correlation(
    execution: Execution,
    task: Task,
    symmetries: Symmetries,
    prepare: Prepare,
    abstract: tuple[Variables, Batch],
    stopwatch: Stopwatch,
) -> Correlate:
    """Builds what activation matching does on the devices; see `make_merger` for the arguments.

    It gives no scores at all for a model without hidden units to align.
    """
    activations = jax.eval_shape(read_sites(symmetries, task.outputs), *abstract)
    moments = jax.eval_shape(functools.partial(cross_moments, symmetries), activations, activations)
    warn_of_unread(symmetries, moments)
    if not jax.tree.leaves(moments):
        return lambda target, sources, batches: []  # There is nothing to align.
    scoring = map_agents(execution, scores, stopwatch)
    update = match_update(symmetries, task, prepare)

    @functools.cache
    def matching(spec: PartitionSpec) -> Callable[..., MatchState]:
        return repeat(execution, update, stopwatch, spec)

    def correlate(target: Variables, sources: Sequence[Variables], batches: Batches) -> list[Any]:
        # All sources of a call share the target's forward passes: moments are summed over the
        # batches on the devices, and only scores [units, units] come to the host.
        nothing = MatchState(*zeros(execution, ([moments] * len(sources), COUNTER)))
        operands = target, tuple(sources), batches.rows
        state = matching(batches.spec)(nothing, operands, batches.examples, batches.number)
        return [scoring(moments) for moments in state.moments]

    return correlate


def activation_matcher(
    execution: Execution, symmetries: Symmetries, correlate: Correlate, stopwatch: Stopwatch
) -> Callable[[Variables, Sequence[Variables], Batches], list[Permutations]]:
    """Builds ``(target, sources, batches) -> permutations``, one per source.

    Those of each agent bring the source into the frame of ``target``, by activations on the agent's
    batches. None at all for a model without hidden units to align.
    """

    def match(
        target: Variables, sources: Sequence[Variables], batches: Batches
    ) -> list[Permutations]:
        with stopwatch.measure("match"):
            tables = to_own_host(execution, correlate(target, sources, batches))
        with stopwatch.measure("assign"):
            found = together(lambda: [assign(symmetries, table) for table in tables], NotFinite)
            return [place_own(execution, permutations) for permutations in found]

    return match


def weight_matcher(
    execution: Execution, symmetries: Symmetries, stopwatch: Stopwatch
) -> Callable[[Variables, Sequence[Variables], Key], list[Permutations]]:
    """Builds ``(target, sources, key) -> permutations``, one per source, on the host."""

    def match(target: Variables, sources: Sequence[Variables], key: Key) -> list[Permutations]:
        if not symmetries.groups:
            return []
        with stopwatch.measure("assign"):
            targets = unstack(to_own_host(execution, target))
            keys = [jax.random.fold_in(key, agent) for agent in own_agents(execution).tolist()]
            theirs = [unstack(to_own_host(execution, source)) for source in sources]
            found = together(
                lambda: [
                    stack([match_weights(symmetries, *all_of) for all_of in of_source])
                    for of_source in (zip(targets, s, keys, strict=True) for s in theirs)
                ],
                NotFinite,
            )
            return [place_own(execution, permutations) for permutations in found]

    return match


def universe_matcher(
    execution: Execution, symmetries: Symmetries, stopwatch: Stopwatch
) -> Callable[[Variables, Key], list[Permutations]]:
    """Builds ``(variables, key) -> permutations``, on the host.

    One dict, of every agent into a frame that is found for all of them together; none for a model
    without hidden units.
    """

    def match(variables: Variables, key: Key) -> list[Permutations]:
        if not symmetries.groups:
            return []
        with stopwatch.measure("assign"):
            networks = unstack(to_host(execution, variables))
            return [place(execution, stack(match_universe(symmetries, networks, key)))]

    return match


def unstack(tree: Any) -> list[Any]:
    """Each agent's part of a pytree stacked ``[agents, ...]``, on the host."""
    agents = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x: x[agent], tree) for agent in range(agents)]  # noqa: B023


def stack(trees: Sequence[Any]) -> Any:
    """One pytree ``[agents, ...]`` of one for each agent."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
