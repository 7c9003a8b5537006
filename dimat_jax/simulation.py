"""The run: train all agents apart, then merge and train on by each method, round by round."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dimat_jax.algorithms import METHODS, MergeRound
from dimat_jax.communication import merge_bytes
from dimat_jax.config import Config
from dimat_jax.datasets import Dataset
from dimat_jax.engine import Engine, Shards, make_engine, place_shards
from dimat_jax.merger import Batches
from dimat_jax.metrics import PRETRAINING, Phase, Row
from dimat_jax.population import FORWARD_BATCH, prepare_devices, replicate, spread
from dimat_jax.setup import Keys, Setup, prepare, seed_keys
from dimat_jax.symmetries import Symmetries
from dimat_jax.topology import Topology, neighbor_slots
from dimat_jax.training import AgentState, epoch_order
from dimat_jax.types import Key, Model, Permutations, Variables


class Final(NamedTuple):
    """Where one method ends for one seed.

    Attributes:
      variables: stacked ``[agents, ...]``.
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
      variables: stacked ``[agents, ...]``, of the first method and the last seed.
      symmetries: the model's permutation groups.
      finals: (method, seed) → where it ended.
      setup: what the run worked with, its data set among it.
    """

    history: list[Row]
    variables: Variables
    symmetries: Symmetries
    finals: dict[tuple[str, int], Final]
    setup: Setup


class Observer(NamedTuple):
    """Who is told of a run while it goes on.

    Attributes:
      on_start: ``on_start(setup)``, before anything compiles.
      on_phase: ``on_phase(label, done)`` when a stretch of work ends: what it was, and the share of
        the whole run that is done, 0 to 1.
      on_row: ``on_row(row)`` for every row of the history.
    """

    on_start: Callable[[Setup], None] = lambda setup: None
    on_phase: Callable[[str, float], None] = lambda label, done: None
    on_row: Callable[[Row], None] = lambda row: None


def run(
    config: Config,
    model: Model | None,
    dataset: Dataset | None,
    topology: Topology | None,
    observer: Observer,
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Nothing is written: that is `dimat_jax.runs.simulate`, whose arguments these are.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles; if a loss is
        no longer finite, with the agent and the step.
    """
    prepare_devices(config.agents, config.devices)
    setup = prepare(config, model, dataset, topology)
    observer.on_start(setup)
    engine = make_engine(setup)
    history: list[Row] = []
    finals: dict[tuple[str, int], Final] = {}

    def record(row: Row) -> None:
        history.append(row)
        observer.on_row(row)

    for seed in setup.config.seeds:
        finals |= run_seed(setup, engine, seed, record, observer)
    last = finals[setup.config.methods[0], setup.config.seeds[-1]]
    return Result(history, last.variables, setup.symmetries, finals, setup)


class SeedRun(NamedTuple):
    """What is the same throughout one seed's run."""

    setup: Setup
    engine: Engine
    seed: int
    keys: Keys
    record: Callable[[Row], None]
    observer: Observer


class Trained(NamedTuple):
    """What a stretch of training gives: the state, and two figures of its last epoch."""

    state: AgentState
    train_loss: float | None
    images_per_second: float | None


def run_seed(
    setup: Setup, engine: Engine, seed: int, record: Callable[[Row], None], observer: Observer
) -> dict[tuple[str, int], Final]:
    """Pretrains the agents of one seed, and goes on from there by each method."""
    run = SeedRun(setup, engine, seed, seed_keys(seed), record, observer)
    state = engine.init(run.keys.init)
    trained = train(run, state, place_shards(setup, seed, 0), PRETRAINING, 0)
    record(measure(run, trained, PRETRAINING, "pretrain", 0, 0.0))
    shards = place_shards(setup, seed, 1)
    return {
        (method, seed): run_method(run, method, trained.state, shards)
        for method in setup.config.methods
    }


