"""What a method is: one record of pure functions, that all see the same data and weights.

A method acts within every training step (`Gossip`), between two stretches of local training
(`Merge`), once before the first round or when training has ended (each a `Merge`, too), or in
several of these ways. Each part has a graph, a message and a state of its own. What a method does
not name it leaves to the agents, who train alone by the run's optimizer.

Everything here is about all agents at once: pytrees whose leaves have a leading ``agents`` axis.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimat_jax.execution.exchange import Route, find_routes, follow, over, take
from dimat_jax.execution.exchange import mix as mix_all
from dimat_jax.execution.placement import Execution, pad
from dimat_jax.merging.average import add_neighbors, narrow
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import SLOTS_AT_ONCE, Merger
from dimat_jax.symmetries import Symmetries
from dimat_jax.topology import Topology, Tree, check_doubly_stochastic, neighbor_slots
from dimat_jax.types import Batch, Key, Permutations, Task, Variables

Params = Any
"""Trainable parameters of all agents, stacked ``[agents, ...]``."""

State = Any
"""What a part of a method remembers: any pytree of arrays ``[agents, ...]``."""

Graph = Callable[[Topology], Topology]
"""``(topology) -> topology`` on which a part of a method works, mostly the given one; raises a
`ValueError` for one that it cannot use."""


class Message(NamedTuple):
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


# Within a training step ---------------------------------------------------------------------------


class Exchange(NamedTuple):
    """Who hears from whom in one gossip step, as data: a graph may change without recompiling.

    Attributes:
      matrix: π_ij, the share of agent j's that agent i takes.
      sources: slot 0 is the agent itself, the others its neighbours j with π_ij ≠ 0; agents with
        fewer neighbours are filled up with themselves.
      slot_mask: whether a slot holds a neighbour (slot 0 does not count as one).
      reverse_slots: the slot in which agent ``sources[i, s]`` has agent i; 0 if it does not hear
        from i.
      weights: π_ij of the agents in these slots, where there are few; else None.
      route: the way of the neighbours' to them, where there are few of them; else None.
    """

    matrix: Float[Array, "agents agents"]
    sources: Int[Array, "agents slots"]
    slot_mask: Float[Array, "agents slots"]
    reverse_slots: Int[Array, "agents slots"]
    weights: Float[Array, "agents slots"] | None = None
    route: Route | None = None


class Gossip(NamedTuple):
    """What a method does within every training step.

    Every agent draws a batch and takes the gradient of its loss on it at its own parameters (and at
    further points, if there are any); then all agents are updated at once. The parameters are the
    agents' own models: they are evaluated and merged, and nothing in the state repeats them.

    Attributes:
      update: ``(params, gradients, state, exchange, rate) -> (params, state)``, with the gradient
        at the agents' own parameters first, one at each further point, and the learning rate of
        this step.
      graph: on which it exchanges.
      message: what is sent in each step.
      init: ``(params, exchange) -> (params, state)``, before the first step.
      points: ``(params, state, exchange) -> points``: further stacked parameters at which
        gradients are taken, always as many.
      momentum: that it keeps by itself; 0: none.
    """

    update: Callable[[Params, tuple[Params, ...], State, Exchange, Any], tuple[Params, State]]
    graph: Graph
    message: Message = Message()
    init: Callable[[Params, Exchange], tuple[Params, State]] = lambda params, exchange: (params, ())
    points: Callable[[Params, State, Exchange], tuple[Params, ...]] = lambda *_: ()
    momentum: float = 0.0


# Between two stretches of training, or after the last ---------------------------------------------


class MergeRound(NamedTuple):
    """What one merge works with.

    Attributes:
      sources: int32 ``[agents, slots]``: slot 0 is the agent itself, the others its neighbours;
        agents with fewer neighbours are filled up with themselves at weight 0.
      weights: ``[agents, slots]``, π_ij of those neighbours.
      examples: ``[agents]``, how many training examples each agent has.
      matching: gives the images on which units are compared. Images that others hold are counted
        as sent when they are asked for.
      statistics: likewise of those from which normalisation statistics are recomputed; None where
        they are averaged with the rest.
      tree: the way of a network to everyone, `dimat_jax.topology.flood` on this merge's graph.
        The networks that go along it are counted as sent when it is asked for.
      frame: in which the run's agents are merged: each in its ``own``, or all in that of a
        ``reference`` network, with which each is compared, or by composition along the ``tree``.
      aligns: whether units are compared in this round; else all are in the frame of the last one.
      key: drives all that is random in the merge.
    """

    sources: Int[np.ndarray, "agents slots"]
    weights: Float[np.ndarray, "agents slots"]
    examples: Int[np.ndarray, "agents"]
    matching: Callable[[], Batches]
    statistics: Callable[[], Batches] | None
    tree: Callable[[], Tree]
    frame: str
    aligns: bool
    key: Key


class Merged(NamedTuple):
    """What a merge gives.

    Attributes:
      variables: stacked ``[agents, ...]``.
      state: the merge's own, for the next round.
      permutations: those that were used, one dict per slot, each array ``[agents, units]``; in one
        frame for all (a reference network's, or a universe) one dict, that of every agent into it.
        Empty where nothing was aligned.
      moved: whether they brought the agents' own units into another frame, and with them all that
        belongs to those units: optimizer state, and the state of the method's other parts.
      weights: those of `MergeRound.sources` with which networks were averaged, ``[agents, slots]``;
        None where they were not. What else is averaged with them takes the same.
    """

    variables: Variables
    state: State
    permutations: list[Permutations]
    moved: bool
    weights: Float[np.ndarray, "agents slots"] | None = None


class Merge(NamedTuple):
    """What a method does between two stretches of training, or once before or after all of it.

    Attributes:
      apply: ``(merger, variables, state, round) -> merged``.
      graph: on which it merges.
      message: what is sent in each merge.
      init: ``(variables) -> state``, before the method's first round: what it remembers from round
        to round, an outer optimizer's state and the variables of the round before, say.
      fits: ``(task, symmetries, abstract)``, with shapes of one agent's variables and of a batch:
        raises a `ValueError` for a model that it cannot merge, and warns where it does less.
      optimizer: what becomes of the agents' optimizers, as `Config.optimizer_after_merge` has it;
        None: what the run says.
    """

    apply: Callable[[Merger, Variables, State, MergeRound], Merged]
    graph: Graph
    message: Message = Message(parameters=1, statistics=1)
    init: Callable[[Variables], State] = lambda variables: ()
    fits: Callable[[Task, Symmetries, tuple[Variables, Batch]], None] = lambda *_: None
    optimizer: Literal["fresh", "kept", "averaged"] | None = None


# A method -----------------------------------------------------------------------------------------


class Algorithm(NamedTuple):
    """A method, whole: all that is known of it stands here.

    Attributes:
      label: what tables and pictures call it.
      update: its formula, in a line.
      source: paper and equation.
      gossip: what happens within a training step; None: each agent takes its optimizer's step.
      initial: what happens once before the first round; None: nothing.
      merge: what happens between two stretches of training; None: nothing.
      final: what happens once when all training has ended; None: nothing.
      pooled: whether all data are in one place, and each agent trains on a random part of them.
      rate_of: the method whose learning rate it takes, where rates are tuned; None: it is tuned
        itself.
    """

    label: str
    update: str = ""
    source: str = ""
    gossip: Gossip | None = None
    initial: Merge | None = None
    merge: Merge | None = None
    final: Merge | None = None
    pooled: bool = False
    rate_of: str | None = None

    def parts(self) -> "dict[str, Gossip | Merge]":
        """The parts that it has, by name."""
        names = ("gossip", "initial", "merge", "final")
        named = {name: getattr(self, name) for name in names}
        return {name: part for name, part in named.items() if part is not None}


def doubly_stochastic(topology: Topology) -> Topology:
    """The given graph.

    Raises:
      ValueError: unless every row and column of its mixing matrices sums to 1.
    """
    check_doubly_stochastic(topology)
    return topology


def exchanges(topology: Topology, execution: Execution | None = None) -> Exchange:
    """Every round of a graph as one `Exchange`, whose arrays have a leading axis ``period``.

    Args:
      topology: the graph.
      execution: where it has masked lanes, these hear what the last agent hears, and nobody hears
        from them.
    """
    rounds = [exchange_of(topology, round) for round in range(topology.period)]
    if execution is not None:
        rounds = [padded(execution, exchange) for exchange in rounds]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *rounds)
    if execution is None or stacked.sources.shape[-1] > 1 + SLOTS_AT_ONCE:
        return stacked
    sources, weights = zip(
        *(neighbor_slots(topology, round) for round in range(topology.period)), strict=True
    )
    of_lanes = np.stack([pad(execution, x) for x in weights])
    return stacked._replace(
        weights=jnp.asarray(of_lanes, jnp.result_type(float)),
        route=jax.tree.map(jnp.asarray, find_routes(execution, np.stack(sources)[:, :, 1:])),
    )


def mix(exchange: Exchange, tree: Any) -> Any:
    """Σ_j π_ij x_j for every agent i: slot by slot where there are few, else by the matrix.

    Args:
      exchange: who hears from whom.
      tree: stacked ``[agents, ...]``.
    """
    if exchange.route is None:
        return mix_all(exchange.matrix, tree)

    def average(weights: Any, route: Route, tree: Any) -> Any:
        return narrow(add_neighbors(None, weights, route, tree), tree)

    return over(exchange.route.mesh, average)(exchange.weights, exchange.route, tree)


def neighbors(exchange: Exchange, tree: Any) -> list[Any]:
    """What each agent's neighbours have, one stacked pytree for each slot after the agent's own.

    Args:
      exchange: who hears from whom.
      tree: stacked ``[agents, ...]``.
    """
    if exchange.route is None:
        return [take(tree, sources) for sources in exchange.sources.T[1:]]
    return over(exchange.route.mesh, follow)(exchange.route, tree)


def padded(execution: Execution, exchange: Exchange) -> Exchange:
    """An exchange of agents as one of lanes."""
    masked = execution.all_lanes - execution.agents
    exchange = pad(execution, exchange)
    return exchange._replace(matrix=jnp.pad(exchange.matrix, ((0, 0), (0, masked))))


def exchange_of(topology: Topology, round: int = 0) -> Exchange:
    """One round of a graph, counted from 0."""
    sources, _ = neighbor_slots(topology, round)
    agents = np.arange(len(sources))[:, None]
    # Whether slot t of the agent in slot s holds agent i: [agents, slots, slots].
    mutual = (sources[sources] == agents[:, :, None]) & (sources != agents)[:, :, None]
    return Exchange(
        matrix=jnp.asarray(topology.mixing_matrix(round), jnp.result_type(float)),
        sources=jnp.asarray(sources),
        slot_mask=jnp.asarray(sources != agents, jnp.result_type(float)),
        reverse_slots=jnp.asarray(mutual.argmax(-1).astype(np.int32)),
    )


def descend(params: Params, rate: Float[Array, ""], direction: Params) -> Params:
    """A step of length α against a direction, x − α d, in the dtype of each leaf x."""
    return jax.tree.map(lambda x, d: x - rate.astype(x.dtype) * d, params, direction)
