"""Communication graphs: mixing matrices, neighbours, spectral gap.

Agent i takes ``π_ij`` of what agent j holds: ``x_i ← Σ_j π_ij x_j``. Row i of a mixing matrix is
what agent i receives, column j where agent j's model goes. A time-varying graph has one matrix for
each round of its period.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float, Int

from dimat_jax import registry
from dimat_jax.topology.base_graph import base

Matrix = Float[np.ndarray, "agents agents"]
Matrices = Float[np.ndarray, "period agents agents"]

DRAWS = 100  # random graphs tried before we say that none is connected


@dataclass(frozen=True, eq=False)
class Topology:
    """Who averages with whom, and with which weights.

    Attributes:
      name: for messages and tables.
      mixing_matrices: float64 ``[period, agents, agents]``; period 1 when the graph is static.
    """

    name: str
    mixing_matrices: Matrices

    @property
    def agents(self) -> int:
        """The number of agents."""
        return self.mixing_matrices.shape[1]

    @property
    def period(self) -> int:
        """The number of rounds after which the graph repeats."""
        return self.mixing_matrices.shape[0]

    def mixing_matrix(self, round: int = 0) -> Matrix:
        """The matrix of a round, counted from 0 and repeating after a period."""
        return self.mixing_matrices[round % self.period]

    def neighbors(self, i: int, round: int = 0) -> list[int]:
        """The agents whose models agent ``i`` receives in a round, itself left out, in order."""
        return [int(j) for j in np.flatnonzero(self.mixing_matrix(round)[i]) if j != i]

    @cached_property
    def spectral_gap(self) -> float:
        """How much of the disagreement a round removes: ``1 − ‖Π − J‖₂``, ``J = 11ᵀ/n``.

        For a doubly stochastic Π that is one minus its second largest singular value. For a
        period of T rounds it is ``1 − ‖Π_T ⋯ Π_1 − J‖₂^(1/T)``: the same per round, on the
        geometric mean, so that it compares with static graphs (single rounds of a time-varying
        graph need not be connected: their own gap is often 0). 1 where a period averages exactly;
        below 0 only for weights that are not doubly stochastic.
        """
        product = reduce(lambda before, matrix: matrix @ before, self.mixing_matrices)
        left = float(np.linalg.norm(product - 1 / self.agents, 2))
        # What differs from 0 or 1 by rounding only is 0 or 1.
        left = next((exact for exact in (0.0, 1.0) if abs(left - exact) < 1e-12), left)
        return 1 - left ** (1 / self.period)


def check_doubly_stochastic(topology: Topology, tolerance: float = 1e-6) -> None:
    """Raises a `ValueError` unless every row and column is non-negative and sums to 1."""
    for round, matrix in enumerate(topology.mixing_matrices):
        where = f" in round {round}" if topology.period > 1 else ""
        prefix = f"The mixing matrix of {topology.name!r} is not doubly stochastic{where}:"
        if matrix.min() < 0:
            i, j = np.unravel_index(matrix.argmin(), matrix.shape)
            raise ValueError(f"{prefix} entry ({i}, {j}) is {matrix[i, j]:.6g}, below 0.")
        for line, sums in (("row", matrix.sum(1)), ("column", matrix.sum(0))):
            worst = int(np.abs(sums - 1).argmax())
            if abs(sums[worst] - 1) > tolerance:
                raise ValueError(
                    f"{prefix} {line} {worst} sums to {sums[worst]:.6g}, "
                    f"{sums[worst] - 1:+.3g} away from 1."
                )


def check_connected(topology: Topology) -> None:
    """Raises a `ValueError` unless models travel from everyone to everyone within some periods."""
    union = nx.DiGraph((topology.mixing_matrices != 0).any(0))
    mutual = nx.descendants(union, 0) & nx.ancestors(union, 0)
    cut_off = sorted(set(range(1, topology.agents)) - mutual)
    if cut_off:
        raise ValueError(
            f"The graph of {topology.name!r} is not connected: agents {cut_off} do not exchange "
            f"models with agent 0, directly or through others."
        )


def neighbor_slots(
    topology: Topology, round: int = 0
) -> tuple[Int[np.ndarray, "agents slots"], Float[np.ndarray, "agents slots"]]:
    """The mixing matrix of a round as a short list for each agent.

    ``x_i ← Σ_s weights[i, s] x[sources[i, s]]``. The number of slots is the same for every round
    (one more than the largest number of neighbours in a period), so that nothing recompiles.

    Args:
      topology: the graph.
      round: counted from 0.

    Returns:
      ``sources``, int32 ``[agents, slots]``: slot 0 is the agent itself, its neighbours follow in
      order, unused slots hold the agent again. ``weights``, float64 ``[agents, slots]``: 0 in
      unused slots.
    """
    n = topology.agents
    off_diagonal = (topology.mixing_matrices != 0) & ~np.eye(n, dtype=bool)
    slots = 1 + int(off_diagonal.sum(-1).max())
    sources = np.tile(np.arange(n, dtype=np.int32)[:, None], (1, slots))
    for i in range(n):
        neighbors = topology.neighbors(i, round)
        sources[i, 1 : 1 + len(neighbors)] = neighbors
    weights = np.take_along_axis(topology.mixing_matrix(round), sources, 1)
    unused = sources == np.arange(n)[:, None]
    unused[:, 0] = False
    return sources, np.where(unused, 0.0, weights)


def from_matrix(array: Any, name: str = "matrix") -> Topology:
    """A topology of given weights, ``[agents, agents]`` or ``[period, agents, agents]``.

    Nothing is asked of the weights but that they are finite numbers: methods check what they need
    by `check_doubly_stochastic` and `check_connected`.

    Raises:
      ValueError: for any other shape, or a weight that is not finite.
    """
    matrices = np.array(array, np.float64)
    shape = matrices.shape
    matrices = matrices[None] if matrices.ndim == 2 else matrices
    if matrices.ndim != 3 or 0 in matrices.shape or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(
            f"A mixing matrix is [agents, agents] or [period, agents, agents], not {list(shape)}."
        )
    if not np.isfinite(matrices).all():
        _, i, j = np.argwhere(~np.isfinite(matrices))[0]
        raise ValueError(f"Entry ({i}, {j}) of the mixing matrix is not a finite number.")
    return Topology(name, matrices)


def from_graph(graph: nx.Graph, name: str = "graph") -> Topology:
    """Metropolis–Hastings weights on an undirected graph, agents in the order of its nodes.

    ``π_ij = 1 / (1 + max(degree_i, degree_j))`` on edges, the rest of each row on the diagonal
    (Xiao, Boyd & Kim 2007): symmetric and doubly stochastic on any graph, and uniform,
    ``1 / (1 + degree)``, on a regular one. Loops, parallel edges and edge weights are ignored.

    Raises:
      ValueError: for a directed or an empty graph.
    """
    if graph.is_directed():
        raise ValueError("Metropolis-Hastings weights need an undirected graph; use from_matrix.")
    if len(graph) == 0:
        raise ValueError("A topology needs at least 1 agent; the graph has none.")
    index = {node: i for i, node in enumerate(graph)}
    edges = np.zeros((len(graph), len(graph)), bool)
    for a, b in graph.edges():
        edges[index[a], index[b]] = edges[index[b], index[a]] = True
    np.fill_diagonal(edges, False)
    degree = edges.sum(1)
    matrix = np.where(edges, 1 / (1 + np.maximum(degree[:, None], degree)), 0.0)
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    return Topology(name, matrix[None])


def need(name: str, n: int, least: int) -> None:
    """Raises a `ValueError` unless there are enough agents for a graph."""
    if n < least:
        raise ValueError(f"The topology {name!r} needs at least {least} agents, not {n}.")


def ring(n: int) -> Topology:
    """Each agent and its two neighbours, weights 1/3; two agents average, weights 1/2."""
    need("ring", n, 2)
    return from_graph(nx.cycle_graph(n), "ring")


def fully_connected(n: int) -> Topology:
    """Everyone with everyone, weights 1/n; a single agent keeps to itself."""
    need("fully_connected", n, 1)
    return Topology("fully_connected", np.full((1, n, n), 1 / n))


def disconnected(n: int) -> Topology:
    """No one with no one: the identity."""
    need("disconnected", n, 1)
    return Topology("disconnected", np.eye(n)[None])


def bipartite(n: int) -> Topology:
    """Even agents with all odd ones; weights 1/(n/2 + 1), Metropolis–Hastings for an odd n."""
    need("bipartite", n, 2)
    i = np.arange(n)
    graph = nx.from_numpy_array((i[:, None] + i) % 2 == 1)
    return from_graph(graph, "bipartite")


def star(n: int) -> Topology:
    """Agent 0 with all others; Metropolis–Hastings weights 1/n."""
    need("star", n, 2)
    return from_graph(nx.star_graph(n - 1), "star")


def torus(rows: int, cols: int) -> Topology:
    """A grid whose borders are joined, agent ``row * cols + col``; weights 1/5.

    With two rows, or columns, the neighbours above and below are one: weights 1/4.
    """
    if min(rows, cols) < 2:
        raise ValueError(f"A torus needs at least 2 rows and 2 columns, not {rows} x {cols}.")
    return from_graph(nx.grid_2d_graph(rows, cols, periodic=True), "torus")


def squarest_torus(n: int) -> Topology:
    """The torus of n agents whose sides are nearest to each other.

    Raises:
      ValueError: if n is no product of two numbers above 1.
    """
    rows = max((d for d in range(1, math.isqrt(max(n, 1)) + 1) if n % d == 0), default=1)
    if rows < 2:
        raise ValueError(f"A torus needs rows x columns agents, both at least 2, which {n} is not.")
    return torus(rows, n // rows)


def log2_exactly(name: str, n: int) -> int:
    """The binary logarithm of n, a power of two above 1.

    Raises:
      ValueError: if n is anything else.
    """
    if n < 2 or n & (n - 1):
        raise ValueError(f"The topology {name!r} needs 2, 4, 8, 16 ... agents, not {n}.")
    return n.bit_length() - 1


def hypercube(n: int) -> Topology:
    """Agents whose numbers differ in one bit; weights 1/(1 + log₂ n)."""
    return from_graph(nx.hypercube_graph(log2_exactly("hypercube", n)), "hypercube")


def circulant(n: int, hops: Iterable[int]) -> Matrix:
    """Uniform weights on the agents ``i + hop`` of every agent i, modulo n."""
    hops = sorted({hop % n for hop in hops})
    return np.mean([np.roll(np.eye(n), hop, 1) for hop in hops], axis=0)


def exponential(n: int, directed: bool = True) -> Topology:
    """Each agent receives from those 1, 2, 4, 8 … places ahead; uniform weights.

    Ying et al. 2021 (arXiv 2110.13363), eq. 5: 1/(1 + ⌈log₂ n⌉).

    Args:
      n: number of agents.
      directed: whether models travel one way only; otherwise the edges go both ways.
    """
    need("exponential", n, 2)
    hops = [2**t for t in range((n - 1).bit_length())]
    both = [] if directed else [-hop for hop in hops]
    return Topology("exponential", circulant(n, [0, *hops, *both])[None])


def one_peer_exponential(n: int) -> Topology:
    """In round t each agent averages with the one 2^t places ahead: log₂ n rounds give exactly J.

    Ying et al. 2021 (arXiv 2110.13363), eq. 7. Directed, weights 1/2; n a power of two, without
    which the averages are never exact (`base_k` is exact for any n).
    """
    rounds = log2_exactly("one_peer_exponential", n)
    return Topology(
        "one_peer_exponential", np.stack([circulant(n, [0, 2**t]) for t in range(rounds)])
    )


def erdos_renyi(n: int, p: float = 0.3, seed: int = 0) -> Topology:
    """Every edge with probability ``p``, redrawn until connected; Metropolis–Hastings weights.

    Args:
      n: number of agents.
      p: probability of an edge, above 0 and at most 1.
      seed: the same seed gives the same graph.

    Raises:
      ValueError: if none of 100 draws is connected.
    """
    need("erdos_renyi", n, 2)
    if not 0 < p <= 1:
        raise ValueError(f"p is the probability of an edge: above 0 and at most 1, not {p}.")
    hint = f"Graphs of {n} agents are mostly connected from p = {math.log(n) / n:.2g}; p is {p}."
    return draw_connected("erdos_renyi", lambda rng: nx.gnp_random_graph(n, p, rng), seed, hint)


def random_regular(n: int, degree: int = 4, seed: int = 0) -> Topology:
    """A random graph whose agents all have ``degree`` neighbours, redrawn until connected.

    Args:
      n: number of agents.
      degree: neighbours of each, below n; ``n * degree`` must be even. Weights 1/(1 + degree).
      seed: the same seed gives the same graph.

    Raises:
      ValueError: if there is no such graph, or none of 100 draws is connected.
    """
    need("random_regular", n, 2)
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
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        graph = draw(rng)
        if nx.is_connected(graph):
            ordered = nx.Graph()
            ordered.add_nodes_from(sorted(graph))
            ordered.add_edges_from(graph.edges)
            return from_graph(ordered, name)
    raise ValueError(f"No graph of {DRAWS} draws of {name!r} is connected. {hint}")


def digraph(n: int) -> Topology:
    """A directed ring in which each even agent also sends two places ahead.

    Each agent shares out what it holds in equal parts, as it can without knowing who else sends:
    columns sum to 1 and rows do not. Only push-sum averages evenly on it.
    """
    need("digraph", n, 3)
    senders = np.arange(n)
    sends = np.eye(n)
    sends[(senders + 1) % n, senders] = 1
    sends[(senders[::2] + 2) % n, senders[::2]] = 1
    return Topology("digraph", (sends / sends.sum(0))[None])


def base_k(n: int, k: int = 1) -> Topology:
    """The Base-(k+1) graph: at most ``k`` neighbours a round, and a period averages exactly.

    Takezawa et al. 2023 (arXiv 2305.11420), algorithm 3: at most ``2 log_{k+1}(n) + 2`` rounds for
    any n. See `dimat_jax.topology.base_graph`.

    Args:
      n: number of agents.
      k: neighbours of an agent in a round, at most.
    """
    need("base_k", n, 2)
    if k < 1:
        raise ValueError(f"k is a number of neighbours, at least 1, not {k}.")
    return Topology("base_k", np.stack(base(n, k)))


TOPOLOGIES: dict[str, Callable[..., Topology]] = {
    "ring": ring,
    "fully_connected": fully_connected,
    "bipartite": bipartite,
    "disconnected": disconnected,
    "star": star,
    "torus": squarest_torus,
    "exponential": exponential,
    "one_peer_exponential": one_peer_exponential,
    "base_k": base_k,
    "hypercube": hypercube,
    "erdos_renyi": erdos_renyi,
    "random_regular": random_regular,
    "digraph": digraph,
}
"""Name → factory of the number of agents."""


def make(name: str, n: int, **options: Any) -> Topology:
    """Makes a topology by name: ``make("erdos_renyi", 16, p=0.5)``.

    Raises:
      ValueError: for an unknown name (with the nearest one), an option that the factory lacks, or
        a number of agents that it cannot have.
    """
    return registry.make("topology", name, TOPOLOGIES, n, **options)
