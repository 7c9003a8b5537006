"""RelaySGD: sums of all agents' models are relayed along a spanning tree (Vogels et al. 2021)."""

import itertools
from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jaxtyping import Array, Bool, Float

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Gossip,
    Message,
    Params,
    descend,
)
from dimat_jax.algorithms.momentum import with_momentum
from dimat_jax.topology import Topology, from_graph


class RelayState(NamedTuple):
    """What agents hold.

    Attributes:
      messages: the last message of the neighbour in each slot, ``[agents, slots, ...]``; 0 where
        there is none.
      counts: how many models each message is the sum of, ``[agents, slots]``.
    """

    messages: Params
    counts: Float[Array, "agents slots"]


def spanning_tree(topology: Topology) -> Topology:
    """A tree of the graph's edges, with Metropolis–Hastings weights.

    It grows breadth first from agent 0 to at most two more neighbours an agent, or three, four ...
    if two do not reach everyone: short, without an agent that relays for very many.

    Raises:
      ValueError: unless edges that go both ways, in some round, connect all agents.
    """
    joined = (topology.mixing_matrices != 0).any(0)
    joined &= joined.T
    graph = nx.from_numpy_array(joined)
    cut_off = sorted(set(graph) - nx.node_connected_component(graph, 0))
    if cut_off:
        raise ValueError(
            f"RelaySGD relays along edges that go both ways; by those of {topology.name!r} agents "
            f"{cut_off} are not connected with agent 0."
        )
    # With one child each only a path grows; short trees take more children, and relay for more.
    trees = (grow(joined, most) for most in itertools.count(2))
    tree = next(tree for tree in trees if len(tree) == topology.agents)
    return from_graph(tree, f"spanning tree of {topology.name}")


def grow(joined: Bool[np.ndarray, "agents agents"], most: int) -> nx.Graph:
    """The tree that grows breadth first from agent 0, with at most ``most`` children an agent."""
    reached = np.arange(len(joined)) == 0
    edges, queue = [], deque([0])
    while queue:
        parent = queue.popleft()
        children = np.flatnonzero(joined[parent] & ~reached)[:most].tolist()
        reached[children] = True
        edges += [(parent, child) for child in children]
        queue.extend(children)
    tree = nx.Graph()
    tree.add_nodes_from(np.flatnonzero(reached).tolist())
    tree.add_edges_from(edges)
    return tree


def relay() -> Gossip:
    """x_i½ = x_i − α g_i; x_i ← (x_i½ + Σ_j m_ji) / (1 + Σ_j c_ji), over the tree's neighbours j.

    Messages m_ij = x_i½ + Σ_{k ≠ j} m_ki' and their counts c_ij = 1 + Σ_{k ≠ j} c_ki' relay what
    came in the step before, ' (Vogels et al. 2021, arXiv 2110.04175, algorithm 1): after as many
    steps as the tree is wide, each agent holds the mean of all, those far away a few steps late.
    """

    def init(params, exchange):
        shape = exchange.slot_mask.shape
        messages = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[1:]), x.dtype), params)
        return params, RelayState(messages, jnp.zeros_like(exchange.slot_mask))

    def update(params, gradients, state, exchange, rate):
        (g,) = gradients
        stepped = descend(params, rate, g)
        ones = jnp.ones_like(state.counts[:, 0])
        counts = relayed(ones, state.counts, exchange)
        messages = jax.tree.map(lambda x, m: relayed(x, m, exchange), stepped, state.messages)
        models = ones + counts.sum(1)

        def average(x, m):
            return jax.vmap(jnp.divide)(x + m.sum(1), models.astype(x.dtype))

        return jax.tree.map(average, stepped, messages), RelayState(messages, counts)

    return Gossip(update, spanning_tree, Message(parameters=1, scalars=1), init)


def relayed(
    own: Float[Array, "agents *shape"],
    received: Float[Array, "agents slots *shape"],
    exchange: Exchange,
) -> Float[Array, "agents slots *shape"]:
    """What arrives: of each neighbour its own and all that it received, but from the receiver.

    Args:
      own: of each agent.
      received: by each agent, in the step before; 0 in slots without a neighbour.
      exchange: who hears from whom.
    """
    # On the chain 0 - 1 - 2, what arrives at 0 from 1 is x_1 + m_21, all of 1's but what 0 sent it.
    total = own + received.sum(1)
    arriving = total[exchange.sources] - received[exchange.sources, exchange.reverse_slots]
    return jax.vmap(jax.vmap(jnp.multiply))(exchange.slot_mask.astype(own.dtype), arriving)


relay_sgd = Algorithm(
    label="RelaySGD",
    update="x_i½ = x_i − α g_i; m_ij = x_i½ + Σ_{k≠j} m_ki'; c_ij = 1 + Σ_{k≠j} c_ki'; "
    "x_i ← (x_i½ + Σ_j m_ji) / (1 + Σ_j c_ji)",
    source="arXiv 2110.04175, algorithm 1",
    gossip=relay(),
)
relay_sgd_nesterov = relay_sgd._replace(
    label="RelaySGD-N",
    update="m_i ← β m_i + g_i; then as `relay_sgd` with g_i + β m_i in the place of g_i",
    source="arXiv 2110.04175, appendix",
    gossip=with_momentum(relay()),
    rate_of="dsgd_nesterov",
)
