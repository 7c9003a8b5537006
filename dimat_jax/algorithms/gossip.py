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
    Params,
    descend,
    doubly_stochastic,
    mix,
    own_params,
)


class MomentumState(NamedTuple):
    """Parameters x and velocities, stacked ``[agents, ...]``."""

    params: Params
    velocity: Params


def start(params: Params, exchange: Exchange) -> MomentumState:
    """At the given parameters, without velocity."""
    return MomentumState(params, jax.tree.map(jnp.zeros_like, params))


def mix_then_step(momentum: float = 0.0) -> Algorithm:
    """v_i ← β v_i − α g_i(x_i); x_i ← Σ_j π_ij x_j + v_i.

    CDSGD where β is 0 (= D-PSGD; Jiang et al. 2017, equation 5; Lian et al. 2017, algorithm 1),
    else CDMSGD (Jiang et al. 2017, algorithm 2).

    Args:
      momentum: β.
    """

    def update(gradients, state, exchange, rate):
        (g,) = gradients
        kept = jax.tree.map(lambda v: momentum * v, state.velocity)
        velocity = descend(kept, rate, g)
        mixed = mix(exchange.matrix, state.params)
        return MomentumState(jax.tree.map(jnp.add, mixed, velocity), velocity)

    return Algorithm(doubly_stochastic, gossip=Gossip(start, own_params, update))


def step_then_mix(momentum: float = 0.0, nesterov: bool = False) -> Algorithm:
    """m_i ← β m_i + g_i(x_i); x_i ← Σ_j π_ij (x_j − α d_j), with d_i = m_i.

    DSGD where β is 0, else DSGDm, or DSGDm-N by Nesterov's d_i = g_i + β m_i (Lin et al. 2021,
    arXiv 2102.04761, algorithm 1 without its quasi-global buffer). Momenta are not exchanged.

    Args:
      momentum: β.
      nesterov: whether Nesterov's.
    """
    return Algorithm(doubly_stochastic, gossip=stepping(momentum, nesterov))


def stepping(
    momentum: float, nesterov: bool, init: Callable[[Params, Exchange], MomentumState] = start
) -> Gossip:
    """The gossip of `step_then_mix`, from any start."""

    def update(gradients, state, exchange, rate):
        (g,) = gradients
        velocity = jax.tree.map(lambda m, g: momentum * m + g, state.velocity, g)
        direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda m, g: g + momentum * m, velocity, g)
        params = mix(exchange.matrix, descend(state.params, rate, direction))
        return MomentumState(params, velocity)

    return Gossip(init, own_params, update)
