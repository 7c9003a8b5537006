"""Time-varying graphs: a schedule of sparse rounds which together average exactly."""

import numpy as np

from dimat_jax.topology.base import Topology, check_agents, log2_exactly
from dimat_jax.topology.base_graph import base_graph
from dimat_jax.topology.deterministic import circulant


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
    if k < 1:
        raise ValueError(f"k is a number of neighbours, at least 1, not {k}.")
    return Topology("base_k", np.stack(base_graph(n, k)))
