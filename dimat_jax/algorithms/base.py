"""What a method is: pure functions, chosen by name, that all see the same data and weights.

A method acts between two stretches of local training (`Algorithm.merge`), or within every step
(`Algorithm.gossip`), or both. Everything here is about all agents at once: pytrees whose leaves
have a leading ``agents`` axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimat_jax.merging.merger import Batches, Merger
from dimat_jax.topology import Topology, check_doubly_stochastic, neighbor_slots
from dimat_jax.types import Key, Permutations, Variables

Params = Any
"""Trainable parameters of all agents, stacked ``[agents, ...]``."""


class MergeRound(NamedTuple):
    """What one merge round works with.

    Attributes:
      sources: int32 ``[agents, slots]``: slot 0 is the agent itself, the others its neighbours;
        agents with fewer neighbours are filled up with themselves at weight 0.
      weights: ``[agents, slots]``, π_ij of those neighbours.
      matching: images on which units are compared.
      statistics: images from which normalisation statistics are recomputed; None where they are
        averaged with the rest.
      first_frame: whether all merge in agent 0's frame, rather than each in its own.
      key: drives all that is random in the round.
    """

    sources: Int[np.ndarray, "agents slots"]
    weights: Float[np.ndarray, "agents slots"]
    matching: Batches
    statistics: Batches | None
    first_frame: bool
    key: Key


class Merged(NamedTuple):
    """What a merge round gives.

    Attributes:
      variables: stacked ``[agents, ...]``.
      permutations: those that were used, a dict a slot, each array ``[agents, units]``; in one
        frame for all (agent 0's, or a universe) one dict, that of every agent into it. Empty where
        nothing was aligned.
    """

    variables: Variables
    permutations: list[Permutations]


Align = Callable[[Merger, Variables, Sequence[Variables], MergeRound], list[Permutations]]
"""``(merger, target, sources, round) -> permutations`` that bring each source into the frame of
``target``, for every agent at once; an empty list leaves them as they are."""

Frame = Callable[[Merger, Variables, MergeRound], list[Permutations]]
"""``(merger, variables, round) -> permutations``: one dict that brings all agents into one frame,
in which they are then averaged; or none, which leaves them as they are."""

Merge = Callable[[Merger, Variables, MergeRound], Merged]
"""``(merger, variables, round) -> merged``: what happens between two stretches of training."""


class Exchange(NamedTuple):
    """Who hears from whom in one gossip step, as data: a graph may change without recompiling.

    Attributes:
      matrix: π_ij, the share of agent j's that agent i takes.
      sources: slot 0 is the agent itself, the others its neighbours j with π_ij ≠ 0; agents with
        fewer neighbours are filled up with themselves.
      present: whether a slot holds a neighbour (slot 0 does not count as one).
      returns: the slot in which agent ``sources[i, s]`` has agent i; 0 if it does not hear from i.
    """

    matrix: Float[Array, "agents agents"]
    sources: Int[Array, "agents slots"]
    present: Float[Array, "agents slots"]
    returns: Int[Array, "agents slots"]


class Gossip(NamedTuple):
    """A method that exchanges something in every training step.

    In each step every agent draws a batch, takes the gradient of its loss on it at each of its
    points, and all states are updated at once.

    Attributes:
      init: ``(params, exchange) -> state``.
      points: ``(state, exchange) -> points``: stacked parameters at which each agent's gradients
        are taken next, always as many. The first are the agent's own model: the one that is
        evaluated, and whose running statistics the batch updates.
      update: ``(gradients, state, exchange, rate) -> state``, with a gradient for each point and
        the learning rate of this step.
    """

    init: Callable[[Params, Exchange], Any]
    points: Callable[[Any, Exchange], tuple[Params, ...]]
    update: Callable[[tuple[Params, ...], Any, Exchange, Float[Array, ""]], Any]


class Sends(NamedTuple):
    """What one message holds, and to whom it goes: each agent that hears from its sender.

    Attributes:
      parameters: copies of the trainable parameters, or of something of their size.
      statistics: copies of the running statistics.
      scalars: single numbers.
      messages: how many such messages go to each of them, one after the other.
      to_server: whether it goes to a server, once, and comes back once.
      to_everyone: whether it goes to all other agents, whatever the graph.
    """

    parameters: int = 1
    statistics: int = 0
    scalars: int = 0
    messages: int = 1
    to_server: bool = False
    to_everyone: bool = False


class Algorithm(NamedTuple):
    """A method as pure functions.

    Attributes:
      graph: ``(topology) -> topology`` on which the method works, mostly the given one; raises a
        `ValueError` for one that it cannot use.
      sends: what an agent's message holds, in each merge and in each gossip step.
      merge: what happens between two stretches of training; None: nothing.
      gossip: what happens within a training step; None: each agent takes its optimizer's step.
      at_end: whether it merges once, when all training has ended, rather than before each round.
      pooled: whether all data are in one place, and each agent trains on a random part of them.
    """

    graph: Callable[[Topology], Topology]
    sends: Sends = Sends()
    merge: Merge | None = None
    gossip: Gossip | None = None
    at_end: bool = False
    pooled: bool = False


def doubly_stochastic(topology: Topology) -> Topology:
    """The given graph.

    Raises:
      ValueError: unless every row and column of its mixing matrices sums to 1.
    """
    check_doubly_stochastic(topology)
    return topology


def exchanges(topology: Topology) -> Exchange:
    """Every round of a graph as one `Exchange`, whose arrays have a leading axis ``period``."""
    rounds = [exchange_of(topology, round) for round in range(topology.period)]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *rounds)


def exchange_of(topology: Topology, round: int = 0) -> Exchange:
    """One round of a graph, counted from 0."""
    sources, _ = neighbor_slots(topology, round)
    agents = np.arange(len(sources))[:, None]
    # Whether slot t of the agent in slot s holds agent i: [agents, slots, slots].
    mutual = (sources[sources] == agents[:, :, None]) & (sources != agents)[:, :, None]
    return Exchange(
        matrix=jnp.asarray(topology.mixing_matrix(round), jnp.result_type(float)),
        sources=jnp.asarray(sources),
        present=jnp.asarray(sources != agents, jnp.result_type(float)),
        returns=jnp.asarray(mutual.argmax(-1).astype(np.int32)),
    )


def mix(matrix: Float[Array, "agents agents"], tree: Params) -> Params:
    """Σ_j π_ij x_j for every agent i, leaf by leaf.

    Args:
      matrix: π.
      tree: stacked ``[agents, ...]``.
    """

    def average(x: Array) -> Array:
        return jnp.tensordot(matrix.astype(x.dtype), x, axes=1, precision="highest")

    return jax.tree.map(average, tree)


def descend(params: Params, rate: Float[Array, ""], direction: Params) -> Params:
    """A step of length α against a direction, x − α d, in the dtype of each leaf x."""
    return jax.tree.map(lambda x, d: x - rate.astype(x.dtype) * d, params, direction)


def own_params(state: Any, exchange: Exchange) -> tuple[Params, ...]:
    """The one point of methods whose agents take gradients at their own ``state.params`` only."""
    return (state.params,)
