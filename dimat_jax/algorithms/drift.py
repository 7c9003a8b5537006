"""A correction of what agents drift apart by while they train on different data between merges."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import Merge, Merged, MergeRound, Params, State
from dimat_jax.merging.merger import Merger
from dimat_jax.types import Variables


class DriftState(NamedTuple):
    """What is remembered from round to round, stacked ``[agents, ...]``.

    Attributes:
      started: x', where the agents' last stretch of training began.
      ended: ψ', where the one before it ended; x' before the first.
      merge: the state of the merge itself.
    """

    started: Params
    ended: Params
    merge: State


def with_drift_correction(merge: Merge) -> Merge:
    """x_i ← merge(ψ + x' − ψ')_i, with ψ where training ended and x' where it began.

    Exact diffusion (Yuan et al. 2019, arXiv 1702.05122), which is D² (arXiv 1803.07068), with a
    whole stretch of local training in the place of a step: what an agent's own data add to the
    mean of all cancels from round to round. The first merge is the merge itself. Nothing more is
    sent.

    Args:
      merge: the merge.
    """

    @jax.jit
    def correct(ended: Params, started: Params, before: Params) -> Params:
        return jax.tree.map(lambda e, s, b: e + s - b, ended, started, before)

    def init(variables: Variables) -> DriftState:
        started, ended = (jax.tree.map(jnp.copy, variables["params"]) for _ in range(2))
        return DriftState(started, ended, merge.init(variables))

    def apply(merger: Merger, variables: Variables, state: DriftState, round: MergeRound) -> Merged:
        trained = variables["params"]
        corrected = {**variables, "params": correct(trained, state.started, state.ended)}
        merged = merge.apply(merger, corrected, state.merge, round)
        if merged.moved:
            for permutations in merged.permutations:
                trained = merger.permute_state(permutations, variables, trained)
        started = jax.tree.map(jnp.copy, merged.variables["params"])  # The agents' will be donated.
        ended = jax.tree.map(jnp.copy, trained)
        return merged._replace(state=DriftState(started, ended, merged.state))

    return merge._replace(apply=apply, init=init)
