"""A run whose network has faults, and whose agents join and leave: what `faults` says, done.

Everything here is looked at only where a run has a `Schedule`.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dimat_jax.algorithms import Exchange, MergeRound, exchange_of
from dimat_jax.algorithms.base import padded
from dimat_jax.algorithms.stepping import finite_lanes, select
from dimat_jax.execution.placement import place, replicate, to_host
from dimat_jax.merging.merger import Merger
from dimat_jax.metrics import PRETRAINING
from dimat_jax.simulation import faults
from dimat_jax.simulation.state import RunState
from dimat_jax.topology import Topology, from_matrix
from dimat_jax.training.state import AgentState
from dimat_jax.types import Permutations, Variables

if TYPE_CHECKING:
    from dimat_jax.simulation.session import Session

GARBAGE = 100.0
"""How much larger parameters become that are garbage."""

Agents = Bool[np.ndarray, "agents"]
Lanes = Bool[Array, "lanes"]


class Met(NamedTuple):
    """A merge as the network lets it happen.

    Attributes:
      state: whose agents' parameters are finite, as far as that can be.
      before: the state as it was.
      inputs: neighbours and shares without what cannot be used.
      merger: whose neighbours are those of one merge before, where a message is stale.
      out: the agents who take no part, and stay as they are.
      sent: will hold what is sent in it, where messages may be stale.
    """

    state: RunState
    before: RunState
    inputs: MergeRound
    merger: Merger
    out: Agents
    sent: list[Variables]


choose = jax.jit(select)
all_finite = jax.jit(finite_lanes)


@jax.jit
def filled(mask: Lanes, variables: Variables) -> Variables:
    """The same networks, but for those outside the mask the mean of those in it."""

    def one(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        of_lane = mask.reshape(-1, *[1] * (x.ndim - 1))
        inside = jnp.where(of_lane, x, 0)
        mean = inside.sum(0, keepdims=True) / jnp.maximum(mask.sum(), 1).astype(x.dtype)
        return jnp.where(of_lane, x, mean)

    return jax.tree.map(one, variables)


def lanes_of(session: "Session", mask: Agents) -> Lanes:
    """A mask of agents on their devices; masked lanes repeat the last agent."""
    return place(session.setup.execution, mask)


def finite_agents(session: "Session", state: RunState) -> Agents:
    """Who is finite: parameters, statistics and optimizer, every number of them."""
    held = state.agents.variables, state.agents.optimizer
    return np.asarray(to_host(session.setup.execution, all_finite(held)))


def present(session: "Session", state: RunState, round: int) -> Agents:
    """Who takes part in a round; in pretraining all who ever do."""
    setup = session.setup
    if session.method_of(state) == PRETRAINING:
        return np.ones(setup.config.agents, bool)
    return faults.there(setup.schedule, setup.config.agents, max(1, round))


def measured_agents(session: "Session", state: RunState) -> Agents:
    """Of whom something can be measured: who is there and finite."""
    return present(session, state, state.position.round) & finite_agents(session, state)


# A round begins -----------------------------------------------------------------------------------


def begin_round(session: "Session", state: RunState, round: int) -> RunState:
    """Agents that join in this round begin; what is corrupted in it becomes so."""
    schedule, agents = session.setup.schedule, session.setup.config.agents
    for when, agent, how in schedule.events.joins:
        if when == round:
            state = join(session, state, round, agent, how)
    for when, agent, what in schedule.faults.corrupt:
        if when == round:
            params = state.agents.variables["params"]
            numbers = faults.drawn(schedule, state.position.seed, round, agent)
            factor = np.nan if what == "nan" else GARBAGE * numbers.standard_normal()
            bad = jax.tree.map(functools.partial(times, factor), params)
            mask = lanes_of(session, np.arange(agents) == agent)
            variables = {**state.agents.variables, "params": choose(mask, bad, params)}
            state = state._replace(agents=state.agents._replace(variables=variables))
    return state


def times(factor: float, x: Array) -> Array:
    """A leaf times a number; one of whole numbers stays as it is."""
    return x * jnp.asarray(factor, x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def join(session: "Session", state: RunState, round: int, agent: int, how: str) -> RunState:
    """An agent begins: from new weights, or from a neighbour's; with an optimizer of its own."""
    setup, old = session.setup, state.agents
    method = session.method_of(state)
    key = jax.random.fold_in(jax.random.fold_in(state.keys.init, round), agent)
    new = session.parts.init(key)._replace(step=old.step, rate_scale=old.rate_scale)
    if how == "copy":
        was_there = present(session, state, round - 1) & finite_agents(session, state)
        source = first_neighbour(session, agent, was_there)
        sources = np.arange(setup.config.agents, dtype=np.int32)
        sources[agent] = source
        variables = session.parts.merger.gather(old.variables, sources)
        new = new._replace(variables=variables)
    mask = lanes_of(session, np.arange(setup.config.agents) == agent)
    if setup.config.proximal and old.anchor is not None:
        new = new._replace(anchor=jax.tree.map(jnp.copy, new.variables["params"]))
    agents = choose(mask, new, old)
    _, remembered = session.remember(jax.tree.map(jnp.copy, agents), method)
    if remembered.gossip is not None and state.method.gossip is not None:
        gossip = remembered.gossip._replace(turn=state.method.gossip.turn)
        remembered = remembered._replace(gossip=gossip)
    return state._replace(agents=agents, method=choose(mask, remembered, state.method))


