"""Training by gossip: every agent's gradients, then one update of all agents at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from dimat_jax.algorithms.base import Exchange, Gossip, Params, State
from dimat_jax.execution.forms import Step, Update, exchange, for_each, loop
from dimat_jax.execution.placement import Execution, place
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.training.local import Micro, batch_gradient
from dimat_jax.training.state import AgentState, count_loss
from dimat_jax.types import Prepare, Task, Variables


class GossipState(NamedTuple):
    """What a gossip method keeps from step to step, besides the agents' own state.

    Attributes:
      method: the method's own (`Gossip.init`).
      points: further parameters at which the next step's gradients are taken.
      gradients: the last step's, whose memory the next one reuses.
      turn: gossip steps since the method began, int32 ``[lanes]``.
    """

    method: State
    points: tuple[Params, ...]
    gradients: tuple[Params, ...]
    turn: Int[Array, "lanes"]


class GradientPass(NamedTuple):
    """What one pass of all agents at one point of theirs changes; stacked ``[lanes, ...]``.

    Attributes:
      gradient: at that point; what was there before is overwritten.
      statistics: the variables that are no parameters: they move at the agents' own point only.
      loss: sum of the training losses, of the agents' own points.
      diverged: see `AgentState`.
    """

    gradient: Params
    statistics: Variables
    loss: Float[Array, "*lanes"]
    diverged: Int[Array, "*lanes"]


class At(NamedTuple):
    """Where a pass takes its gradients.

    Attributes:
      params: the agents' own, or other ones; stacked ``[lanes, ...]``.
      own: which of the two, bool ``[lanes]``.
    """

    params: Params
    own: Bool[Array, "*lanes"]


def gradient_update(task: Task, prepare: Prepare, micro: Micro | None = None) -> Update:
    """Takes one agent's gradient at one point.

    The carry is its `GradientPass`; the operands are `At`, the agent's key, step and `epoch_order`;
    the resident arrays, and how a batch is gone through, as in
    `dimat_jax.training.local.train_update`.
    """

    def update(carry: GradientPass, operands: Any, resident: Any) -> GradientPass:
        at, key, step, order = operands
        variables = {**carry.statistics, "params": at.params}
        gradient, loss, changed = batch_gradient(
            task, prepare, variables, key, step, order, resident, micro
        )
        # Every pass runs the agent's own batch; only the one at its own parameters is training.
        statistics = {
            name: jax.tree.map(lambda new, old: jnp.where(at.own, new, old), changed[name], before)
            for name, before in carry.statistics.items()
        }
        counted = count_loss(carry.loss, carry.diverged, jnp.where(at.own, loss, 0), step)
        return GradientPass(gradient, statistics, *counted)

    return update


def round_of(rounds: Exchange, turn: int | Int[Array, ""]) -> Exchange:
    """The exchange of one gossip step, of all rounds stacked ``[period, ...]``."""
    return jax.tree.map(lambda x: x[turn % len(rounds.matrix)], rounds)


def gossip_start(
    gossip: Gossip, agents: AgentState, rounds: Exchange
) -> tuple[AgentState, GossipState]:
    """The agents, and the method's state, before its first step.

    Args:
      gossip: the method.
      agents: all of them, stacked.
      rounds: every round of the graph, stacked ``[period, ...]``.
    """
    first = round_of(rounds, 0)
    params, method = gossip.init(agents.variables["params"], first)
    points = gossip.points(params, method, first)
    gradients = jax.tree.map(jnp.zeros_like, (params, *points))
    state = GossipState(method, points, gradients, jnp.zeros_like(agents.step))
    return agents._replace(variables={**agents.variables, "params": params}), state


def gossip_resume(
    gossip: Gossip, agents: AgentState, state: GossipState, rounds: Exchange
) -> GossipState:
    """The method's state, where something else has changed the agents' parameters."""
    now = round_of(rounds, state.turn[0])
    return state._replace(points=gossip.points(agents.variables["params"], state.method, now))


def gossip_exchange(gossip: Gossip, schedule: optax.Schedule) -> Callable[..., Any]:
    """All agents' gradients are there: the method's update, and the points of the next step.

    Returns:
      ``(agents, state, rounds) -> (agents, state)``, all but the rounds stacked.
    """

    def update(
        agents: AgentState, state: GossipState, rounds: Exchange
    ) -> tuple[AgentState, GossipState]:
        now, then = round_of(rounds, state.turn[0]), round_of(rounds, state.turn[0] + 1)
        rate = agents.rate_scale[0] * schedule(agents.step[0])
        params, method = gossip.update(
            agents.variables["params"], state.gradients, state.method, now, rate
        )
        points = gossip.points(params, method, then)
        variables = {**agents.variables, "params": params}
        agents = agents._replace(variables=variables, step=agents.step + 1)
        return agents, GossipState(method, points, state.gradients, state.turn + 1)

    return update


def flag_of_all(execution: Execution, value: bool) -> Any:
    """The same for every agent, bool ``[lanes]``: on their devices, unless it is compiled in."""
    if execution.described or not execution.sequential:
        return np.full(execution.all_lanes, value)
    return place(execution, np.full(execution.agents, value))


def gossip_training(
    execution: Execution,
    gossip: Gossip,
    schedule: optax.Schedule,
    gradient_step: Step,
    stopwatch: Stopwatch,
) -> Callable[..., tuple[AgentState, GossipState]]:
    """Builds the steps of a gossip method.

    Args:
      execution: the form.
      gossip: the method.
      schedule: step → learning rate.
      gradient_step: the lifted `gradient_update`, which all methods share.
      stopwatch: gets the compile time.

    Returns:
      ``run(agents, state, order, resident, rounds, steps) -> (agents, state)``. The memory of
      agents and state is reused.
    """
    own, other = (flag_of_all(execution, own) for own in (True, False))
    update = exchange(execution, gossip_exchange(gossip, schedule), stopwatch, donate=2)

    def step(carry: Any, order: Any, resident: Any, rounds: Exchange) -> Any:
        agents, state = carry
        params = agents.variables["params"]
        statistics = {name: x for name, x in agents.variables.items() if name != "params"}

        def one(moving, item):
            at, memory = item
            operands = at, agents.key, agents.step, order
            after = gradient_step(GradientPass(memory, *moving), operands, resident)
            return tuple(after[1:]), after.gradient

        # One pass of all agents for each point. Gradients are written over those of the last step.
        points = [At(params, own), *(At(point, other) for point in state.points)]
        items = list(zip(points, state.gradients, strict=True))
        moving = statistics, agents.loss, agents.diverged
        (statistics, loss, diverged), gradients = for_each(execution, one, moving, items)
        agents = agents._replace(
            variables={**statistics, "params": params}, loss=loss, diverged=diverged
        )
        return update(agents, state._replace(gradients=tuple(gradients)), rounds)

    steps = loop(execution, step, stopwatch)

    def run(agents, state, order, resident, rounds, times):
        return steps((agents, state), order, resident, rounds, times)

    return run


# Agents whose numbers are no longer finite --------------------------------------------------------


def guarded(gossip: Gossip) -> Gossip:
    """The same method, in which nobody takes anything from agents who are no longer finite.

    Their share goes to whoever would have taken it; they themselves get the average of their
    neighbours, and begin again with all that the method remembers of them at 0.
    """

    def update(params, gradients, state, exchange, rate):
        fine = finite_lanes((params, gradients, state))
        clean, gradients, state = zeroed(fine, (params, gradients, state))
        new, state = gossip.update(clean, gradients, state, left_out(exchange, fine), rate)
        # Whom nobody can help stays as it is.
        helped = fine | (jnp.where(fine, exchange.matrix, 0).sum(1) > 0)
        return select(helped, new, params), state

    def points(params, state, exchange):
        fine = finite_lanes((params, state))
        params, state = zeroed(fine, (params, state))
        return gossip.points(params, state, left_out(exchange, fine))

    return gossip._replace(update=update, points=points)


def finite_lanes(tree: Any) -> Bool[Array, "lanes"]:
    """Of which lanes all numbers of a pytree are finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    found = [jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]
    return functools.reduce(jnp.logical_and, found)


