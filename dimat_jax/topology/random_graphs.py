"""Graphs drawn at random, by a seed."""

import math
from collections.abc import Callable

import networkx as nx
import numpy as np

from dimat_jax.registry import check_number
from dimat_jax.topology.base import Topology, check_agents, from_graph

DRAWS = 100  # random graphs tried before we say that none is connected


def erdos_renyi(n: int, p: float = 0.3, seed: int = 0) -> Topology:
    """Every edge with probability ``p``, redrawn until connected; Metropolis–Hastings weights.

    Args:
      n: number of agents.
      p: probability of an edge, above 0 and at most 1.
      seed: the same seed gives the same graph.

    Raises:
      ValueError: if none of 100 draws is connected.
    """
    check_agents("erdos_renyi", n, 2)
    check_number("p", p)
    if not 0 < p <= 1:
        raise ValueError(f"p is the probability of an edge: above 0 and at most 1, not {p}.")
    hint = f"Graphs of {n} agents are mostly connected from p = {math.log(n) / n:.2g}; p is {p}."
    return draw_connected("erdos_renyi", lambda rng: nx.gnp_random_graph(n, p, rng), seed, hint)


def random_regular(n: int, degree: int | None = None, seed: int = 0) -> Topology:
    """A random graph whose agents all have ``degree`` neighbours, redrawn until connected.

    Args:
      n: number of agents.
      degree: neighbours of each, below n; ``n * degree`` must be even. Weights 1/(1 + degree).
        None: 4, or fewer where there are no more others.
      seed: the same seed gives the same graph.

    Raises:
      ValueError: if there is no such graph, or none of 100 draws is connected.
    """
    check_agents("random_regular", n, 2)
    degree = min(4, n - 1) if degree is None else degree
    check_number("degree", degree, whole=True)
    if not 1 <= degree < n:
        raise ValueError(f"degree must be between 1 and {n - 1} for {n} agents, not {degree}.")
    if n * degree % 2:
        raise ValueError(f"n * degree must be even: there are no {n} agents of degree {degree}.")
    hint = f"degree is {degree}, with {n} agents."
    return draw_connected(
        "random_regular", lambda rng: nx.random_regular_graph(degree, n, rng), seed, hint
    )


def draw_connected(
    name: str, draw: Callable[[np.random.Generator], nx.Graph], seed: int, hint: str
) -> Topology:
    """The first connected graph of a seeded sequence of random ones."""
    check_number("seed", seed, least=0, whole=True)
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        graph = draw(rng)
        if nx.is_connected(graph):
            ordered = nx.Graph()
            ordered.add_nodes_from(sorted(graph))
            ordered.add_edges_from(graph.edges)
            return from_graph(ordered, name)
    raise ValueError(f"No graph of {DRAWS} draws of {name!r} is connected. {hint}")