def first_neighbour(session: "Session", agent: int, usable: Agents) -> int:
    """The first neighbour, over all rounds of the graph, who can be used; else the agent."""
    hears = (session.setup.topology.mixing_matrices[:, agent] != 0).any(0)
    found = np.flatnonzero(hears & usable & (np.arange(len(usable)) != agent))
    return int(found[0]) if len(found) else agent


# A merge ------------------------------------------------------------------------------------------


def before_merge(session: "Session", state: RunState, inputs: MergeRound, name: str) -> Met:
    """What a merge works with when not everybody can be reached, or is there."""
    if name == "merge":
        state = begin_round(session, state, state.position.round)
    setup, seed = session.setup, state.position.seed
    agents, round = setup.config.agents, state.position.round
    here, finite = present(session, state, round), finite_agents(session, state)
    arrives = faults.arriving(setup.schedule, agents, seed, round)
    rows, sources = np.arange(agents)[:, None], inputs.sources
    neighbours = (sources != rows) & (inputs.weights != 0)
    lost = neighbours & ~arrives[rows, sources] & here[:, None] & here[sources]
    usable = arrives[rows, sources] & here[sources] & finite[sources] & here[:, None]
    usable |= sources == rows
    usable[:, 0] = finite
    left_out = neighbours & arrives[rows, sources] & here[:, None] & here[sources]
    left_out &= ~finite[sources]
    sources, weights = faults.without(inputs.weights, sources, usable)
    # Whoever is no longer finite takes over a neighbour's network, and then the average of all of
    # its neighbours; who has no neighbour, or is not there, takes no part.
    hopeless = ~finite & (weights[:, 1:].sum(1) <= 0)
    before, healed = state, state.agents
    if not finite.all():
        nearest = sources[rows[:, 0], weights.argmax(1)]
        substitutes = np.where(finite, rows[:, 0], nearest).astype(np.int32)
        healed = taken_over(session, state, finite, substitutes)
        zeros = jax.tree.map(jnp.zeros_like, (healed.variables, healed.optimizer))
        kept = choose(lanes_of(session, ~hopeless), (healed.variables, healed.optimizer), zeros)
        healed = healed._replace(variables=kept[0], optimizer=kept[1])
    newcomers = (here & ~present(session, state, round - 1)).any()
    state = state._replace(
        agents=healed,
        lost=state.lost + int(lost.sum()),
        left_out=state.left_out + int(left_out.sum()),
    )
    aligns = inputs.aligns or (name == "merge" and bool(newcomers))
    inputs = inputs._replace(sources=sources.astype(np.int32), weights=weights, aligns=aligns)
    merger, sent = with_stale(session, state, round)
    return Met(state, before, inputs, merger, ~here | hopeless, sent)


def taken_over(
    session: "Session", state: RunState, finite: Agents, substitutes: Int[np.ndarray, "agents"]
) -> AgentState:
    """The agents, of whom those that are not finite have another's network and a new optimizer."""
    parts, agents = session.parts, state.agents
    taken = agents._replace(variables=parts.merger.gather(agents.variables, substitutes))
    fresh = parts.fresh(taken)
    variables, optimizer = choose(
        lanes_of(session, finite),
        (agents.variables, agents.optimizer),
        (fresh.variables, fresh.optimizer),
    )
    return agents._replace(variables=variables, optimizer=optimizer)


