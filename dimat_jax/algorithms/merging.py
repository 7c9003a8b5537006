"""DIMAT, weight averaging and their kin: merge the neighbours' networks, then train on.

x_i ← Σ_j π_ij P_ij x_j, where P_ij brings the hidden units of agent j into the order of agent i's,
and P_ii = I (DIMAT, arXiv 2404.08079, algorithm 1). With P_ij = I throughout it is weight
averaging (WA). Both recompute the normalisation statistics afterwards. What differs between the
methods here are the arguments of `merging`.
"""

import functools
from collections.abc import Sequence

import numpy as np

from dimat_jax.algorithms.base import (
    Algorithm,
    Align,
    Frame,
    Merged,
    MergeRound,
    Sends,
    doubly_stochastic,
)
from dimat_jax.merging.merger import Merger
from dimat_jax.merging.repair import Goal
from dimat_jax.topology import Topology, fully_connected
from dimat_jax.types import Permutations, Variables

SLOTS_AT_ONCE = 4
"""Neighbours of an agent that are held at the same time: more of them share one forward pass of the
agent's own network, and take more memory."""


def by_activations(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Aligns units whose activations correlate most (DIMAT, equation 4; Li et al. 2015)."""
    return merger.align(target, sources, round.matching)


def by_weights(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Aligns networks so that their weights are nearest (Git Re-Basin, algorithm 1).

    On the host, one pair of networks after the other.
    """
    return merger.align_weights(target, sources, round.key)


def unaligned(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Leaves every unit where it is."""
    return []


def first_frame(align: Align) -> Frame:
    """Brings all into the frame of agent 0."""

    def into_first(merger: Merger, variables: Variables, round: MergeRound) -> list[Permutations]:
        first = merger.gather(variables, np.zeros(len(round.sources), np.int32))
        return align(merger, first, [variables], round)

    return into_first


def universe_frame(merger: Merger, variables: Variables, round: MergeRound) -> list[Permutations]:
    """Brings all into one universe, found for all together (`match_universe`).

    P_ij = Q_i⁻¹ Q_j: cycle-consistent, as pairs aligned one by one are not. It takes everyone's
    networks, and so each agent sends its own to all others, and not to its neighbours alone.
    """
    return merger.align_universe(variables, round.key)


def merging(
    align: Align,
    frame: Frame | None = None,
    recompute: bool = True,
    repair: bool = False,
    at_end: bool = False,
) -> Algorithm:
    """A method that merges neighbours' networks.

    Args:
      align: brings each neighbour into an agent's own frame.
      frame: brings all agents into one frame instead, in which they stay; by default agent 0's,
        by ``align``, where the run merges in agent 0's frame, else none.
      recompute: whether normalisation statistics are recomputed, if the run has them recomputed at
        all; otherwise they are averaged with the rest.
      repair: whether each unit's mean and deviation are then set to the weighted average of its
        parents' (`dimat_jax.merging.repair`), on the images for matching.
      at_end: whether all agents train alone, and there is one merge of all of them at the end.
    """
    own = functools.partial(merge, align, frame, recompute, repair)
    graph = everyone if at_end else doubly_stochastic
    return Algorithm(graph, Sends(parameters=1, statistics=1), own, at_end=at_end)


def everyone(topology: Topology) -> Topology:
    """All agents of a graph, fully connected."""
    return fully_connected(topology.agents)


def merge(
    align: Align,
    frame: Frame | None,
    recompute: bool,
    repair: bool,
    merger: Merger,
    variables: Variables,
    round: MergeRound,
) -> Merged:
    """One round of `merging`: Σ_j π_ij P_ij x_j, a few neighbours at a time."""
    used: list[Permutations] = []
    if round.first_frame and frame is None:
        frame = first_frame(align)
    if frame is not None:
        used, align = frame(merger, variables, round), unaligned
        for permutations in used:
            variables = merger.permute(permutations, variables)

    def parents(slots: Sequence[int]) -> Sequence[Variables]:
        sources = [merger.gather(variables, round.sources[:, slot]) for slot in slots]
        permutations = align(merger, variables, sources, round)
        used.extend(permutations)
        pairs = zip(permutations, sources, strict=True)
        return [merger.permute(p, s) for p, s in pairs] if permutations else sources

    total = merger.scale(variables, round.weights[:, 0])
    goal: Goal = {}
    if repair:
        goal = merger.scale(merger.preactivations(variables, round.matching), round.weights[:, 0])
    slots = range(1, round.sources.shape[1])
    for start in range(0, len(slots), SLOTS_AT_ONCE):
        chunk = slots[start : start + SLOTS_AT_ONCE]
        for slot, parent in zip(chunk, parents(chunk), strict=True):
            total = merger.mix(total, round.weights[:, slot], parent)
            if repair:
                of_parent = merger.preactivations(parent, round.matching)
                goal = merger.mix(goal, round.weights[:, slot], of_parent)
    if recompute and round.statistics is not None:
        total = merger.recompute(total, round.statistics)
    if repair:
        total = merger.correct(total, goal, round.matching)
    return Merged(total, used)


dimat = merging(by_activations)
wa = merging(unaligned)
MERGING: dict[str, Algorithm] = {
    "dimat": dimat,
    "wa": wa,
    "wa_published": merging(unaligned, recompute=False),
    "wm": merging(by_weights),
    "universe": merging(unaligned, universe_frame)._replace(
        sends=Sends(parameters=1, statistics=1, to_everyone=True)
    ),
    "final_wa": merging(unaligned, at_end=True),
    "final_dimat": merging(by_activations, first_frame(by_activations), at_end=True),
    "dimat_repair": merging(by_activations, repair=True),
    "wa_repair": merging(unaligned, repair=True),
}
"""The methods of this file."""
