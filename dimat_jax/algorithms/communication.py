"""What agents send, in messages and bytes.

An *exchange* is one merge, or one gossip step: what a method does with one round of its graph.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from dimat_jax.algorithms.base import Algorithm, Gossip, Merge, Message
from dimat_jax.merging.batches import Batches
from dimat_jax.topology import Topology, Tree
from dimat_jax.types import Variables

SCALAR_BYTES = 4


class Traffic(NamedTuple):
    """What goes over the wire in some exchanges.

    Attributes:
      exchanges: how many there were.
      messages: that each agent sent, int64 ``[agents]``.
      bytes: that each agent sent, int64 ``[agents]``.
      total: bytes that all agents sent, and a server where there is one.
    """

    exchanges: int
    messages: Int[np.ndarray, " agents"]
    bytes: Int[np.ndarray, " agents"]
    total: int


def variables_bytes(variables: Any) -> int:
    """Bytes of one network's variables, running statistics included.

    Args:
      variables: arrays or `jax.ShapeDtypeStruct`s, without an ``agents`` axis.
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(variables))


def message_bytes(message: Message, variables: Variables) -> int:
    """Bytes of one message.

    Args:
      message: what it holds.
      variables: one agent's, as in `variables_bytes`.
    """
    parameters = variables_bytes(variables["params"])
    statistics = variables_bytes(variables) - parameters
    content = message.parameters * parameters + message.statistics * statistics
    return content + message.scalars * SCALAR_BYTES


def messages(message: Message, topology: Topology, exchange: int) -> Int[np.ndarray, " agents"]:
    """How many messages each agent sends in one exchange.

    As many as `Message` says to each other agent that hears from it, or to all others; one to the
    server, by those whose model is in its mean.

    Args:
      message: what is sent, and to whom.
      topology: the graph on which the method works (`Gossip.graph`, `Merge.graph`); π_ij ≠ 0 where
        i hears from j.
      exchange: counted from 0; a time-varying graph repeats after its period.
    """
    # Row i of π is what agent i receives: column j says who hears from j.
    hears = topology.mixing_matrix(exchange % topology.period) != 0
    if message.to_server:
        return hears.any(0).astype(np.int64)
    to = np.ones_like(hears) if message.to_everyone else hears
    receivers = (to & ~np.eye(topology.agents, dtype=bool)).sum(0, dtype=np.int64)
    return message.messages * receivers


def traffic(
    message: Message, topology: Topology, first: int, number: int, variables: Variables
) -> Traffic:
    """What is sent in several exchanges in a row.

    Args:
      message: what is sent, and to whom.
      topology: the graph on which the method works.
      first: the first exchange, counted from 0.
      number: of exchanges.
      variables: one agent's.

    Returns:
      Exact counts. A server's answers, one to every agent, stand in ``total`` alone.
    """
    size, period = message_bytes(message, variables), topology.period
    # 10**6 steps of a static graph are one matrix, counted once: how often each round comes up.
    turns = np.bincount((first + np.arange(number)) % period, minlength=period)
    each = [messages(message, topology, turn) for turn in range(period)]
    count = (turns[:, None] * np.array(each)).sum(0)
    answers = number * topology.agents if message.to_server else 0
    return Traffic(number, count, size * count, size * (int(count.sum()) + answers))


def sent(
    message: Message, topology: Topology, first: int, number: int, variables: Variables
) -> float:
    """Bytes that an agent sends in several exchanges, in the mean over agents; see `traffic`."""
    return float(traffic(message, topology, first, number, variables).bytes.mean())


def sent_on_demand(found: Batches | Tree, agents: int, variables: Variables) -> float:
    """Bytes that an agent sends, in the mean over agents, of what a merge asked for.

    Examples that all agents have in common go whole, labels and all, from the agent that holds one
    to all others; those of each agent's own stay where they are. Along a tree one network goes over
    each edge, with its statistics.

    Args:
      found: the examples, or the tree.
      agents: how many there are.
      variables: one agent's.
    """
    if isinstance(found, Tree):
        edges = int((found.parents != np.arange(agents)).sum())
        return edges / agents * variables_bytes(variables)
    held = sum(x.nbytes for x in jax.tree.leaves(found.examples))
    return held * (agents - 1) / agents if found.shared else 0.0


def rounds_per_epoch(
    algorithm: Algorithm, topology: Topology, steps: int, epochs_per_round: int = 2
) -> float:
    """Networks that an agent sends in an epoch: the "communication rounds per epoch" of the paper.

    Parameters, or something of their size, count as one; statistics and single numbers do not. In
    DIMAT (arXiv 2404.08079) merging methods come to (n − 1) / 2 on a fully connected graph, CDSGD
    and SGP to 100 (n − 1) and CGA to twice that. The 100 are the steps of an epoch, which holds for
    5 agents only: 50,000 images / 5 agents / batches of 100; 10 agents take 50 steps.

    Args:
      algorithm: the method.
      topology: the graph that it is given.
      steps: of an agent in an epoch.
      epochs_per_round: of local training between two merges. One final merge counts for nothing.
    """

    def networks(part: Gossip | Merge) -> float:
        graph = part.graph(topology)
        each = [messages(part.message, graph, turn) for turn in range(graph.period)]
        return float(np.mean(each)) * part.message.parameters

    in_steps = networks(algorithm.gossip) * steps if algorithm.gossip else 0.0
    in_merges = networks(algorithm.merge) / epochs_per_round if algorithm.merge else 0.0
    return in_steps + in_merges
