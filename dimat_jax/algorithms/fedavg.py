"""Reference points that are not decentralized: a server that averages, or has all data."""

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.algorithms.base import Algorithm, Gossip, Merge, Message
from dimat_jax.algorithms.gossip import step_then_mix
from dimat_jax.algorithms.merging import everyone, neighbor_average
from dimat_jax.algorithms.momentum import with_momentum
from dimat_jax.topology import Topology

DRAWS = 20
"""Rounds after which the choice of clients repeats."""


def server(topology: Topology, fraction: float = 1.0) -> Topology:
    """Everyone gets the mean of some agents, drawn for each round, or of all.

    Args:
      topology: whose agents they are; its edges do not matter.
      fraction: share of the agents in the mean, rounded, at least one.

    Raises:
      ValueError: unless the fraction is above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction of clients is above 0 and at most 1, not {fraction}.")
    agents = topology.agents
    clients = max(1, round(fraction * agents))
    rng = np.random.default_rng(0)
    matrices = np.zeros((DRAWS if clients < agents else 1, agents, agents))
    for matrix in matrices:
        matrix[:, rng.permutation(agents)[:clients]] = 1 / clients
    return Topology("server", matrices)


def federated_averaging(fraction: float = 1.0) -> Merge:
    """x_i ← Σ_j n_j x_j / Σ_j n_j over the clients j of the round, n_j: the examples of agent j.

    FedAvg (McMahan et al. 2017, arXiv 1602.05629, algorithm 1): all start a round from the server's
    model. What those train who are not clients of the round is lost.

    Args:
      fraction: share of the agents that are clients in a round (C there).
    """
    return neighbor_average(
        by_examples=True,
        graph=lambda topology: server(topology, fraction),
        message=Message(parameters=1, statistics=1, to_server=True),
    )


def centralized_sgd() -> Gossip:
    """SGD with all data in one place: x ← x − α (1/n) Σ_i g_i(x), from agent 0's parameters.

    In each step its batch is everyone's batches together, drawn from all agents' data. It is
    `step_then_mix` on the server's graph from equal starts.
    """

    def init(params, exchange):
        return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), params), ()

    return step_then_mix(server, Message(to_server=True), init)


local_sgd = Algorithm(
    label="Local SGD",
    update="x_i ← (1/n) Σ_j x_j, without a server: everyone sends to everyone",
    source="arXiv 1805.09767, at the period of DIMAT's merges",
    merge=neighbor_average(graph=everyone),
    rate_of="wa",
)
fedavg = Algorithm(
    label="FedAvg",
    update="x_i ← Σ_j n_j x_j / Σ_j n_j over the round's clients; at the end once more: the "
    "server's model",
    source="arXiv 1602.05629, algorithm 1",
    merge=federated_averaging(),
    final=federated_averaging(),
    rate_of="wa",
)
centralized = Algorithm(
    label="Centralized",
    update="x ← x − α (1/n) Σ_i g_i(x), from agent 0's parameters; "
    "each g_i of a random part of everyone's data",
    source="all data in one place",
    gossip=centralized_sgd(),
    pooled=True,
)
centralized_nesterov = centralized._replace(
    label="Centralized-N",
    update="m ← β m + (1/n) Σ_i g_i(x); x ← x − α ((1/n) Σ_i g_i(x) + β m)",
    source="all data in one place, with Nesterov's momentum",
    gossip=with_momentum(centralized_sgd()),
)