def select(mask: Bool[Array, "lanes"], these: Any, others: Any) -> Any:
    """For each lane these arrays where the mask holds, else the others; leaf by leaf."""

    def one(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(one, these, others)


def zeroed(fine: Bool[Array, "lanes"], tree: Any) -> Any:
    """A pytree, but for 0 in all lanes that are not fine."""
    return select(fine, tree, jax.tree.map(jnp.zeros_like, tree))


def left_out(exchange: Exchange, fine: Bool[Array, "lanes"]) -> Exchange:
    """An exchange without agents who are not fine; its rows sum to what they did.

    What they would have had is the receiver's own, or, of one that is not fine itself, its
    neighbours' in proportion. One that has none keeps what it has, zeros.
    """
    matrix = exchange.matrix
    lanes = jnp.arange(len(fine))
    kept = jnp.where(fine, matrix, 0)
    missing = (matrix - kept).sum(1)
    # Slot 0 is the agent itself, also of a masked lane.
    kept = kept.at[lanes, exchange.sources[:, 0]].add(jnp.where(fine, missing, 0))
    rest = kept.sum(1)
    scale = jnp.where(fine | (rest <= 0), 1, matrix.sum(1) / jnp.where(rest > 0, rest, 1))
    usable = fine[exchange.sources]
    return Exchange(
        matrix=kept * scale[:, None],
        sources=jnp.where(usable, exchange.sources, exchange.sources[:, :1]),
        slot_mask=jnp.where(usable, exchange.slot_mask, 0),
        reverse_slots=jnp.where(usable & fine[:, None], exchange.reverse_slots, 0),
    )
