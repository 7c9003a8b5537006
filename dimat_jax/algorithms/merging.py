"""DIMAT and plain weight averaging: merge the neighbours' networks, then train on.

x_i ← Σ_j π_ij P_ij x_j, where P_ij brings the hidden units of agent j into the order of agent i's,
and P_ii = I (DIMAT, arXiv 2404.08079, algorithm 1). With P_ij = I throughout it is weight
averaging (WA). Both recompute the normalisation statistics afterwards.
"""

from collections.abc import Sequence

import numpy as np

from dimat_jax.algorithms.base import Algorithm, Align, Merged, MergeRound
from dimat_jax.merger import Batches, Merger
from dimat_jax.topology import check_doubly_stochastic
from dimat_jax.types import Permutations, Variables

SLOTS_AT_ONCE = 4
"""Neighbours of an agent that are held at the same time: more of them share one forward pass of the
agent's own network, and take more memory."""


def by_activations(
    merger: Merger, target: Variables, sources: Sequence[Variables], batches: Batches
) -> list[Permutations]:
    """Aligns units whose activations correlate most (DIMAT, equation 4; Li et al. 2015)."""
    return merger.align(target, sources, batches)


def unaligned(
    merger: Merger, target: Variables, sources: Sequence[Variables], batches: Batches
) -> list[Permutations]:
    """Leaves every unit where it is."""
    return []


def merging(align: Align) -> Algorithm:
    """A method that merges neighbours' networks, aligned by ``align``."""

    def merge(merger: Merger, variables: Variables, round: MergeRound) -> Merged:
        used: list[Permutations] = []

        def aligned(target: Variables, sources: Sequence[Variables]) -> Sequence[Variables]:
            permutations = align(merger, target, sources, round.matching)
            if not permutations:
                return sources
            used.extend(permutations)
            return [merger.permute(p, s) for p, s in zip(permutations, sources, strict=True)]

        agents, slots = round.sources.shape
        if round.first_frame:
            first = merger.gather(variables, np.zeros(agents, np.int32))
            (variables,) = aligned(first, [variables])
        total = merger.scale(variables, round.weights[:, 0])
        for start in range(1, slots, SLOTS_AT_ONCE):
            chunk = range(start, min(start + SLOTS_AT_ONCE, slots))
            sources = [merger.gather(variables, round.sources[:, slot]) for slot in chunk]
            if not round.first_frame:
                sources = aligned(variables, sources)
            for slot, source in zip(chunk, sources, strict=True):
                total = merger.mix(total, round.weights[:, slot], source)
        return Merged(merger.recompute(total, round.statistics), used)

    return Algorithm(check_doubly_stochastic, merge)


dimat = merging(by_activations)
wa = merging(unaligned)
