"""A run, step by step: `Session.advance` takes a `RunState` to the next one.

Compiled parts are made once. Everything that a run is lies in the state; who wants to watch, store
or stop it does so between two calls.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dimat_jax.algorithms import Exchange, Merge, exchanges
from dimat_jax.algorithms.communication import sent, sent_on_demand
from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.execution.compile_cache import keep_compilations
from dimat_jax.execution.devices import prepare_devices
from dimat_jax.execution.placement import replicate, to_host
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.matching.assignment import NotFinite
from dimat_jax.merging.batches import Batches
from dimat_jax.metrics import PRETRAINING, Phase, Row
from dimat_jax.simulation import network
from dimat_jax.simulation.checks import all_methods, check_options
from dimat_jax.simulation.examples import Shards, place_shards, pooled_batches
from dimat_jax.simulation.faults import Events, Faults, Schedule, scheduled
from dimat_jax.simulation.measure import Diverged, check_finite, units_moved
from dimat_jax.simulation.memory import check_graph, check_memory
from dimat_jax.simulation.parts import Parts, make_parts
from dimat_jax.simulation.plan import Action, Event, plan
from dimat_jax.simulation.rounds import (
    frame_after,
    merge_round,
    optimizer_after,
    state_after,
    statistics_batches,
    with_optimizer,
)
from dimat_jax.simulation.row import class_entries, metric_entries
from dimat_jax.simulation.setup import NOTHING, Setup, prepare
from dimat_jax.simulation.state import MethodState, Position, RunState, round_keys, seed_keys
from dimat_jax.topology import Topology
from dimat_jax.training.evaluation import values_of
from dimat_jax.training.state import AgentState
from dimat_jax.types import Model, Task


def on_own_mesh(method: Callable) -> Callable:
    """The same, whatever mesh the caller has set by `jax.set_mesh`: agents lie on their own."""

    @functools.wraps(method)
    def alone(*args: Any, **options: Any) -> Any:
        with jax.set_mesh(None):
            return method(*args, **options)

    return alone


class Session(NamedTuple):
    """A run that is ready to go: what it works with, its compiled parts, its events.

    Every method that takes a state reuses its memory: go on with the one that comes back.

    Attributes:
      setup: what it works with.
      parts: compiled when first used.
      plan: what `advance` goes through.
      shards: ``(seed, part, pooled) -> shards``, see `place_shards`.
      graphs: ``(method) -> exchanges`` of its gossip, on every device.
      pools: ``(seed, part) -> batches`` of everyone's images, see `pooled_batches`.
    """

    setup: Setup
    parts: Parts
    plan: tuple[Event, ...]
    shards: Callable[[int, int, bool], Shards]
    graphs: Callable[[str], Exchange]
    pools: Callable[[int, int], Batches]

    @on_own_mesh
    def start(self, seed: int | None = None) -> RunState:
        """The agents of a seed, by default the first, with their initial weights."""
        seed = self.setup.config.seeds[0] if seed is None else seed
        starts = [i for i, e in enumerate(self.plan) if (e.action, e.seed) == (Action.START, seed)]
        if not starts:
            raise ValueError(f"seed must be one of {self.setup.config.seeds}, not {seed}.")
        keys = seed_keys(seed)
        return RunState(Position(starts[0] + 1, seed), keys, self.parts.init(keys.init))

    def next_event(self, state: RunState) -> Event | None:
        """What `advance` will do; None where the run has ended."""
        number = state.position.event
        return self.plan[number] if number < len(self.plan) else None

    @on_own_mesh
    def advance(self, state: RunState) -> tuple[RunState, Row | None]:
        """Goes through one event of the plan.

        Args:
          state: whose memory is reused.

        Returns:
          The next state; the row of ``metrics.jsonl`` that the event gave, if it gave one.

        Raises:
          Diverged: if an agent's loss or parameters are no longer finite.
          ValueError: if the run has ended.
        """
        event, row = self.next_event(state), None
        if event is None:
            raise ValueError("The run has ended: there is no event left.")
        if event.action is Action.START:
            return self.start(event.seed), None
        if event.action not in (Action.MERGE, Action.FINAL):  # Those go on to the next round.
            state = state._replace(position=state.position._replace(round=event.round))
        match event.action:
            case Action.BEGIN:
                state = self.begin(state, event.method)
            case Action.INITIAL:
                state = self.merge(state, "initial")
            case Action.TRAIN:
                state = self.train(state)
            case Action.MERGE:
                state = self.merge(state)
            case Action.FINAL:
                state = self.merge(state, "final")
            case Action.RECOMPUTE:
                state = self.recompute(state)
            case Action.MEASURE:
                state, row = self._measure(state, event)
        position = state.position._replace(event=state.position.event + 1)
        return state._replace(position=position), row

    def skip_method(self, state: RunState) -> RunState:
        """Leaves out what the method has still to do, as one that diverged.

        Args:
          state: of which nothing but the position and the pretrained agents is looked at.
        """
        left = range(state.position.event, len(self.plan))
        now = self.plan[state.position.event]
        same = (event for event in left if self.plan[event][1:3] != now[1:3])
        number = next(same, len(self.plan))
        return state._replace(position=state.position._replace(event=number))

    def method_of(self, state: RunState) -> str:
        """The name of the method that a state is in."""
        number = state.position.method
        return PRETRAINING if number < 0 else list(self.setup.methods)[number]

    def rate_of(self, method: str) -> float:
        """The learning rate of a method, or of pretraining, before schedules."""
        config, rate = self.setup.config, self.setup.learning_rate
        if method == PRETRAINING:
            return rate
        return dict(config.method_learning_rate).get(method, config.round_rate * rate)

    def shards_of(self, state: RunState) -> Shards:
        """The agents' training examples at this point of the run."""
        method = self.method_of(state)
        if method == PRETRAINING:
            return self.shards(state.position.seed, 0, False)
        return self.shards(state.position.seed, 1, self.setup.methods[method].pooled)

    @on_own_mesh
    def begin(self, state: RunState, method: str) -> RunState:
        """Begins a method from the pretrained agents, or from the agents as they are.

        Args:
          state: in pretraining, or in another method, which ends.
          method: its name.
        """
        setup = self.setup
        pretrained = state.agents if state.pretrained is None else state.pretrained
        agents = jax.tree.map(jnp.copy, pretrained)
        # The schedule is the run's; a rate of the method's own is a factor on it.
        scale = self.rate_of(method) / setup.learning_rate
        agents = agents._replace(rate_scale=agents.rate_scale * scale)
        agents, remembered = self.remember(agents, method)
        # Every method starts at the epoch at which pretraining ended, by hand or by the plan.
        position = state.position
        epoch = position.epoch if position.method < 0 else position.first_epoch
        position = position._replace(
            method=list(setup.methods).index(method), round=0, epoch=epoch, first_epoch=epoch
        )
        return RunState(position, state.keys, agents, remembered, pretrained)

    def remember(self, agents: AgentState, method: str) -> tuple[AgentState, MethodState]:
        """The agents of a method that begins, and what its parts remember."""
        algorithm, variables = self.setup.methods[method], agents.variables
        remembered = MethodState(
            initial=algorithm.initial and algorithm.initial.init(variables),
            merge=algorithm.merge and algorithm.merge.init(variables),
            final=algorithm.final and algorithm.final.init(variables),
        )
        if algorithm.gossip is not None:
            parts = self.parts.gossip(algorithm.gossip)
            agents, gossip = parts.start(agents, self.graphs(method))
            remembered = remembered._replace(gossip=gossip)
        return agents, remembered

    @on_own_mesh
    def take_over(self, state: RunState) -> RunState:
        """Goes on from agents that another session has pretrained, of the same model and seed.

        Args:
          state: after their pretraining; it stays as it is.

        Returns:
          A state before this run's first method.

        Raises:
          ValueError: if this run has not the seed, or no method.
        """
        seed = state.position.seed
        begins = [i for i, e in enumerate(self.plan) if (e.action, e.seed) == (Action.BEGIN, seed)]
        if not begins:
            raise ValueError(f"seed must be one of {self.setup.config.seeds}, not {seed}.")
        agents = jax.tree.map(jnp.copy, state.agents)
        position = Position(begins[0], seed, epoch=state.position.epoch)
        return RunState(position, state.keys, agents, pretrained=agents)

    @on_own_mesh
    def train(self, state: RunState) -> RunState:
        """Trains every agent for an epoch, by itself or as the method has it.

        Raises:
          Diverged: if an agent's loss is no longer finite, or its parameters are not.
        """
        parts, shards, position = self.parts, self.shards_of(state), state.position
        method, order = self.method_of(state), state.keys.order
        gossip = None if method == PRETRAINING else self.setup.methods[method].gossip
        # The loss is summed over the steps of an epoch, on the device.
        kept, here, graph = state, None, None
        if self.setup.schedule:
            state, graph = network.begin_epoch(self, state)
            kept, here = network.before_training(self, state)
        agents = state.agents._replace(loss=jnp.zeros_like(state.agents.loss))
        remembered, bytes_sent = state.method, state.bytes_sent
        with parts.stopwatch.measure("train") as timer:
            if gossip is None:
                agents = parts.train(agents, shards, order, position.epoch)
            else:
                train, graph = parts.gossip(gossip).train, graph or self.graphs(method)
                before = remembered.gossip
                agents, after = train(agents, before, graph, shards, order, position.epoch)
                remembered = remembered._replace(gossip=after)
            check = agents.loss, agents.diverged, parts.finite(agents.variables)
            losses, diverged, finite = to_host(self.setup.execution, check)
        counted = np.ones_like(finite) if here is None else here & finite
        if here is None or not counted.any():
            check_finite(diverged, finite, self.rate_of(method))
        if gossip is not None:
            first = (position.epoch - position.first_epoch) * shards.steps
            graph = network.among(here, self.setup.graphs[method]["gossip"])
            abstract = self.setup.abstract[0]
            bytes_sent += sent(gossip.message, graph, first, shards.steps, abstract)
        images = self.setup.config.agents * shards.steps * self.setup.batch_size
        state = state._replace(
            position=position._replace(epoch=position.epoch + 1),
            agents=agents,
            method=remembered,
            bytes_sent=bytes_sent,
            units_moved=None,
            train_loss=float(losses[counted].mean()) / max(1, shards.steps),
            images_per_second=images / timer.seconds,
        )
        return network.after_training(self, kept, here, state)

    @on_own_mesh
    def merge(self, state: RunState, name: str = "merge") -> RunState:
        """Does what the method does between two stretches of training.

        Args:
          state: of a method that does something there.
          name: which of its parts: ``initial``, ``merge`` or ``final``.

        Raises:
          Diverged: if networks have diverged so far that their units cannot be compared.
          ValueError: if the method does nothing there.
        """
        setup, method = self.setup, self.method_of(state)
        part = None if method == PRETRAINING else setup.methods[method].parts().get(name)
        if not isinstance(part, Merge):
            raise ValueError(f"The method {method!r} has no {name}.")
        graph, abstract = setup.graphs[method][name], setup.abstract[0]
        round = state.position.round + (name != "initial")
        position = state.position._replace(round=round)
        shards, keys = self.shards_of(state), round_keys(state.keys, round)
        among = network.among(network.present(self, state, round), graph)
        inputs, asked_for = merge_round(setup, position, shards, keys, name, graph, among)
        merger, met = self.parts.merger, None
        if setup.schedule:
            met = network.before_merge(self, state._replace(position=position), inputs, name)
            state, inputs, merger = met.state, met.inputs, met.merger
        before = state.agents.variables
        try:
            merged = part.apply(merger, before, getattr(state.method, name), inputs)
        except NotFinite as error:
            raise Diverged(str(error)) from error
        state = state._replace(
            position=position,
            agents=state.agents._replace(variables=merged.variables),
            method=state.method._replace(**{name: merged.state}),
            permutations=tuple(merged.permutations),
            units_moved=units_moved(to_host(setup.execution, merged.permutations)),
            train_loss=None,
            images_per_second=None,
            bytes_sent=state.bytes_sent
            + sent(with_optimizer(setup, part), among, max(0, round - 1), 1, abstract)
            + sum(sent_on_demand(found, setup.config.agents, abstract) for found in asked_for),
        )
        # The other merges may remember networks, too.
        others = {n: getattr(state.method, n) for n in ("initial", "merge", "final") if n != name}
        if merged.moved and jax.tree.leaves(others):
            for permutations in merged.permutations:
                others = merger.permute_state(permutations, before, others)
            state = state._replace(method=state.method._replace(**others))
        state = state._replace(frame=frame_after(setup, state, inputs, merged.moved))
        exchanged = None if setup.methods[method].gossip is None else self.graphs(method)
        optimizer = optimizer_after(setup, part)
        state = state_after(setup, self.parts, state, before, inputs, merged, optimizer, exchanged)
        return state if met is None else network.after_merge(self, met, state)

    @on_own_mesh
    def recompute(self, state: RunState) -> RunState:
        """Recomputes the agents' normalisation statistics from the images of this round.

        For every method alike, before it is measured; nothing is counted as sent for it.
        """
        if "batch_stats" not in state.agents.variables:
            return state
        key = round_keys(state.keys, state.position.round).statistics_after_training
        batches = statistics_batches(self.setup, self.shards_of(state), key)
        variables = self.parts.merger.recompute(state.agents.variables, batches)
        if self.setup.schedule:
            variables = network.after_recompute(self, state, variables)
        return state._replace(agents=state.agents._replace(variables=variables))

    @on_own_mesh
    def measure(self, state: RunState, phase: Phase = "train") -> Row:
        """Evaluates every agent; the row that says where the run stands.

        Args:
          state: which is left as it is.
          phase: what has just ended.
        """
        parts, position, variables = self.parts, state.position, state.agents.variables
        counted = network.measured_agents(self, state) if self.setup.schedule else None
        with parts.stopwatch.measure("evaluate"):
            score = to_host(self.setup.execution, parts.evaluate(variables, parts.tests))
            if counted is not None:
                variables = network.filled(network.lanes_of(self, counted), variables)
            merged = None
            every = self.setup.config.merged_every
            wanted = every and position.round % every == 0
            if wanted and (counted is None or counted.any()):
                pool = self.pools(position.seed, position.method >= 0)
                merged = values_of(parts.evaluate_mean(variables, pool))
            distance = float(parts.consensus_distance(variables))
            if counted is not None:  # Of those who are there: the others now lie at the mean.
                distance *= math.sqrt(len(counted) / max(1, counted.sum()))
            aligned = distance if state.frame == {} else None
            if state.frame:
                aligned = float(parts.aligned_distance(state.frame, variables))
        measured = values_of(score)
        if counted is not None:
            measured = {name: np.where(counted, of, np.nan) for name, of in measured.items()}
        row = dict(
            method=self.method_of(state),
            seed=position.seed,
            round=position.round,
            epoch=position.epoch,
            phase=phase,
            **metric_entries(measured, merged, counted is not None),
            **class_entries(self.setup.classes, parts.tests, score),
            train_loss=state.train_loss,
            consensus_distance=distance,
            consensus_distance_aligned=aligned,
            units_moved=state.units_moved,
            bytes_sent=state.bytes_sent,
            images_per_second=state.images_per_second,
            seconds=parts.stopwatch.take(),
        )
        if counted is not None:
            row |= {"agents_measured": int(counted.sum())}
            row |= {"messages_lost": state.lost, "messages_left_out": state.left_out}
        return cast(Row, row)

    def _measure(self, state: RunState, event: Event) -> tuple[RunState, Row | None]:
        """An event of `Action.MEASURE`: the last of a method is on all test examples, too."""
        parts = self.parts
        if event.ends:
            # Before the row, whose seconds hold those of this evaluation.
            with parts.stopwatch.measure("evaluate"):
                score = parts.evaluate(state.agents.variables, parts.all_tests)
                final = values_of(to_host(self.setup.execution, score))
            if self.setup.schedule:
                counted = network.measured_agents(self, state)
                final = {name: np.where(counted, of, np.nan) for name, of in final.items()}
            state = state._replace(final=final)
        if event.phase == "pretrain":
            state = state._replace(pretrained=state.agents)
        if event.phase is None:
            parts.stopwatch.take()  # There is no row that these seconds belong to.
            return state, None
        return state, self.measure(state, event.phase)


