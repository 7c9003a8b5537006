"""What a topology is: mixing matrices, neighbours, spectral gap; its checks; own ones.

Agent i takes ``π_ij`` of what agent j holds: ``x_i ← Σ_j π_ij x_j``. Row i of a mixing matrix is
what agent i receives, column j where agent j's model goes. A time-varying graph has one matrix for
each round of its period.
"""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float, Int

from dimat_jax.registry import check_number, expect, shown

Matrix = Float[np.ndarray, "agents agents"]
Matrices = Float[np.ndarray, "period agents agents"]


@dataclass(frozen=True, eq=False)
class Topology:
    """Who averages with whom, and with which weights.

    Attributes:
      name: for messages and tables.
      mixing_matrices: float64 ``[period, agents, agents]``, no weight negative; period 1 when the
        graph is static.

    Raises:
      ValueError: for no such array, or a weight that is negative or not finite.
    """

    name: str
    mixing_matrices: Matrices

    def __post_init__(self) -> None:
        expect("The name of a topology", self.name, str, "a string")
        expect("mixing_matrices", self.mixing_matrices, np.ndarray, "a NumPy array")
        shape = self.mixing_matrices.shape
        if len(shape) != 3 or 0 in shape or shape[1] != shape[2]:
            raise ValueError(f"mixing_matrices are [period, agents, agents], not {list(shape)}.")
        if not np.issubdtype(self.mixing_matrices.dtype, np.floating):
            raise ValueError(f"mixing_matrices are of floats, not {self.mixing_matrices.dtype}.")
        check_weights(self.name, self.mixing_matrices)

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


def check_weights(name: str, matrices: Matrices) -> None:
    """Raises a `ValueError` that names the first weight which is negative or not finite."""
    # NaN is not >= 0.
    wrong = np.argwhere(~(np.isfinite(matrices) & (matrices >= 0)))
    if len(wrong):
        round, i, j = wrong[0]
        where = f" in round {round}" if len(matrices) > 1 else ""
        weight = matrices[round, i, j]
        problem = "below 0" if np.isfinite(weight) else "which is not a finite number"
        raise ValueError(
            f"The mixing matrix of {name!r}{where}: entry ({i}, {j}) is {weight:.6g}, {problem}."
        )


def check_doubly_stochastic(topology: Topology, tolerance: float = 1e-6) -> None:
    """Raises a `ValueError` unless every row and column sums to 1."""
    for round, matrix in enumerate(topology.mixing_matrices):
        where = f" in round {round}" if topology.period > 1 else ""
        prefix = f"The mixing matrix of {topology.name!r} is not doubly stochastic{where}:"
        for line, sums in (("row", matrix.sum(1)), ("column", matrix.sum(0))):
            worst = int(np.abs(sums - 1).argmax())
            if abs(sums[worst] - 1) > tolerance:
                raise ValueError(
                    f"{prefix} {line} {worst} sums to {sums[worst]:.6g}, "
                    f"{sums[worst] - 1:+.3g} away from 1."
                )


def check_connected(topology: Topology) -> None:
    """Raises a `ValueError` unless models travel from everyone to everyone within some periods."""
    # An edge i -> j: agent i receives from j. Both ways, over all rounds of a period.
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
    # A ring of 4, round 0: sources [[0, 1, 3], [1, 0, 2], [2, 1, 3], [3, 0, 2]], weights all 1/3.
    # Were agent 3 cut off from 0: its row [3, 2, 3], whose last slot is unused, of weight 0.
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

    Nothing is asked of the weights but that they are finite and not negative: methods check what
    they need by `check_doubly_stochastic` and `check_connected`.

    Raises:
      ValueError: for any other shape, or a weight that is negative or not finite.
    """
    try:
        if np.iscomplexobj(given := np.asarray(array)):
            raise TypeError("They are complex.")
        matrices = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"A mixing matrix is of real numbers, not {shown(array)}.") from error
    shape = matrices.shape
    matrices = matrices[None] if matrices.ndim == 2 else matrices
    if matrices.ndim != 3 or 0 in matrices.shape or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(
            f"A mixing matrix is [agents, agents] or [period, agents, agents], not {list(shape)}."
        )
    return Topology(name, matrices)


def from_graph(graph: nx.Graph, name: str = "graph") -> Topology:
    """Metropolis–Hastings weights on an undirected graph, agents in the order of its nodes.

    ``π_ij = 1 / (1 + max(degree_i, degree_j))`` on edges, the rest of each row on the diagonal
    (Xiao, Boyd & Kim 2007): symmetric and doubly stochastic on any graph, and uniform,
    ``1 / (1 + degree)``, on a regular one. Loops, parallel edges and edge weights are ignored.

    Raises:
      ValueError: for a directed or an empty graph.
    """
    expect("graph", graph, nx.Graph, "a networkx graph")
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
    # At most degree_i / (1 + degree_i) goes to neighbours, so that the diagonal stays positive.
    matrix = np.where(edges, 1 / (1 + np.maximum(degree[:, None], degree)), 0.0)
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    return Topology(name, matrix[None])


def check_agents(name: str, n: int, minimum: int) -> None:
    """Raises a `ValueError` unless there are enough agents for a graph."""
    check_number(f"The number of agents of {name!r}", n, whole=True)
    if n < minimum:
        raise ValueError(f"The topology {name!r} needs at least {minimum} agents, not {n}.")


def log2_exactly(name: str, n: int) -> int:
    """The binary logarithm of n, a power of two above 1.

    Raises:
      ValueError: if n is anything else.
    """
    check_number(f"The number of agents of {name!r}", n, whole=True)
    if n < 2 or n & (n - 1):
        raise ValueError(f"The topology {name!r} needs 2, 4, 8, 16 ... agents, not {n}.")
    return n.bit_length() - 1
