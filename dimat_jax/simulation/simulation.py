"""The run: train all agents apart, then merge and train on by each method, round by round."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dimat_jax.algorithms import METHODS, Merge, MergeRound, exchanges
from dimat_jax.communication import sent
from dimat_jax.config import Config
from dimat_jax.datasets import Dataset
from dimat_jax.execution.compile_cache import keep_compilations
from dimat_jax.execution.population import FORWARD_BATCH, prepare_devices, replicate, spread
from dimat_jax.matching.assignment import NotFinite
from dimat_jax.merging.merger import Batches
from dimat_jax.metrics import PRETRAINING, Phase, Row
from dimat_jax.simulation.engine import Engine, Shards, make_engine, place_shards
from dimat_jax.simulation.setup import Keys, Setup, check_options, prepare, seed_keys
from dimat_jax.symmetries import Symmetries
from dimat_jax.topology import Topology, neighbor_slots
from dimat_jax.training.local import AgentState, epoch_order
from dimat_jax.types import Key, Model, Permutations, Variables


class Final(NamedTuple):
    """Where one method ends for one seed.

    Attributes:
      variables: stacked ``[agents, ...]``, on the host: with many methods and seeds they would fill
        the devices.
      test_accuracy: of each agent, on all test images.
      permutations: those of the last merge round, see `dimat_jax.algorithms.Merged`.
    """

    variables: Variables
    test_accuracy: Float[np.ndarray, "agents"]
    permutations: list[Permutations]


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      history: the rows of ``metrics.jsonl``, in order of time.
      variables: stacked ``[agents, ...]``, of the first method that did not diverge and the last
        seed; None where all did.
      symmetries: the model's permutation groups.
      finals: (method, seed) → where it ended.
      setup: what the run worked with, its data set among it.
    """

    history: list[Row]
    variables: Variables | None
    symmetries: Symmetries
    finals: dict[tuple[str, int], Final]
    setup: Setup


class Observer(NamedTuple):
    """Who is told of a run while it goes on.

    Attributes:
      on_start: ``on_start(setup)``, before anything compiles.
      on_phase: ``on_phase(label, done)`` when an epoch has ended, or other work begins that takes a
        while: what it is, and the share of the whole run that is done, 0 to 1.
      on_row: ``on_row(row)`` for every row of the history.
      on_diverged: ``on_diverged(method, error)`` when a method diverges, which by default ends the
        run; where it returns, the run goes on without that method.
    """

    on_start: Callable[[Setup], None] = lambda setup: None
    on_phase: Callable[[str, float], None] = lambda label, done: None
    on_row: Callable[[Row], None] = lambda row: None
    on_diverged: Callable[[str, "Diverged"], None] = lambda method, error: end(error)


def end(error: "Diverged") -> None:
    """Raises the error."""
    raise error


