"""Communication graphs: mixing matrices, neighbours, spectral gap."""

from dimat_jax.topology.graphs import TOPOLOGIES as TOPOLOGIES
from dimat_jax.topology.graphs import Topology as Topology
from dimat_jax.topology.graphs import base_k as base_k
from dimat_jax.topology.graphs import bipartite as bipartite
from dimat_jax.topology.graphs import check_connected as check_connected
from dimat_jax.topology.graphs import check_doubly_stochastic as check_doubly_stochastic
from dimat_jax.topology.graphs import digraph as digraph
from dimat_jax.topology.graphs import disconnected as disconnected
from dimat_jax.topology.graphs import erdos_renyi as erdos_renyi
from dimat_jax.topology.graphs import exponential as exponential
from dimat_jax.topology.graphs import from_graph as from_graph
from dimat_jax.topology.graphs import from_matrix as from_matrix
from dimat_jax.topology.graphs import fully_connected as fully_connected
from dimat_jax.topology.graphs import hypercube as hypercube
from dimat_jax.topology.graphs import make as make
from dimat_jax.topology.graphs import neighbor_slots as neighbor_slots
from dimat_jax.topology.graphs import one_peer_exponential as one_peer_exponential
from dimat_jax.topology.graphs import random_regular as random_regular
from dimat_jax.topology.graphs import ring as ring
from dimat_jax.topology.graphs import squarest_torus as squarest_torus
from dimat_jax.topology.graphs import star as star
from dimat_jax.topology.graphs import torus as torus
