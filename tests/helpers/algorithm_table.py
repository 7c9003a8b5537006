"""One row for each method: what is known of it independently of the package.

That is its formula in NumPy (`algorithm_references`), what it sends, the graphs on which it is
tested and what it converges to. All else, such as a method's parts, comes from the registry.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import networkx as nx
import numpy as np

import helpers.algorithm_references as references
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Merge, Message
from dimat_jax.topology import Topology

GOSSIPING = {name: method.gossip for name, method in METHODS.items() if method.gossip}
"""What methods do within a training step."""
MERGES: dict[str, Merge] = {
    name: part
    for name, method in METHODS.items()
    for part in [method.merge or method.final]
    if part and not method.initial and not name.startswith("sparse_")
}
"""What methods do between two stretches of training, or after the last; but for those of several
merges that differ, which `test_combinations` has."""


def out_degrees(edges: nx.DiGraph) -> np.ndarray:
    """The column-stochastic matrix with which each agent shares itself out equally."""
    shares = nx.to_numpy_array(edges).T + np.eye(len(edges))
    return shares / shares.sum(0)


def directed(*extra: list[tuple[int, int]]) -> Topology:
    """A directed cycle of 5 agents and more edges, others in each round; only columns sum to 1."""
    cycle = [(i, (i + 1) % 5) for i in range(5)]
    graphs = [nx.DiGraph([*cycle, *edges]) for edges in extra]
    matrices = [out_degrees(nx.relabel_nodes(graph, int)) for graph in graphs]
    return topology.from_matrix(matrices, name="directed")


GRAPHS = {
    "ring": topology.ring(5),
    "even ring": topology.ring(4),
    "star": topology.star(5),
    "chain": topology.from_graph(nx.path_graph(5), "chain"),
    "bipartite": topology.bipartite(4),
    "fully connected": topology.fully_connected(4),
    "one-peer": topology.one_peer_exponential(4),
    "directed": directed([(0, 2), (0, 3), (1, 4)]),
    "time-varying directed": directed([(0, 2), (0, 3)], [(1, 4), (2, 0), (3, 1)]),
}
UNDIRECTED = ("ring", "star", "fully connected")
ANY = (*UNDIRECTED, "one-peer")


def lazy_where_needed(matrix: np.ndarray) -> np.ndarray:
    """(I + Π)/2 where an eigenvalue is at or below −1/3: Tang et al. 2018, assumption 1."""
    lowest = np.linalg.eigvalsh(matrix).min()
    return matrix if lowest > -1 / 3 + 1e-9 else (np.eye(len(matrix)) + matrix) / 2


class Row(NamedTuple):
    """A gossip method.

    Attributes:
      reference: in `algorithm_references`.
      graphs: on which its first steps are compared.
      matrix: what becomes of each mixing matrix.
      steps_then_mixes: whether the gradient step is mixed too.
      rate_factor: the rate that the method comes to at its fixed point, over the learning rate;
        None where it stalls at no point that a linear system gives.
      exact: whether it reaches the optimum at a constant rate, whatever the agents' losses.
      message: what a message to a neighbour holds.
      centralized: what it is on a fully connected graph from equal starts, as a reference of one
        agent: every agent where it steps, then mixes; else their mean, where all losses share one
        Hessian.
    """

    reference: Callable[..., references.Models]
    graphs: tuple[str, ...] = ANY
    matrix: Callable[[np.ndarray], np.ndarray] = lambda matrix: matrix
    steps_then_mixes: bool = False
    rate_factor: float | None = None
    exact: bool = False
    message: Message = Message(parameters=1)
    centralized: Callable[..., references.Models] | None = None


MOMENTUM = 0.9
GOSSIP = {
    "cdsgd": Row(references.mix_then_step, rate_factor=1, centralized=references.step_then_mix),
    "cdmsgd": Row(
        functools.partial(references.mix_then_step, momentum=MOMENTUM),
        rate_factor=1 / (1 - MOMENTUM),
        centralized=functools.partial(references.mix_then_step, momentum=MOMENTUM),
    ),
    "dsgd": Row(
        references.step_then_mix,
        steps_then_mixes=True,
        rate_factor=1,
        centralized=references.step_then_mix,
    ),
    "dsgd_nesterov": Row(
        references.momentum_then_mix,
        steps_then_mixes=True,
        rate_factor=1 / (1 - MOMENTUM),
        centralized=references.momentum_then_mix,
    ),
    "qg_dsgdm_n": Row(
        references.quasi_global,
        steps_then_mixes=True,
        rate_factor=1 + MOMENTUM,
        centralized=references.quasi_global,
    ),
    "sgp": Row(
        references.push_sum,
        graphs=(*ANY, "directed", "time-varying directed"),
        message=Message(parameters=1, scalars=1),
        steps_then_mixes=True,
        rate_factor=1,
        centralized=references.step_then_mix,
    ),
    "cga": Row(references.cross_gradient, graphs=UNDIRECTED, message=Message(messages=2)),
    "d2": Row(
        references.d2,
        graphs=(*UNDIRECTED, "even ring", "bipartite"),
        matrix=lazy_where_needed,
        steps_then_mixes=True,
        exact=True,
        centralized=references.step_then_mix,
    ),
    "gradient_tracking": Row(
        references.gradient_tracking,
        exact=True,
        message=Message(parameters=2),
        centralized=references.step_then_mix,
    ),
    "relay_sgd": Row(
        references.relay_sum,
        graphs=("star", "chain"),
        exact=True,
        message=Message(parameters=1, scalars=1),
    ),
    "centralized": Row(
        references.centralized, exact=True, message=Message(parameters=1, to_server=True)
    ),
}
GOSSIP["dsgd_momentum"] = GOSSIP["dsgd_nesterov"]._replace(
    reference=functools.partial(references.momentum_then_mix, nesterov=False),
    centralized=functools.partial(references.momentum_then_mix, nesterov=False),
)
for _name in ("sgp", "d2", "gradient_tracking", "relay_sgd", "centralized"):
    _row = GOSSIP[_name]
    GOSSIP[f"{_name}_nesterov"] = _row._replace(
        reference=functools.partial(references.with_momentum, _row.reference),
        rate_factor=_row.rate_factor and 1 / (1 - MOMENTUM),
        centralized=_row.centralized and references.momentum_then_mix,
    )


class MergeRow(NamedTuple):
    """A merging method.

    Attributes:
      align: by what networks are aligned; None: they are averaged as they are.
      frame: in whose order an agent's neighbours are merged: its "own", that of a "reference"
        network or a "universe" of all.
      matrix: what becomes of the mixing matrix.
      recomputes: whether it recomputes normalisation statistics.
      repairs: whether it sets units' moments to the average of their parents'.
      message: what a message holds.
    """

    align: str | None = None
    frame: str = "own"
    matrix: Callable[[np.ndarray], np.ndarray] = lambda matrix: matrix
    recomputes: bool = True
    repairs: bool = False
    message: Message = Message(parameters=1, statistics=1)


def everyone(matrix: np.ndarray) -> np.ndarray:
    return np.full(matrix.shape, 1 / len(matrix))


MERGING = {
    "dimat": MergeRow("activations"),
    "dimat_repair": MergeRow("activations", repairs=True),
    "final_dimat": MergeRow("activations", frame="reference", matrix=everyone),
    "wm": MergeRow("weights"),
    "universe": MergeRow(
        "universe", frame="universe", message=Message(parameters=1, statistics=1, to_everyone=True)
    ),
    "wa": MergeRow(),
    "wa_published": MergeRow(recomputes=False),
    "wa_repair": MergeRow(repairs=True),
    "final_wa": MergeRow(matrix=everyone),
    "local_sgd": MergeRow(matrix=everyone),
    "fedavg": MergeRow(
        matrix=everyone, message=Message(parameters=1, statistics=1, to_server=True)
    ),
}


KINDS = """local_only dimat wm universe dimat_repair fedavg sparse_final_dimat dsgd_nesterov sgp
cga d2 gradient_tracking qg_dsgdm_n relay_sgd centralized""".split()
"""Methods of which no two are one code with other arguments: what is checked of whole runs, which
compile every method anew, is checked of these."""