def with_stale(session: "Session", state: RunState, round: int) -> tuple[Merger, list[Variables]]:
    """The parts of a merge, in which some get what others sent one merge before.

    Returns:
      The parts; and a list that will hold what is sent in this merge.
    """
    setup, merger, sent = session.setup, session.parts.merger, []
    if not setup.schedule.faults.stale:
        return merger, sent
    agents = setup.config.agents
    stale = faults.stale_messages(setup.schedule, agents, state.position.seed, round)

    older = state.sent

    def permute(permutations: Permutations, variables: Variables) -> Variables:
        nonlocal older
        # All agents go into another frame, and with them what they sent before.
        if variables is state.agents.variables and older is not None:
            older = merger.permute(permutations, older)
        return merger.permute(permutations, variables)

    def gather(variables: Variables, sources: Int[np.ndarray, "agents"]) -> Variables:
        sent[:] = [variables]
        new = merger.gather(variables, sources)
        late = stale[np.arange(agents), sources]
        if older is None or not late.any():
            return new
        return choose(lanes_of(session, late), merger.gather(older, sources), new)

    def gather_slots(
        variables: Variables, sources: Int[np.ndarray, "agents slots"]
    ) -> list[Variables]:
        return [gather(variables, slot) for slot in sources.T]

    def average(
        variables: Any,
        sources: Int[np.ndarray, "agents slots"],
        weights: Float[np.ndarray, "agents slots"],
    ) -> Any:
        total = merger.add(None, weights[:, 0], variables)
        for slot in range(1, sources.shape[1]):
            total = merger.add(total, weights[:, slot], gather(variables, sources[:, slot]))
        return total

    parts = dict(gather=gather, gather_slots=gather_slots, average=average, permute=permute)
    return merger._replace(**parts), sent


def after_merge(session: "Session", met: Met, state: RunState) -> RunState:
    """Who took no part in a merge stays as it was."""
    if met.sent:
        state = state._replace(sent=met.sent[-1])
    if not met.out.any():
        return state
    return stay(lanes_of(session, ~met.out), state, met.before)


def stay(mask: Lanes, state: RunState, before: RunState) -> RunState:
    """The state, but for agents outside the mask that before; what is all agents' goes on."""
    agents = choose(mask, state.agents, before.agents._replace(anchor=state.agents.anchor))
    agents = agents._replace(step=state.agents.step)
    gossip = state.method.gossip
    method = choose(mask, state.method, before.method)
    if gossip is not None and method.gossip is not None:
        method = method._replace(gossip=method.gossip._replace(turn=gossip.turn))
    return state._replace(agents=agents, method=method)


# A stretch of training ----------------------------------------------------------------------------


def begin_epoch(session: "Session", state: RunState) -> tuple[RunState, Exchange | None]:
    """What comes before an epoch: a round begins, if no merge has begun it; who hears from whom.

    Returns:
      The state; the exchanges of a method that gossips, stacked ``[steps, ...]``.
    """
    method, position = session.method_of(state), state.position
    if method == PRETRAINING:
        return state, None
    algorithm, done = session.setup.methods[method], position.epoch - position.first_epoch
    if algorithm.merge is None and done % session.setup.config.epochs_per_round == 0:
        state = begin_round(session, state, position.round)
    if algorithm.gossip is None:
        return state, None
    state = healed_by_neighbours(session, state)
    steps = session.shards_of(state).steps
    graph, lost = exchanges_of(session, state, done * steps, steps)
    state = state._replace(lost=state.lost + lost)
    gossip = session.parts.gossip(algorithm.gossip)
    resumed = gossip.resume(state.agents, state.method.gossip, graph)  # pyrefly: ignore
    return state._replace(method=state.method._replace(gossip=resumed)), graph


def sent_back(
    matrix: Float[np.ndarray, "agents agents"], usable: Bool[np.ndarray, "agents agents"]
) -> Float[np.ndarray, "agents agents"]:
    """A mixing matrix whose columns sum to what they did: who is not heard keeps its share."""
    kept = np.where(usable, matrix, 0.0)
    return kept + np.diag(matrix.sum(0) - kept.sum(0))


