"""Gradient tracking: every agent follows an estimate of the mean gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms.base import (
    Algorithm,
    Gossip,
    Params,
    Sends,
    descend,
    doubly_stochastic,
    mix,
    own_params,
)


class TrackingState(NamedTuple):
    """Parameters x, trackers y and the step before's gradients g', stacked ``[agents, ...]``."""

    params: Params
    tracker: Params
    gradient: Params


def tracking() -> Algorithm:
    """y_i ← Σ_j π_ij y_j + g_i − g_i'; x_i ← Σ_j π_ij x_j − α y_i, with y_i = g_i at first.

    Di Lorenzo & Scutari 2016 (arXiv 1602.00591); Nedić, Olshevsky & Shi 2017 (arXiv 1607.03218),
    algorithm 1 (DIGing). The mean of all y is the mean of all g in every step.
    """

    def init(params, exchange):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return TrackingState(params, zeros, zeros)

    def update(gradients, state, exchange, rate):
        (g,) = gradients
        tracker = jax.tree.map(
            lambda y, g, old: y + g - old, mix(exchange.matrix, state.tracker), g, state.gradient
        )
        params = descend(mix(exchange.matrix, state.params), rate, tracker)
        return TrackingState(params, tracker, g)

    return Algorithm(
        doubly_stochastic, Sends(parameters=2), gossip=Gossip(init, own_params, update)
    )