def run_method(run: SeedRun, method: str, state: AgentState, shards: Shards) -> Final:
    """Merges and trains on, round by round; ``state`` is left as it is for the next method."""
    setup, engine, config = run.setup, run.engine, run.setup.config
    state = jax.tree.map(jnp.copy, state)
    bytes_sent, permutations = 0.0, []
    for round in range(1, config.rounds + 1):
        inputs = merge_round(run, shards, round)
        variables, permutations = METHODS[method].merge(engine.merger, state.variables, inputs)
        state = state._replace(variables=variables)
        if config.optimizer_after_merge == "fresh":
            state = engine.fresh(state)
        bytes_sent += merge_bytes(setup.topology, round - 1, setup.abstract[0])
        merged = Trained(state, None, None)
        run.record(measure(run, merged, method, "merge", round, bytes_sent))
        trained = train(run, state, shards, method, round)
        run.record(measure(run, trained, method, "train", round, bytes_sent))
        state = trained.state
    correct = engine.evaluate(state.variables, engine.all_tests).correct
    return Final(
        state.variables, np.asarray(correct) / len(setup.dataset.test_labels), permutations
    )


def train(run: SeedRun, state: AgentState, shards: Shards, method: str, round: int) -> Trained:
    """Trains every agent for a stretch of epochs.

    Raises:
      ValueError: if an agent's loss is no longer finite.
    """
    engine, config = run.engine, run.setup.config
    epochs = config.epochs_per_round if round else config.pretrain_epochs
    first = config.pretrain_epochs + (round - 1) * config.epochs_per_round if round else 0
    images = config.agents * shards.steps * run.setup.batch_size
    trained = Trained(state, None, None)
    for epoch in range(epochs):
        state = trained.state._replace(loss=jnp.zeros_like(state.loss))
        with engine.stopwatch.measure("train") as timer:
            state = engine.train(state, shards, run.keys.order, first + epoch)
            losses, diverged = jax.device_get((state.loss, state.diverged))
        check_finite(diverged)
        trained = Trained(state, float(losses.mean()) / shards.steps, images / timer.seconds)
        run.observer.on_phase(
            f"seed {run.seed}, {method}, round {round}, epoch {epoch + 1} of {epochs}: loss "
            f"{trained.train_loss:.3f}, {trained.images_per_second:,.0f} images/s",
            share_done(config, run.seed, method, round, epoch + 1),
        )
    return trained


def share_done(config: Config, seed: int, method: str, round: int, epoch: int) -> float:
    """The share of the whole run's epochs, 0 to 1, that have ended with this one of a round."""
    of_method = config.rounds * config.epochs_per_round
    of_seed = config.pretrain_epochs + len(config.methods) * of_method
    ended = config.seeds.index(seed) * of_seed + epoch
    if round:
        ended += config.pretrain_epochs + config.methods.index(method) * of_method
        ended += (round - 1) * config.epochs_per_round
    return ended / (of_seed * len(config.seeds))


def check_finite(diverged: Int[np.ndarray, "agents"]) -> None:
    """Raises a `ValueError` that names the first agent, and its step, whose loss went astray."""
    if (diverged >= 0).any():
        agent = int(np.argmin(np.where(diverged >= 0, diverged, np.iinfo(np.int32).max)))
        raise ValueError(
            f"The training loss of agent {agent} was not finite at step {diverged[agent]}: "
            "a smaller learning_rate is needed."
        )


def merge_round(run: SeedRun, shards: Shards, round: int) -> MergeRound:
    """Chooses the neighbours and the images of a merge round, counted from 1."""
    config = run.setup.config
    key = jax.random.fold_in(run.keys.merge, round)
    sources, weights = neighbor_slots(run.setup.topology, round - 1)
    common = config.matching_data == "shared" or config.merge_frame == "first"
    matching = common_batches if common else own_batches
    return MergeRound(
        sources=sources,
        weights=weights,
        matching=matching(run.setup, shards, key, config.matching_images),
        statistics=own_batches(run.setup, shards, key, config.statistics_images),
        first_frame=config.merge_frame == "first",
    )


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


def measure(
    run: SeedRun, trained: Trained, method: str, phase: Phase, round: int, bytes_sent: float
) -> Row:
    """Evaluates every agent; the row that says where the run stands."""
    engine, config = run.engine, run.setup.config
    variables = trained.state.variables
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
        train_loss=trained.train_loss,
        consensus_distance=distance,
        bytes_sent=bytes_sent,
        images_per_second=trained.images_per_second,
        seconds=engine.stopwatch.take(),
    )