def healed_by_neighbours(session: "Session", state: RunState) -> RunState:
    """Of a method that gossips, whoever is not finite goes on from a neighbour's network."""
    finite = finite_agents(session, state)
    if finite.all():
        return state
    here = present(session, state, state.position.round)
    substitutes = np.arange(len(finite), dtype=np.int32)
    for agent in np.flatnonzero(~finite & here):
        substitutes[agent] = first_neighbour(session, int(agent), here & finite)
    return state._replace(agents=taken_over(session, state, finite, substitutes))


def before_training(session: "Session", state: RunState) -> tuple[RunState, Agents]:
    """A copy of the state if somebody does not take part, for its memory is used; and who does."""
    here = present(session, state, state.position.round)
    kept = state
    if not here.all():
        copies = jax.tree.map(jnp.copy, (state.agents, state.method))
        kept = state._replace(agents=copies[0], method=copies[1])
    return kept, here


def exchanges_of(
    session: "Session", state: RunState, first: int, steps: int
) -> tuple[Exchange, int]:
    """Who hears from whom in each gossip step of an epoch.

    Args:
      session: of the run.
      state: before the epoch.
      first: gossip steps since the method began, a multiple of ``steps``.
      steps: of the epoch.

    Returns:
      The exchanges, stacked ``[steps, ...]``, on the devices; and how many messages are lost.
    """
    setup, position = session.setup, state.position
    graph = setup.graphs[session.method_of(state)]["gossip"]
    here = present(session, state, position.round)
    found, lost = [], 0
    for step in range(steps):
        round = (first + step) % graph.period
        exchange = exchange_of(graph, round)
        number = 1 + position.epoch * steps + step
        arrives = faults.arriving(
            setup.schedule, setup.config.agents, position.seed, position.round, number
        )
        both = here & here[:, None]
        found.append(degraded(exchange, arrives & both))
        lost += int(((graph.mixing_matrix(round) != 0) & both & ~arrives).sum())
    execution = setup.execution
    lanes = [padded(execution, exchange) for exchange in found]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *lanes)
    return replicate(execution, stacked), lost


def degraded(exchange: Exchange, usable: Bool[np.ndarray, "agents agents"]) -> Exchange:
    """An exchange in which some messages do not arrive; arrays on the host.

    Args:
      exchange: of all agents.
      usable: ``[i, j]``, whether what j sends reaches i.
    """
    usable = usable | np.eye(len(usable), dtype=bool)
    matrix, sources, mask, reverse = map(np.asarray, exchange[:4])
    rows = np.arange(len(usable))[:, None]
    kept = usable[rows, sources]
    shares = matrix.astype(np.float64)
    # A matrix whose columns alone sum to 1 (push-sum) sends what is lost back to who sent it.
    of_rows = np.allclose(shares.sum(1), 1, atol=1e-5)
    degraded = faults.matrix_without(shares, usable) if of_rows else sent_back(shares, usable)
    heard = (
        degraded.astype(matrix.dtype),
        np.where(kept, sources, rows).astype(sources.dtype),
        np.where(kept, mask, 0).astype(mask.dtype),
        # Who does not hear from i any more has it in no slot.
        np.where(usable[sources, rows] & kept, reverse, 0).astype(reverse.dtype),
    )
    matrix, sources, mask, reverse = map(jnp.asarray, heard)
    return Exchange(matrix, sources, mask, reverse)


def after_training(
    session: "Session", kept: RunState, here: Agents | None, state: RunState
) -> RunState:
    """Who took no part in training stays as it was; None: all did."""
    if here is None or here.all():
        return state
    return stay(lanes_of(session, here), state, kept)


def after_recompute(session: "Session", state: RunState, variables: Variables) -> Variables:
    """Who is not there has its statistics as they were."""
    here = present(session, state, state.position.round)
    if here.all():
        return variables
    return choose(lanes_of(session, here), variables, state.agents.variables)


def among(here: Agents | None, graph: Topology) -> Topology:
    """A graph among those who are there; None: all are."""
    if here is None or here.all():
        return graph
    both = here & here[:, None] | np.eye(len(here), dtype=bool)
    return from_matrix(np.where(both, graph.mixing_matrices, 0.0), graph.name)
