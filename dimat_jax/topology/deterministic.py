"""Graphs that stay the same over the rounds, each the only one of its name and size."""

import math
from collections.abc import Iterable

import networkx as nx
import numpy as np

from dimat_jax.registry import check_number, expect
from dimat_jax.topology.base import Matrix, Topology, check_agents, from_graph, log2_exactly


def ring(n: int) -> Topology:
    """Each agent and its two neighbours, weights 1/3; two agents average, weights 1/2."""
    check_agents("ring", n, 2)
    return from_graph(nx.cycle_graph(n), "ring")


def fully_connected(n: int) -> Topology:
    """Everyone with everyone, weights 1/n; a single agent keeps to itself."""
    check_agents("fully_connected", n, 1)
    return Topology("fully_connected", np.full((1, n, n), 1 / n))


def disconnected(n: int) -> Topology:
    """No one with no one: the identity."""
    check_agents("disconnected", n, 1)
    return Topology("disconnected", np.eye(n)[None])


def bipartite(n: int) -> Topology:
    """Even agents with all odd ones; weights 1/(n/2 + 1), Metropolis–Hastings for an odd n."""
    check_agents("bipartite", n, 2)
    i = np.arange(n)
    graph = nx.from_numpy_array((i[:, None] + i) % 2 == 1)
    return from_graph(graph, "bipartite")


def star(n: int) -> Topology:
    """Agent 0 with all others; Metropolis–Hastings weights 1/n."""
    check_agents("star", n, 2)
    return from_graph(nx.star_graph(n - 1), "star")


def torus(rows: int, cols: int) -> Topology:
    """A grid whose borders are joined, agent ``row * cols + col``; weights 1/5.

    With two rows, or columns, the neighbours above and below are one: weights 1/4.
    """
    for name, value in (("rows", rows), ("cols", cols)):
        check_number(name, value, whole=True)
    if min(rows, cols) < 2:
        raise ValueError(f"A torus needs at least 2 rows and 2 columns, not {rows} x {cols}.")
    return from_graph(nx.grid_2d_graph(rows, cols, periodic=True), "torus")


def squarest_torus(n: int) -> Topology:
    """The torus of n agents whose sides are nearest to each other.

    Raises:
      ValueError: if n is no product of two numbers above 1.
    """
    check_number("The number of agents of 'torus'", n, whole=True)
    rows = max((d for d in range(1, math.isqrt(max(n, 1)) + 1) if n % d == 0), default=1)
    if rows < 2:
        raise ValueError(f"A torus needs rows x columns agents, both at least 2, which {n} is not.")
    return torus(rows, n // rows)


def hypercube(n: int) -> Topology:
    """Agents whose numbers differ in one bit; weights 1/(1 + log₂ n)."""
    return from_graph(nx.hypercube_graph(log2_exactly("hypercube", n)), "hypercube")


def circulant(n: int, hops: Iterable[int]) -> Matrix:
    """Uniform weights on the agents ``i + hop`` of every agent i, modulo n."""
    hops, agents = sorted({hop % n for hop in hops}), np.arange(n)
    matrix = np.zeros((n, n))
    for hop in hops:
        matrix[agents, (agents + hop) % n] = 1 / len(hops)
    return matrix


def exponential(n: int, directed: bool | int = True) -> Topology:
    """Each agent receives from those 1, 2, 4, 8 … places ahead; uniform weights.

    Ying et al. 2021 (arXiv 2110.13363), eq. 5: 1/(1 + ⌈log₂ n⌉).

    Args:
      n: number of agents.
      directed: whether models travel one way only; otherwise the edges go both ways. As an option
        of a run it is 1 or 0.

    Raises:
      ValueError: for another number of agents than 2 or more, or another value of ``directed``.
    """
    check_agents("exponential", n, 2)
    expect("directed", directed, bool | int, "True or False")
    check_number("directed", int(directed), least=0, most=1, whole=True)
    hops = [2**t for t in range((n - 1).bit_length())]
    both = [] if directed else [-hop for hop in hops]
    return Topology("exponential", circulant(n, [0, *hops, *both])[None])


def digraph(n: int) -> Topology:
    """A directed ring in which each even agent also sends two places ahead.

    Each agent shares out what it holds in equal parts, as it can without knowing who else sends:
    columns sum to 1 and rows do not. Only push-sum averages evenly on it.
    """
    check_agents("digraph", n, 3)
    # Column j of ``sends`` is to whom agent j sends: to itself, the next, and the one after it.
    senders = np.arange(n)
    sends = np.eye(n)
    sends[(senders + 1) % n, senders] = 1
    sends[(senders[::2] + 2) % n, senders[::2]] = 1
    return Topology("digraph", (sends / sends.sum(0))[None])
