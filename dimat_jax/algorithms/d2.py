"""D²: decentralized training over decentralized data (Tang et al. 2018), or exact diffusion."""

from typing import NamedTuple

import jax
import numpy as np

from dimat_jax.algorithms.base import (
    Algorithm,
    Gossip,
    Params,
    descend,
    doubly_stochastic,
    mix,
)
from dimat_jax.algorithms.momentum import with_momentum
from dimat_jax.topology import Topology

MIN_EIGENVALUE = -1 / 3


class D2State(NamedTuple):
    """Stacked ``[agents, ...]``.

    Attributes:
      stepped: ψ = x' − α' g', where the step before led from its parameters; x at first.
    """

    stepped: Params


def symmetric_graph(topology: Topology, lazy: bool) -> Topology:
    """The given graph, or its lazy form (I + Π)/2 where an eigenvalue is −1/3 or less.

    Raises:
      ValueError: unless it is static, symmetric and doubly stochastic; where it would have to be
        made lazy, but ``lazy`` is false.
    """
    doubly_stochastic(topology)
    if topology.period > 1:
        raise ValueError(
            f"D² takes a static graph; {topology.name!r} varies with period {topology.period}."
        )
    matrix = topology.mixing_matrix()
    i, j = np.unravel_index(np.abs(matrix - matrix.T).argmax(), matrix.shape)
    if abs(matrix[i, j] - matrix[j, i]) > 1e-6:
        raise ValueError(
            f"D² takes a symmetric mixing matrix; in that of {topology.name!r} entry ({i}, {j}) is "
            f"{matrix[i, j]:.6g}, entry ({j}, {i}) is {matrix[j, i]:.6g}."
        )
    least = float(np.linalg.eigvalsh(matrix)[0])
    if least > MIN_EIGENVALUE + 1e-9:
        return topology
    if not lazy:
        raise ValueError(
            f"D² takes a mixing matrix whose eigenvalues are above -1/3; the least of "
            f"{topology.name!r} is {least:.6g}."
        )
    # Eigenvalues λ become (1 + λ) / 2: from [-1, 1] to [0, 1].
    halfway = (np.eye(topology.agents) + topology.mixing_matrices) / 2
    return Topology(f"lazy {topology.name}", halfway)


def exact_diffusion(lazy: bool = True) -> Gossip:
    """x_i ← Σ_j π_ij (2 x_j − x_j' − α g_j + α' g_j'), where ' is the step before.

    The first step is x_i ← Σ_j π_ij (x_j − α g_j). Tang et al. 2018 (arXiv 1803.07068), algorithm
    1, for a constant α. As in exact diffusion (Yuan et al. 2019, arXiv 1702.05122), each gradient
    keeps the learning rate of its own step: the agents' mean takes SGD's steps though α changes.

    Args:
      lazy: whether a matrix with an eigenvalue of −1/3 or less, on which D² diverges, is replaced
        by (I + Π)/2; otherwise it is refused.
    """

    def init(params, exchange):
        return params, D2State(params)

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        # 2 x − x' − α g + α' g' = (x − α g) + x − (x' − α' g')
        stepped = descend(params, rate, g)
        corrected = jax.tree.map(lambda new, x, old: new + x - old, stepped, params, state.stepped)
        return mix(exchange, corrected), D2State(stepped)

    return Gossip(update, lambda topology: symmetric_graph(topology, lazy), init=init)


d2 = Algorithm(
    label="D²",
    update="x_i ← Σ_j π_ij (2 x_j − x_j' − α g_j + α' g_j'); at first Σ_j π_ij (x_j − α g_j)",
    source="arXiv 1803.07068, algorithm 1",
    gossip=exact_diffusion(),
)
d2_nesterov = d2._replace(
    label="D²-N",
    update="m_i ← β m_i + g_i; then as `d2` with g_i + β m_i in the place of g_i",
    source="arXiv 1803.07068, with momentum as in arXiv 2110.04175",
    gossip=with_momentum(exact_diffusion()),
    rate_of="dsgd_nesterov",
)
