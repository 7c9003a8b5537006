"""Gradient tracking: every agent follows an estimate of the mean gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import (
    Algorithm,
    Gossip,
    Message,
    Params,
    descend,
    doubly_stochastic,
    mix,
)
from dimat_jax.algorithms.momentum import with_momentum


class TrackingState(NamedTuple):
    """Trackers y and the step before's gradients g', stacked ``[agents, ...]``."""

    tracker: Params
    gradient: Params


def tracking() -> Gossip:
    """y_i ← Σ_j π_ij y_j + g_i − g_i'; x_i ← Σ_j π_ij x_j − α y_i, with y_i = g_i at first.

    Di Lorenzo & Scutari 2016 (arXiv 1602.00591); Nedić, Olshevsky & Shi 2017 (arXiv 1607.03218),
    algorithm 1 (DIGing). The mean of all y is the mean of all g in every step.
    """

    def init(params, exchange):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, TrackingState(zeros, zeros)

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        tracker = jax.tree.map(
            lambda y, g, old: y + g - old, mix(exchange, state.tracker), g, state.gradient
        )
        params = descend(mix(exchange, params), rate, tracker)
        return params, TrackingState(tracker, g)

    return Gossip(update, doubly_stochastic, Message(parameters=2), init)


gradient_tracking = Algorithm(
    label="GT",
    update="y_i ← Σ_j π_ij y_j + g_i − g_i'; x_i ← Σ_j π_ij x_j − α y_i",
    source="arXiv 1607.03218, algorithm 1",
    gossip=tracking(),
)
gradient_tracking_nesterov = gradient_tracking._replace(
    label="GT-N",
    update="m_i ← β m_i + g_i; then as `gradient_tracking` with g_i + β m_i in the place of g_i",
    source="arXiv 1607.03218, with momentum of each agent's own",
    gossip=with_momentum(tracking()),
    rate_of="dsgd_nesterov",
)
