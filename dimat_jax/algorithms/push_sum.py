"""Stochastic gradient push: decentralized SGD on directed graphs (Assran et al. 2019).

Where agents decide only to whom they send how much, the mixing matrix's columns sum to 1 and its
rows do not: averaging counts some agents for more than others. Push-sum sends a weight along, which
is counted alike, and divides by it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dimat_jax.algorithms.base import (
    Algorithm,
    Gossip,
    Message,
    Params,
    descend,
    mix,
)
from dimat_jax.algorithms.momentum import with_momentum
from dimat_jax.topology import Topology, check_connected


class PushSumState(NamedTuple):
    """The push-sum weight w, ``[agents]``: agents hold x = w z, and z is their model."""

    weight: Float[Array, "agents"]


def column_stochastic(topology: Topology) -> Topology:
    """The given graph.

    Raises:
      ValueError: unless every column of its matrices sums to 1 and every row has a positive entry
        (else that agent's push-sum weight vanishes), and it is connected.
    """
    for round, matrix in enumerate(topology.mixing_matrices):
        prefix = f"Push-sum cannot use the mixing matrix of {topology.name!r} in round {round}:"
        sums = matrix.sum(0)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-6:
            raise ValueError(f"{prefix} column {worst} sums to {sums[worst]:.6g}, not to 1.")
        if not matrix.any(1).all():
            raise ValueError(f"{prefix} row {int(matrix.any(1).argmin())} is all 0.")
    check_connected(topology)
    return topology


def stochastic_gradient_push() -> Gossip:
    """x_i ← Σ_j p_ij (x_j − α g_j(z_j)); w_i ← Σ_j p_ij w_j; z_i = x_i / w_i.

    SGP (Assran et al. 2019, arXiv 1811.10792, algorithm 1): P column-stochastic, directed,
    time-varying. z is each agent's model; w is 1 at first, and stays so where rows sum to 1, too.
    """

    def init(params, exchange):
        return params, PushSumState(jnp.ones_like(exchange.matrix[:, 0]))

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        # What is mixed is x = w z; gradients are taken at z, and steps are made from x.
        held = descend(by_agent(jnp.multiply, params, state.weight), rate, g)
        weight = mix(exchange, state.weight)
        params = by_agent(jnp.divide, mix(exchange, held), weight)
        return params, PushSumState(weight)

    return Gossip(update, column_stochastic, Message(parameters=1, scalars=1), init)


def by_agent(
    operation: Callable[[Array, Array], Array], tree: Params, weight: Float[Array, "agents"]
) -> Params:
    """Each agent's parameters times, or divided by, its weight."""
    return jax.tree.map(lambda x: jax.vmap(operation)(x, weight.astype(x.dtype)), tree)


sgp = Algorithm(
    label="SGP",
    update="x_i ← Σ_j p_ij (x_j − α g_j(z_j)); w_i ← Σ_j p_ij w_j; z_i = x_i / w_i",
    source="arXiv 1811.10792, algorithm 1",
    gossip=stochastic_gradient_push(),
)
sgp_nesterov = sgp._replace(
    label="SGP-N",
    update="m_i ← β m_i + g_i; then as `sgp` with g_i + β m_i in the place of g_i",
    source="arXiv 1811.10792, algorithm 3",
    gossip=with_momentum(stochastic_gradient_push()),
    rate_of="dsgd_nesterov",
)
