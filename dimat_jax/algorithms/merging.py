"""DIMAT and plain weight averaging: merge the neighbours' networks, then train on.

x_i ← Σ_j π_ij P_ij x_j, where P_ij brings the hidden units of agent j into the order of agent i's,
and P_ii = I (DIMAT, arXiv 2404.08079, algorithm 1). With P_ij = I throughout it is weight
averaging (WA). Both recompute the normalisation statistics afterwards.
"""

import numpy as np

from dimat_jax.algorithms.base import Algorithm, Align, Merged, MergeRound
from dimat_jax.merger import Batches, Merger
from dimat_jax.topology import check_doubly_stochastic
from dimat_jax.types import Permutations, Variables


def by_activations(
    merger: Merger, target: Variables, source: Variables, batches: Batches
) -> Permutations:
    """Aligns units whose activations correlate most (DIMAT, equation 4; Li et al. 2015)."""
    return merger.align(target, source, batches)


def unaligned(
    merger: Merger, target: Variables, source: Variables, batches: Batches
) -> Permutations:
    """Leaves every unit where it is."""
    return {}


def merging(align: Align) -> Algorithm:
    """A method that merges neighbours' networks, aligned by ``align``."""

    def merge(merger: Merger, variables: Variables, round: MergeRound) -> Merged:
        used: list[Permutations] = []

        def aligned(target: Variables, source: Variables) -> Variables:
            permutations = align(merger, target, source, round.matching)
            if not permutations:
                return source
            used.append(permutations)
            return merger.permute(permutations, source)

        if round.first_frame:
            first = merger.gather(variables, np.zeros(len(round.sources), np.int32))
            variables = aligned(first, variables)
        total = merger.scale(variables, round.weights[:, 0])
        for slot in range(1, round.sources.shape[1]):
            source = merger.gather(variables, round.sources[:, slot])
            if not round.first_frame:
                source = aligned(variables, source)
            total = merger.mix(total, round.weights[:, slot], source)
        return Merged(merger.recompute(total, round.statistics), used)

    return Algorithm(check_doubly_stochastic, merge)


dimat = merging(by_activations)
wa = merging(unaligned)