def make_session(
    config: Config = Config(),
    *,
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    topology: Topology | None = None,
    methods: Mapping | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    faults: Faults | None = None,
    events: Events | None = None,
) -> Session:
    """Checks a configuration and makes a run that is ready to go; nothing is compiled yet.

    Args:
      config: the run; ``out`` and ``overwrite`` are not looked at.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``.
      topology: used instead of ``config.topology``.
      methods: of one's own, by name, besides those of the registry.
      task: used instead of the classification by a model.
      optimizer: used instead of ``config.optimizer``.
      faults: of the network.
      events: agents that join and leave.

    Raises:
      ValueError: for a configuration that cannot be run.
    """
    schedule = scheduled(faults, events)
    setup = prepare_run(config, model, dataset, topology, methods, task, optimizer, schedule)
    return session_of(setup)


def prepare_run(
    config: Config,
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    topology: Topology | None = None,
    methods: Mapping | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    schedule: Schedule = NOTHING,
    say: Callable[[str], object] = lambda what: None,
) -> Setup:
    """Prepares JAX, then the run: the number of devices is fixed when JAX starts.

    Raises:
      ValueError: for a configuration that cannot be run; for one that needs more memory than there
        is, unless it is forced.
    """
    check_options(config, all_methods(methods))
    if topology is None:
        check_graph(config)
    say("starting JAX")
    prepare_devices(config.agents, config.devices)
    keep_compilations()
    setup = prepare(config, model, dataset, topology, methods, task, optimizer, schedule, say)
    on_own_mesh(check_memory)(setup)
    return setup


@on_own_mesh
def session_of(setup: Setup, tell: Callable[[str], object] = lambda part: None) -> Session:
    """A session on what is prepared already; ``tell`` is told of its parts, as by `Stopwatch`."""

    @functools.lru_cache(maxsize=2)
    def shards(seed: int, part: int, pooled: bool) -> Shards:
        return place_shards(setup, seed, part, pooled)

    @functools.lru_cache(maxsize=2)
    def pools(seed: int, part: int) -> Batches:
        return pooled_batches(setup, shards(seed, part, False), seed_keys(seed).merge)

    @functools.cache
    def graphs(method: str) -> Exchange:
        rounds = exchanges(setup.graphs[method]["gossip"], setup.execution)
        return replicate(setup.execution, rounds)

    events = plan(setup.config, setup.methods)
    return Session(setup, make_parts(setup, Stopwatch(tell)), events, shards, graphs, pools)
