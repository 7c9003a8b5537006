"""An outer optimizer over merges: what a merge changes is taken for a gradient, and stepped along.

DiLoCo (Douillard et al. 2023, arXiv 2311.08105) takes Nesterov momentum on it; block momentum and
SlowMo (Wang et al. 2020, arXiv 1910.00643) heavy-ball momentum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dimat_jax.algorithms.base import Merge, Merged, MergeRound, Params, State
from dimat_jax.merging.merger import Merger
from dimat_jax.types import Variables


class OuterState(NamedTuple):
    """What is remembered from round to round, stacked ``[agents, ...]``.

    Attributes:
      params: x', those that the agents had when the round before ended.
      optimizer: the outer optimizer's state.
      merge: the state of the merge itself.
    """

    params: Params
    optimizer: State
    merge: State


def with_outer_optimizer(merge: Merge, optimizer: optax.GradientTransformation) -> Merge:
    """x_i ← x_i' + u_i, u_i: the optimizer's update for the gradient x_i' − merge(x)_i.

    Plain SGD at rate 1 is the merge itself. Nothing more is sent. Statistics are recomputed for
    what the optimizer makes of the merged networks.

    Args:
      merge: the merge.
      optimizer: with a learning rate of its own, `optax.sgd(0.7, momentum=0.9, nesterov=True)` as
        DiLoCo has it.
    """

    @jax.jit
    def start(params: Params) -> State:
        return jax.vmap(optimizer.init)(params)

    @jax.jit
    def step(before: Params, merged: Params, state: State) -> tuple[Params, State]:
        gradient = jax.tree.map(jnp.subtract, before, merged)
        update, state = jax.vmap(optimizer.update)(gradient, state, before)
        return optax.apply_updates(before, update), state

    def init(variables: Variables) -> OuterState:
        params = jax.tree.map(jnp.copy, variables["params"])
        return OuterState(params, start(params), merge.init(variables))

    def apply(merger: Merger, variables: Variables, state: OuterState, round: MergeRound) -> Merged:
        # Without statistics: they are recomputed below, for other parameters than the merge gives.
        merged = merge.apply(merger, variables, state.merge, round._replace(statistics=None))
        before, outer = state.params, state.optimizer
        # Those of the round before are in the frame that agents had then.
        if merged.moved:
            for permutations in merged.permutations:
                before, outer = merger.permute_state(permutations, variables, (before, outer))
        params, outer = step(before, merged.variables["params"], outer)
        after = {**merged.variables, "params": params}
        if round.statistics is not None:
            after = merger.recompute(after, round.statistics())
        anchor = jax.tree.map(jnp.copy, params)  # The agents' own will be donated.
        return merged._replace(variables=after, state=OuterState(anchor, outer, merged.state))

    return merge._replace(apply=apply, init=init)
