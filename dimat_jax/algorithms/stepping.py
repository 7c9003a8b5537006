"""Training by a gossip method: every agent's gradients, then one update of all agents' states.

`dimat_jax.execution.population.alternate` runs the two in turn.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dimat_jax.algorithms import Exchange, Gossip
from dimat_jax.execution.population import Between, Update, take
from dimat_jax.training.local import AgentState, batch_gradient, count_loss
from dimat_jax.types import Model, Prepare


class GossipState(NamedTuple):
    """What an agent of a gossip method has in place of an optimizer's state; stacked likewise.

    Attributes:
      points: parameters at which its gradients are taken in this step, ``[points, ...]``.
      gradients: those gradients, as far as they are taken.
      point: the next of them, int32. shape=()
      turn: gossip steps since the method began, int32. shape=()
    """

    points: Any
    gradients: Any
    point: Int[Array, "*agents"]
    turn: Int[Array, "*agents"]


def gradient_update(model: Model, prepare: Prepare) -> Update:
    """Takes an agent's gradient at its next point; operands and resident as in `train_update`.

    The first point is the agent's own model: its loss counts, and its running statistics move.
    """

    def update(state: AgentState, order: Int[Array, "steps batch"], resident: Any) -> AgentState:
        gossip: GossipState = state.optimizer
        own = gossip.point == 0
        params = jax.tree.map(lambda x: x[gossip.point], gossip.points)
        gradient, loss, variables = batch_gradient(model, prepare, state, params, order, resident)
        gradients = jax.tree.map(
            lambda all, new: all.at[gossip.point].set(new), gossip.gradients, gradient
        )
        moved = {
            name: jax.tree.map(lambda a, b: jnp.where(own, a, b), value, state.variables[name])
            for name, value in variables.items()
            if name != "params"
        }
        state = state._replace(
            variables={**state.variables, **moved},
            optimizer=gossip._replace(gradients=gradients, point=gossip.point + 1),
        )
        return count_loss(state, jnp.where(own, loss, 0))

    return update


def gossip_start(gossip: Gossip, state: AgentState, rounds: Exchange) -> tuple[AgentState, Any]:
    """The agents, and the method's own state, before the first step of a gossip method.

    Args:
      gossip: the method.
      state: of all agents, stacked.
      rounds: every round of the graph, stacked ``[period, ...]``.
    """
    first = take(rounds, 0)
    kept = gossip.init(state.variables["params"], first)
    points = stack_points(gossip.points(kept, first))
    zeros = jnp.zeros_like(state.step)
    carry = GossipState(points, jax.tree.map(jnp.zeros_like, points), zeros, zeros)
    return at_own_point(state._replace(optimizer=carry)), kept


def gossip_exchange(gossip: Gossip, schedule: optax.Schedule) -> Between:
    """All agents' gradients are there: the method's update, and the points of the next step.

    The carry is the stacked `AgentState` of `gradient_update`, what is kept is the method's state,
    and what is shared are the graph's rounds.
    """

    def between(state: AgentState, kept: Any, rounds: Exchange) -> tuple[AgentState, Any]:
        carry: GossipState = state.optimizer
        turn, period = carry.turn[0], len(rounds.matrix)
        now, then = take(rounds, turn % period), take(rounds, (turn + 1) % period)
        rate = state.rate_scale[0] * schedule(state.step[0])
        kept = gossip.update(unstack_points(carry.gradients), kept, now, rate)
        points = stack_points(gossip.points(kept, then))
        zeros = jnp.zeros_like(carry.point)
        carry = carry._replace(points=points, point=zeros, turn=carry.turn + 1)
        state = state._replace(optimizer=carry, step=state.step + 1)
        return at_own_point(state), kept

    return between


def stack_points(points: tuple[Any, ...]) -> Any:
    """Several stacked parameters ``[agents, ...]`` as one ``[agents, points, ...]``."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *points)


def unstack_points(stacked: Any) -> tuple[Any, ...]:
    """What `stack_points` was given."""
    leaves, structure = jax.tree.flatten(stacked)
    return tuple(
        structure.unflatten(point)
        for point in zip(*(jnp.unstack(x, axis=1) for x in leaves), strict=True)
    )


def at_own_point(state: AgentState) -> AgentState:
    """Makes each agent's own point, the first, its model's parameters."""
    params = jax.tree.map(lambda x: x[:, 0], state.optimizer.points)
    return state._replace(variables={**state.variables, "params": params})
