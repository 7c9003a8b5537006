"""Momentum of each agent's own gradients, for any method that exchanges something in every step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import Gossip, Params, State


class MomentumState(NamedTuple):
    """Velocities m, and what the method itself remembers; stacked ``[agents, ...]``."""

    velocity: Params
    method: State = ()


def with_momentum(gossip: Gossip, momentum: float = 0.9, nesterov: bool = True) -> Gossip:
    """m_i ← β m_i + g_i, and the method with d_i in the place of g_i.

    d_i is g_i + β m_i (Nesterov's) or m_i. Momenta stay with their agents. So DSGD becomes DSGDm-N
    or DSGDm (Lin et al. 2021, arXiv 2102.04761, algorithm 1 without its quasi-global buffer), SGP
    what its paper trains with (Assran et al. 2019, arXiv 1811.10792, algorithm 3), RelaySGD its
    momentum form (Vogels et al. 2021, arXiv 2110.04175, appendix).

    Args:
      gossip: the method; gradients at further points than the agents' own stay as they are.
      momentum: β.
      nesterov: whether Nesterov's, else heavy-ball.
    """

    def init(params, exchange):
        params, method = gossip.init(params, exchange)
        return params, MomentumState(jax.tree.map(jnp.zeros_like, params), method)

    def update(params, gradients, state, exchange, rate):
        g, *further = gradients
        velocity = jax.tree.map(lambda m, g: momentum * m + g, state.velocity, g)
        direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda m, g: g + momentum * m, velocity, g)
        params, method = gossip.update(params, (direction, *further), state.method, exchange, rate)
        return params, MomentumState(velocity, method)

    def points(params, state, exchange):
        return gossip.points(params, state.method, exchange)

    return gossip._replace(update=update, init=init, points=points, momentum=momentum)
