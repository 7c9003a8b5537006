"""Decentralized SGD: a gradient step and an average with the neighbours, in one order or the other.

The order matters: where all average with all and start equal, a method that steps and then mixes is
SGD on everyone's data, one that mixes and then steps is not.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Gossip,
    Graph,
    Message,
    Params,
    descend,
    doubly_stochastic,
)
from dimat_jax.execution.exchange import mix


class MomentumState(NamedTuple):
    """Velocities, stacked ``[agents, ...]``."""

    velocity: Params


Init = Callable[[Params, Exchange], tuple[Params, MomentumState]]


def at_rest(params: Params, exchange: Exchange) -> tuple[Params, MomentumState]:
    """At the given parameters, without velocity."""
    return params, MomentumState(jax.tree.map(jnp.zeros_like, params))


def mix_then_step(momentum: float = 0.0) -> Gossip:
    """v_i ← β v_i − α g_i(x_i); x_i ← Σ_j π_ij x_j + v_i.

    CDSGD where β is 0 (= D-PSGD; Jiang et al. 2017, equation 5; Lian et al. 2017, algorithm 1),
    else CDMSGD (Jiang et al. 2017, algorithm 2).

    Args:
      momentum: β.
    """

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        slowed = jax.tree.map(lambda v: momentum * v, state.velocity)
        velocity = descend(slowed, rate, g)
        mixed = mix(exchange.matrix, params)
        return jax.tree.map(jnp.add, mixed, velocity), MomentumState(velocity)

    return Gossip(update, doubly_stochastic, init=at_rest, momentum=momentum)


def step_then_mix(
    momentum: float = 0.0,
    nesterov: bool = False,
    graph: Graph = doubly_stochastic,
    message: Message = Message(),
    init: Init = at_rest,
) -> Gossip:
    """m_i ← β m_i + g_i(x_i); x_i ← Σ_j π_ij (x_j − α d_j), with d_i = m_i.

    DSGD where β is 0, else DSGDm, or DSGDm-N by Nesterov's d_i = g_i + β m_i (Lin et al. 2021,
    arXiv 2102.04761, algorithm 1 without its quasi-global buffer). Momenta are not exchanged.

    Args:
      momentum: β.
      nesterov: whether Nesterov's.
      graph: on which agents mix.
      message: what they send.
      init: where they start.
    """

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        velocity = jax.tree.map(lambda m, g: momentum * m + g, state.velocity, g)
        direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda m, g: g + momentum * m, velocity, g)
        params = mix(exchange.matrix, descend(params, rate, direction))
        return params, MomentumState(velocity)

    return Gossip(update, graph, message, init, momentum=momentum)


cdsgd = Algorithm(
    label="CDSGD",
    update="x_i ← Σ_j π_ij x_j − α g_i",
    source="arXiv 1706.07880, eq. 5 (D-PSGD: arXiv 1705.09056)",
    gossip=mix_then_step(),
)
cdmsgd = Algorithm(
    label="CDMSGD",
    update="v_i ← β v_i − α g_i; x_i ← Σ_j π_ij x_j + v_i",
    source="arXiv 1706.07880, algorithm 2",
    gossip=mix_then_step(momentum=0.9),
)
dsgd = Algorithm(
    label="DSGD",
    update="x_i ← Σ_j π_ij (x_j − α g_j)",
    source="arXiv 2102.04761",
    gossip=step_then_mix(),
    rate_of="sgp",
)
dsgd_nesterov = Algorithm(
    label="DSGD-N",
    update="m_i ← β m_i + g_i; x_i ← Σ_j π_ij (x_j − α (g_j + β m_j))",
    source="arXiv 2102.04761 (DSGDm-N)",
    gossip=step_then_mix(momentum=0.9, nesterov=True),
)
