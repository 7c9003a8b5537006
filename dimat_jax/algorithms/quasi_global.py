"""Quasi-global momentum: momentum of what the neighbourhood does (Lin et al. 2021)."""

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import (
    Algorithm,
    Gossip,
    descend,
    doubly_stochastic,
    mix,
)
from dimat_jax.algorithms.gossip import at_rest
from dimat_jax.algorithms.momentum import MomentumState


def quasi_global_momentum(
    momentum: float = 0.9, nesterov: bool = True, decay: float | None = None
) -> Gossip:
    """m_i = β m̂_i + g_i; x_i⁺ = Σ_j π_ij (x_j − α d_j); m̂_i ← μ m̂_i + (1 − μ)(x_i − x_i⁺)/α.

    QG-DSGDm with d_i = m_i, QG-DSGDm-N with d_i = g_i + β m_i (Lin et al. 2021, arXiv 2102.04761,
    algorithm 1). The momentum buffer m̂ follows the difference of parameters that have been mixed,
    and with it the neighbours' gradients; nothing but parameters is sent.

    Args:
      momentum: β.
      nesterov: whether Nesterov's.
      decay: μ; by default β.
    """
    mu = momentum if decay is None else decay

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        direction = jax.tree.map(lambda m, g: momentum * m + g, state.velocity, g)
        if nesterov:
            direction = jax.tree.map(lambda m, g: g + momentum * m, direction, g)
        mixed = mix(exchange, descend(params, rate, direction))
        # Without a step there is no direction of it.
        per_rate = jnp.where(rate > 0, 1 / rate, 0)

        # (x − x⁺)/α is the direction in which the neighbourhood went, gradients of all of it.
        def follow(m, x, new):
            return mu * m + (1 - mu) * per_rate.astype(m.dtype) * (x - new)

        velocity = jax.tree.map(follow, state.velocity, params, mixed)
        return mixed, MomentumState(velocity)

    return Gossip(update, doubly_stochastic, init=at_rest, momentum=momentum)


qg_dsgdm_n = Algorithm(
    label="QG-DSGDm-N",
    update="m_i = β m̂_i + g_i; x_i⁺ = Σ_j π_ij (x_j − α (g_j + β m_j)); "
    "m̂_i ← β m̂_i + (1 − β)(x_i − x_i⁺)/α",
    source="arXiv 2102.04761, algorithm 1",
    gossip=quasi_global_momentum(),
)
