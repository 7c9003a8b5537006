"""Time-varying graphs: schedules of sparse rounds, some of which average exactly in a period."""

import numpy as np

from dimat_jax.registry import check_number
from dimat_jax.topology.base import Topology, check_agents, log2_exactly
from dimat_jax.topology.base_graph import base_graph
from dimat_jax.topology.deterministic import circulant

MAX_PERIOD = 100_000
"""Rounds of random meetings, each of which has a matrix of its own."""


def one_peer_exponential(n: int) -> Topology:
    """In round t each agent averages with the one 2^t places ahead: log₂ n rounds give exactly J.

    Ying et al. 2021 (arXiv 2110.13363), eq. 7. Directed, weights 1/2; n a power of two, without
    which the averages are never exact (`base_k` is exact for any n).
    """
    rounds = log2_exactly("one_peer_exponential", n)
    return Topology(
        "one_peer_exponential", np.stack([circulant(n, [0, 2**t]) for t in range(rounds)])
    )


def base_k(n: int, k: int = 1) -> Topology:
    """The Base-(k+1) graph: at most ``k`` neighbours a round, and a period averages exactly.

    Takezawa et al. 2023 (arXiv 2305.11420), algorithm 3: at most ``2 log_{k+1}(n) + 2`` rounds for
    any n. See `dimat_jax.topology.base_graph`.

    Args:
      n: number of agents.
      k: neighbours of an agent in a round, at most.
    """
    check_agents("base_k", n, 2)
    check_number("k", k, whole=True)
    if k < 1:
        raise ValueError(f"k is a number of neighbours, at least 1, not {k}.")
    return Topology("base_k", np.stack(base_graph(n, k)))


def random_peers(n: int, p: float = 0.2, seed: int = 0, period: int = 100) -> Topology:
    """In each round some agents meet one random peer each, and the others nobody.

    Sparse gossip as in arXiv 2507.06542: each agent takes part with probability ``p``; those who do
    are paired at random, at weights 1/2, and an odd one is left out.

    Args:
      n: number of agents.
      p: above 0, at most 1.
      seed: of who meets whom.
      period: rounds after which the meetings repeat.

    Raises:
      ValueError: for an option outside its range.
    """
    check_agents("random_peers", n, 2)
    check_number("p", p)
    check_number("seed", seed, least=0, whole=True)
    check_number("period", period, least=1, most=MAX_PERIOD, whole=True)
    if not 0 < p <= 1:
        raise ValueError(f"p is a probability above 0 and at most 1, not {p}.")
    rng = np.random.default_rng(seed)
    matrices = np.tile(np.eye(n), (period, 1, 1))
    for matrix in matrices:
        active = rng.permutation(np.flatnonzero(rng.random(n) < p))
        for i, j in zip(active[0::2], active[1::2], strict=False):
            matrix[[i, i, j, j], [i, j, i, j]] = 1 / 2
    return Topology("random_peers", matrices)


def stretched(topology: Topology, every: int) -> Topology:
    """The same rounds, each after ``every - 1`` in which nobody exchanges anything."""
    if every == 1:
        return topology
    nothing = np.tile(np.eye(topology.agents), (every - 1, 1, 1))
    rounds = [np.concatenate([nothing, matrix[None]]) for matrix in topology.mixing_matrices]
    return Topology(f"{topology.name} every {every} steps", np.concatenate(rounds))
