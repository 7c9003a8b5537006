"""Communication graphs: who averages with whom, and with which weights.

`base` has the `Topology` and its checks; the graphs lie by idea in `deterministic`,
`random_graphs` and `schedules` (time-varying). Knows of graphs only, neither of models nor of
methods: may import `registry`. Adding one: a file with a function of the number of agents, and a
line in `dimat_jax.registry`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dimat_jax import registry
from dimat_jax.topology.base import Topology as Topology
from dimat_jax.topology.base import check_connected as check_connected
from dimat_jax.topology.base import check_doubly_stochastic as check_doubly_stochastic
from dimat_jax.topology.base import from_graph as from_graph
from dimat_jax.topology.base import from_matrix as from_matrix
from dimat_jax.topology.base import neighbor_slots as neighbor_slots
from dimat_jax.topology.deterministic import bipartite as bipartite
from dimat_jax.topology.deterministic import digraph as digraph
from dimat_jax.topology.deterministic import disconnected as disconnected
from dimat_jax.topology.deterministic import exponential as exponential
from dimat_jax.topology.deterministic import fully_connected as fully_connected
from dimat_jax.topology.deterministic import hypercube as hypercube
from dimat_jax.topology.deterministic import ring as ring
from dimat_jax.topology.deterministic import squarest_torus as squarest_torus
from dimat_jax.topology.deterministic import star as star
from dimat_jax.topology.deterministic import torus as torus
from dimat_jax.topology.random_graphs import erdos_renyi as erdos_renyi
from dimat_jax.topology.random_graphs import random_regular as random_regular
from dimat_jax.topology.schedules import base_k as base_k
from dimat_jax.topology.schedules import epidemic as epidemic
from dimat_jax.topology.schedules import one_peer_exponential as one_peer_exponential
from dimat_jax.topology.schedules import random_matching as random_matching
from dimat_jax.topology.schedules import random_peers as random_peers
from dimat_jax.topology.schedules import schedule as schedule
from dimat_jax.topology.schedules import stretched as stretched
from dimat_jax.topology.trees import Tree as Tree
from dimat_jax.topology.trees import flood as flood

TOPOLOGIES: Mapping[str, Callable[..., Topology]] = registry.TOPOLOGIES
"""Name → factory of the number of agents."""


def make(name: str, n: int, **options: Any) -> Topology:
    """Makes a topology by name: ``make("erdos_renyi", 16, p=0.5)``.

    Raises:
      ValueError: for an unknown name (with the nearest one), an option that the factory lacks, or
        a number of agents that it cannot have.
    """
    return registry.make("topology", name, TOPOLOGIES, n, **options)
