"""Decentralized SGD: a gradient step and an average with the neighbours, in one order or the other.

The order matters: where all average with all and start equal, a method that steps and then mixes is
SGD on everyone's data, one that mixes and then steps is not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Gossip,
    Graph,
    Message,
    Params,
    State,
    descend,
    doubly_stochastic,
    mix,
)
from dimat_jax.algorithms.momentum import MomentumState, with_momentum

Init = Callable[[Params, Exchange], tuple[Params, State]]


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
        mixed = mix(exchange, params)
        return jax.tree.map(jnp.add, mixed, velocity), MomentumState(velocity)

    return Gossip(update, doubly_stochastic, init=at_rest, momentum=momentum)


def step_then_mix(
    graph: Graph = doubly_stochastic,
    message: Message = Message(),
    init: Init = lambda params, exchange: (params, ()),
) -> Gossip:
    """x_i ← Σ_j π_ij (x_j − α g_j(x_j)): DSGD (Lin et al. 2021, arXiv 2102.04761).

    Args:
      graph: on which agents mix.
      message: what they send.
      init: where they start.
    """

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        return mix(exchange, descend(params, rate, g)), state

    return Gossip(update, graph, message, init)


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
dsgd_momentum = Algorithm(
    label="DSGD-M",
    update="m_i ← β m_i + g_i; x_i ← Σ_j π_ij (x_j − α m_j)",
    source="arXiv 2102.04761 (DSGDm)",
    gossip=with_momentum(step_then_mix(), nesterov=False),
    rate_of="dsgd_nesterov",
)
dsgd_nesterov = Algorithm(
    label="DSGD-N",
    update="m_i ← β m_i + g_i; x_i ← Σ_j π_ij (x_j − α (g_j + β m_j))",
    source="arXiv 2102.04761 (DSGDm-N)",
    gossip=with_momentum(step_then_mix()),
)