def run(
    config: Config,
    model: Model | None,
    dataset: Dataset | None,
    topology: Topology | None,
    observer: Observer,
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Nothing is written: that is `dimat_jax.simulation.runs.simulate`, whose arguments these are.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles; if a loss is
        no longer finite, with the agent and the step.
    """
    check_options(config)
    prepare_devices(config.agents, config.devices)
    keep_compilations()
    setup = prepare(config, model, dataset, topology)
    observer.on_start(setup)
    observer.on_phase("compiling the first steps", 0.0)
    engine = make_engine(setup)
    history: list[Row] = []
    finals: dict[tuple[str, int], Final] = {}

    def record(row: Row) -> None:
        history.append(row)
        observer.on_row(row)

    for seed in setup.config.seeds:
        finals |= run_seed(setup, engine, seed, record, observer)
    of_last = [final.variables for (_, seed), final in finals.items() if seed == config.seeds[-1]]
    variables = of_last[0] if of_last else None
    return Result(history, variables, setup.symmetries, finals, setup)


class SeedRun(NamedTuple):
    """What is the same throughout one seed's run."""

    setup: Setup
    engine: Engine
    seed: int
    keys: Keys
    record: Callable[[Row], None]
    observer: Observer


class Standing(NamedTuple):
    """Where a method stands.

    Attributes:
      state: of all agents.
      kept: what a gossip method keeps from step to step.
      permutations: those of the last merge.
      bytes_sent: by an agent, since the start.
      train_loss: of the last epoch, if that was the last thing to happen.
      images_per_second: likewise.
    """

    state: AgentState
    kept: Any = None
    permutations: Sequence[Permutations] = ()
    bytes_sent: float = 0.0
    train_loss: float | None = None
    images_per_second: float | None = None


Epoch = Callable[[AgentState, Any, int], tuple[AgentState, Any]]
"""``(state, kept, epoch) -> (state, kept)``: trains all agents for an epoch of the run."""


def run_seed(
    setup: Setup, engine: Engine, seed: int, record: Callable[[Row], None], observer: Observer
) -> dict[tuple[str, int], Final]:
    """Pretrains the agents of one seed, and goes on from there by each method."""
    run = SeedRun(setup, engine, seed, seed_keys(seed), record, observer)
    state = engine.init(run.keys.init)
    apart = alone(run, place_shards(setup, seed, 0))
    standing = train(run, apart, Standing(state), PRETRAINING, 0)
    record(measure(run, standing, PRETRAINING, "pretrain", 0))
    shards = place_shards(setup, seed, 1)
    finals = {}
    for method in setup.config.methods:
        try:
            finals[method, seed] = run_method(run, method, standing.state, shards)
        except Diverged as error:
            observer.on_diverged(method, error)
    return finals


def alone(run: SeedRun, shards: Shards) -> Epoch:
    """An epoch of local training, each agent by itself."""

    def epoch(state: AgentState, kept: Any, epoch: int) -> tuple[AgentState, Any]:
        return run.engine.train(state, shards, run.keys.order, epoch), kept

    return epoch


def run_method(run: SeedRun, method: str, state: AgentState, shards: Shards) -> Final:
    """Goes through all rounds by one method; ``state`` is left as it is for the next."""
    setup, config, algorithm = run.setup, run.setup.config, METHODS[method]
    if algorithm.pooled:
        shards = place_shards(setup, run.seed, 1, pooled=True)
    rate = dict(config.method_learning_rate).get(method, setup.learning_rate) / setup.learning_rate
    state = jax.tree.map(jnp.copy, state)
    state = state._replace(rate_scale=state.rate_scale * rate)
    epoch, standing = start_method(run, method, state, shards)
    for round in range(1, config.rounds + 1):
        if algorithm.merge and not algorithm.at_end:
            standing = merge(run, method, algorithm.merge, standing, shards, round)
            run.record(measure(run, standing, method, "merge", round))
        standing = train(run, epoch, standing, method, round)
        if algorithm.gossip:
            standing = after_gossip(run, method, standing, shards, round)
        if algorithm.at_end or round < config.rounds:
            run.record(measure(run, standing, method, "train", round))
    phase, round = "train", config.rounds
    if algorithm.merge and algorithm.at_end:
        phase, round = "merge", config.rounds + 1
        standing = merge(run, method, algorithm.merge, standing, shards, round)
    final = finish(run, method, standing)
    if round:
        # Not before: the last row's seconds hold those of the evaluation on all test images.
        run.record(measure(run, standing, method, phase, round))
    else:
        run.engine.stopwatch.take()  # There is no row that they belong to.
    return final


def finish(run: SeedRun, method: str, standing: Standing) -> Final:
    """Evaluates on all test images, and brings the agents' variables to the host."""
    engine, config, tests = run.engine, run.setup.config, len(run.setup.dataset.test_labels)
    run.observer.on_phase(
        f"seed {run.seed}, {method}: evaluating on all {tests:,} test images",
        share_done(config, run.seed, method, config.rounds + 1, 0),
    )
    variables = standing.state.variables
    with engine.stopwatch.measure("evaluate"):
        correct = jax.device_get(engine.evaluate(variables, engine.all_tests).correct)
    return Final(jax.device_get(variables), correct / tests, list(standing.permutations))


def start_method(
    run: SeedRun, method: str, state: AgentState, shards: Shards
) -> tuple[Epoch, Standing]:
    """How a method trains for an epoch, and where it starts from."""
    within = METHODS[method].gossip
    if within is None:
        return alone(run, shards), Standing(state)
    run.observer.on_phase(
        f"seed {run.seed}, {method}: starting", share_done(run.setup.config, run.seed, method, 1, 0)
    )
    gossip, graph = run.engine.gossip(within), exchanges(run.setup.graphs[method])

    def epoch(state: AgentState, kept: Any, epoch: int) -> tuple[AgentState, Any]:
        return gossip.train(state, kept, graph, shards, run.keys.order, epoch)

    return epoch, Standing(*gossip.start(state, graph))


def merge(
    run: SeedRun, method: str, between: Merge, standing: Standing, shards: Shards, round: int
) -> Standing:
    """One merge of all agents.

    Raises:
      Diverged: if networks have diverged so far that their units cannot be compared.
    """
    engine, setup, graph = run.engine, run.setup, run.setup.graphs[method]
    run.observer.on_phase(
        f"seed {run.seed}, {method}, round {round}: merging",
        share_done(setup.config, run.seed, method, round, 0),
    )
    inputs = merge_round(run, graph, shards, round)
    try:
        variables, permutations = between(engine.merger, standing.state.variables, inputs)
    except NotFinite as error:
        raise Diverged(str(error)) from error
    state = standing.state._replace(variables=variables)
    if setup.config.optimizer_after_merge == "fresh":
        state = engine.fresh(state)
    bytes_sent = sent(METHODS[method], graph, round - 1, 1, setup.abstract[0])
    return Standing(state, standing.kept, permutations, standing.bytes_sent + bytes_sent)


def after_gossip(
    run: SeedRun, method: str, standing: Standing, shards: Shards, round: int
) -> Standing:
    """Counts what was sent in a round's steps; recomputes the running statistics if asked for."""
    config, setup = run.setup.config, run.setup
    steps = config.epochs_per_round * shards.steps
    first = (round - 1) * steps
    bytes_sent = sent(METHODS[method], setup.graphs[method], first, steps, setup.abstract[0])
    state = standing.state
    if config.recompute_statistics:
        batches = statistics_batches(run, shards, round)
        state = state._replace(variables=run.engine.merger.recompute(state.variables, batches))
    return standing._replace(state=state, bytes_sent=standing.bytes_sent + bytes_sent)


def train(run: SeedRun, epoch: Epoch, standing: Standing, method: str, round: int) -> Standing:
    """Trains every agent for a stretch of epochs.

    Raises:
      Diverged: if an agent's loss is no longer finite, or its parameters are not.
    """
    engine, config, setup = run.engine, run.setup.config, run.setup
    epochs = config.epochs_per_round if round else config.pretrain_epochs
    first = config.pretrain_epochs + (round - 1) * config.epochs_per_round if round else 0
    steps = setup.epoch_examples[min(round, 1)] // setup.batch_size
    images = config.agents * steps * setup.batch_size
    for number in range(epochs):
        state = standing.state._replace(loss=jnp.zeros_like(standing.state.loss))
        with engine.stopwatch.measure("train") as timer:
            state, kept = epoch(state, standing.kept, first + number)
            finite = engine.finite(state.variables)
            losses, diverged, finite = jax.device_get((state.loss, state.diverged, finite))
        check_finite(diverged, finite)
        loss, speed = float(losses.mean()) / steps, images / timer.seconds
        standing = standing._replace(
            state=state, kept=kept, train_loss=loss, images_per_second=speed
        )
        run.observer.on_phase(
            f"seed {run.seed}, {method}, round {round}, epoch {number + 1} of {epochs}: loss "
            f"{loss:.3f}, {speed:,.0f} images/s",
            share_done(config, run.seed, method, round, number + 1),
        )
    return standing


def share_done(config: Config, seed: int, method: str, round: int, epoch: int) -> float:
    """The share of the whole run's epochs, 0 to 1, that have ended with this one of a round."""
    of_method = config.rounds * config.epochs_per_round
    of_seed = config.pretrain_epochs + len(config.methods) * of_method
    ended = config.seeds.index(seed) * of_seed + epoch
    if round:
        ended += config.pretrain_epochs + config.methods.index(method) * of_method
        ended += (round - 1) * config.epochs_per_round
    return ended / max(1, of_seed * len(config.seeds))


class Diverged(ValueError):
    """The training loss, or a parameter, is no longer finite."""


def check_finite(diverged: Int[np.ndarray, "agents"], finite: Bool[np.ndarray, "agents"]) -> None:
    """Raises `Diverged`, which names the first agent, and its step, whose loss went astray.

    The last step of an epoch has no loss after it: it shows in the parameters alone.
    """
    if (diverged >= 0).any():
        agent = int(np.argmin(np.where(diverged >= 0, diverged, np.iinfo(np.int32).max)))
        raise Diverged(
            f"The training loss of agent {agent} was not finite at step "
            f"{diverged[agent] + 1}: a smaller learning_rate is needed (steps count from 1)."
        )
    if not finite.all():
        raise Diverged(
            f"The parameters of agent {int(finite.argmin())} are not finite after the last step of "
            "an epoch: a smaller learning_rate is needed."
        )


def merge_round(run: SeedRun, graph: Topology, shards: Shards, round: int) -> MergeRound:
    """Chooses the neighbours and the images of a merge round, counted from 1."""
    config = run.setup.config
    sources, weights = neighbor_slots(graph, round - 1)
    common = config.matching_data == "shared" or config.merge_frame == "first"
    matching = common_batches if common else own_batches
    statistics = statistics_batches(run, shards, round) if config.recompute_statistics else None
    return MergeRound(
        sources=sources,
        weights=weights,
        matching=matching(run.setup, shards, round_key(run, round), config.matching_images),
        statistics=statistics,
        first_frame=config.merge_frame == "first",
        key=round_key(run, round),
    )


def statistics_batches(run: SeedRun, shards: Shards, round: int) -> Batches:
    """The images from which a round's statistics are recomputed: own ones, or shared by all."""
    config = run.setup.config
    batches = common_batches if config.matching_data == "shared" else own_batches
    return batches(run.setup, shards, round_key(run, round), config.statistics_images)


def round_key(run: SeedRun, round: int) -> Key:
    """Drives all that is random in a merge round, counted from 1."""
    return jax.random.fold_in(run.keys.merge, round)


def own_batches(setup: Setup, shards: Shards, key: Key, number: int) -> Batches:
    """Up to so many of each agent's own images, drawn anew for each key."""
    batches, size = split_evenly(min(number, shards.examples))
    order = epoch_order(
        key, 0, setup.config.agents, shards.examples, batches, size, setup.execution.lanes
    )
    return Batches(spread(setup.execution, order), shards.images)


def common_batches(setup: Setup, shards: Shards, key: Key, number: int) -> Batches:
    """Up to so many images that are the same for all: of all agents, or agent 0's own."""
    agents = setup.config.agents
    pool = shards.examples * (agents if setup.config.matching_data == "shared" else 1)
    batches, size = split_evenly(min(number, pool))
    images = shards.images[jax.random.permutation(key, pool)[: batches * size]]
    rows = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
    rows = np.broadcast_to(rows, (agents, batches, size))
    return Batches(spread(setup.execution, rows), replicate(setup.execution, images))


def split_evenly(number: int) -> tuple[int, int]:
    """The number of batches, and their size, for so many images."""
    batches = -(-number // FORWARD_BATCH)
    return batches, number // batches


def measure(run: SeedRun, standing: Standing, method: str, phase: Phase, round: int) -> Row:
    """Evaluates every agent; the row that says where the run stands."""
    engine, config = run.engine, run.setup.config
    variables = standing.state.variables
    with engine.stopwatch.measure("evaluate"):
        score = jax.device_get(engine.evaluate(variables, engine.tests))
        distance = float(engine.consensus_distance(variables))
    tests = int((engine.tests[1] >= 0).sum())
    accuracy = score.correct / tests
    rounds_trained = round - (phase == "merge")
    return Row(
        method=method,
        seed=run.seed,
        round=round,
        epoch=config.pretrain_epochs + rounds_trained * config.epochs_per_round,
        phase=phase,
        test_accuracy=float(accuracy.mean()),
        test_accuracy_std=float(accuracy.std()),
        test_accuracy_agents=accuracy.tolist(),
        test_loss=float(score.loss.mean()) / tests,
        train_loss=standing.train_loss,
        consensus_distance=distance,
        bytes_sent=standing.bytes_sent,
        images_per_second=standing.images_per_second,
        seconds=engine.stopwatch.take(),
    )
