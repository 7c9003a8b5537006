"""The compiled parts of a run: built once, used by every seed, method and round."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt8

from dimat_jax.algorithms import Exchange, Gossip
from dimat_jax.algorithms.stepping import gossip_exchange, gossip_start, gradient_update
from dimat_jax.datasets import Dataset, channel_statistics, normalize
from dimat_jax.execution.population import (
    AGENTS,
    FORWARD_BATCH,
    alternate,
    map_agents,
    repeat,
    replicate,
    spread,
)
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.merger import Merger, make_merger
from dimat_jax.simulation.setup import Setup
from dimat_jax.training.local import (
    OPTIMIZERS,
    AgentState,
    Score,
    epoch_order,
    evaluate_update,
    init_population,
    test_batches,
    train_update,
    zero_score,
)
from dimat_jax.types import Key, Variables

DECAY = 0.981
"""Of the learning rate in an epoch, in the published baselines (arXiv 2404.08079)."""


class Shards(NamedTuple):
    """The agents' training examples, where they lie on the devices.

    Attributes:
      images: uint8 ``[agents * examples, height, width, channels]``; each device holds its agents'.
      labels: int32 ``[agents * examples]``.
      examples: rows of each agent.
      steps: batches of an epoch.
    """

    images: UInt8[Array, "rows height width channels"]
    labels: Int[Array, "rows"]
    examples: int
    steps: int


class Gossiping(NamedTuple):
    """The compiled parts of a gossip method.

    Attributes:
      start: ``(state, graph) -> (state, kept)``: the agents, and the method's own state, before
        its first step on a graph, whose rounds are stacked ``[period, ...]``.
      train: ``(state, kept, graph, shards, key, epoch) -> (state, kept)``: one epoch of every
        agent.
    """

    start: Callable[[AgentState, Exchange], tuple[AgentState, Any]]
    train: Callable[[AgentState, Any, Exchange, Shards, Key, int], tuple[AgentState, Any]]


class Engine(NamedTuple):
    """The compiled parts of a run.

    Attributes:
      init: ``(key) -> state`` of every agent.
      train: ``(state, shards, key, epoch) -> state``: one epoch of every agent, each by itself.
        Does not wait.
      gossip: ``(method) -> parts`` of a method that exchanges something in every step.
      evaluate: ``(variables, tests) -> score`` of every agent.
      fresh: ``(state) -> state`` with new optimizer states.
      consensus_distance: ``(variables) -> []``, see `consensus_distance`.
      finite: ``(variables) -> [agents]``, see `is_finite`.
      merger: the parts of a merge round.
      tests: the test images of the evaluations along the way, on every device.
      all_tests: all test images.
      stopwatch: where the time goes.
    """

    init: Callable[[Key], AgentState]
    train: Callable[[AgentState, Shards, Key, int], AgentState]
    gossip: Callable[[Gossip], Gossiping]
    evaluate: Callable[[Variables, Any], Score]
    fresh: Callable[[AgentState], AgentState]
    consensus_distance: Callable[[Variables], Float[Array, ""]]
    finite: Callable[[Variables], Bool[Array, "agents"]]
    merger: Merger
    tests: tuple[np.ndarray, np.ndarray]
    all_tests: tuple[np.ndarray, np.ndarray]
    stopwatch: Stopwatch


def make_engine(setup: Setup) -> Engine:
    """Builds the parts; each is compiled when it is first used."""
    config, execution, model = setup.config, setup.execution, setup.model
    stopwatch = Stopwatch()
    optimizer = OPTIMIZERS[config.optimizer]()
    mean, std = (
        jnp.asarray(x, jnp.result_type(float))
        for x in channel_statistics(setup.dataset.train_images)
    )
    augment = setup.augment

    def prepare_test(images):
        return normalize(images, mean, std)

    def prepare(key, images):
        return prepare_test(augment(key, images))

    schedule, order = make_schedule(setup), make_order(setup, stopwatch)
    update = train_update(model, optimizer, schedule, prepare)
    training = repeat(execution, update, stopwatch, AGENTS)
    alternating = alternate(execution, gradient_update(model, prepare), stopwatch, AGENTS)

    def train(state: AgentState, shards: Shards, key: Key, epoch: int) -> AgentState:
        resident = shards.images, shards.labels
        return training(state, order(shards, key, epoch), resident, shards.steps)

    @functools.cache
    def gossip(method: Gossip) -> Gossiping:
        running = alternating(gossip_exchange(method, make_schedule(setup, gossip=True)))
        return make_gossiping(setup, method, running, order, stopwatch)

    evaluating = repeat(execution, evaluate_update(model, prepare_test), stopwatch)
    initialise = map_agents(execution, optimizer.init, stopwatch)

    def evaluate(variables: Variables, tests: tuple[np.ndarray, np.ndarray]) -> Score:
        resident = replicate(execution, tests)
        score = spread(execution, zero_score(execution.agents))
        return evaluating(score, variables, resident, len(tests[0]))

    return Engine(
        init=make_init(setup, optimizer, stopwatch),
        train=train,
        gossip=gossip,
        evaluate=evaluate,
        fresh=lambda state: state._replace(optimizer=initialise(state.variables["params"])),
        consensus_distance=jax.jit(consensus_distance),
        finite=map_agents(execution, is_finite, stopwatch),
        merger=make_merger(
            execution,
            model,
            setup.symmetries,
            prepare_test,
            setup.abstract,
            stopwatch,
            own_images=config.matching_data == "own" and config.merge_frame == "own",
            own_statistics=config.matching_data == "own",
        ),
        tests=some_tests(setup.dataset, config.test_examples),
        all_tests=some_tests(setup.dataset, None),
        stopwatch=stopwatch,
    )


def make_init(
    setup: Setup, optimizer: optax.GradientTransformation, stopwatch: Stopwatch
) -> Callable[[Key], AgentState]:
    """Builds `Engine.init`: computed on one device, then spread over all."""
    agents, image_shape = setup.execution.agents, setup.dataset.train_images.shape[1:]
    same = setup.config.init == "same"

    def initial(key: Key) -> AgentState:
        return init_population(setup.model, optimizer, key, agents, image_shape, same)

    # Compiling each leaf's random generator is all the work that initial weights are: on CPU, code
    # that need not be fast takes a fifth of it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    initialise = compiled(jax.jit(initial, compiler_options=options), stopwatch)
    return lambda key: spread(setup.execution, initialise(key))


def make_order(setup: Setup, stopwatch: Stopwatch) -> Callable[[Shards, Key, int], Array]:
    """Builds ``(shards, key, epoch) -> order``, see `epoch_order`, compiled once for its shapes."""
    agents, lanes = setup.execution.agents, setup.execution.lanes

    @functools.cache
    def ordering(examples: int, steps: int) -> Callable[..., Array]:
        def order(key: Key, epoch: Int[Array, ""]) -> Array:
            return epoch_order(key, epoch, agents, examples, steps, setup.batch_size, lanes)

        return compiled(jax.jit(order), stopwatch)

    def order(shards: Shards, key: Key, epoch: int) -> Array:
        rows = ordering(shards.examples, shards.steps)(key, np.int32(epoch))
        return spread(setup.execution, rows)

    return order


def make_gossiping(
    setup: Setup,
    method: Gossip,
    running: Callable[..., tuple[AgentState, Any]],
    order: Callable[[Shards, Key, int], Array],
    stopwatch: Stopwatch,
) -> Gossiping:
    """Builds the parts of a gossip method on ``running``, the lifted steps and exchanges."""
    execution = setup.execution
    beginning = jax.jit(
        functools.partial(gossip_start, method),
        out_shardings=NamedSharding(execution.mesh, AGENTS),
    )
    beginning = compiled(beginning, stopwatch)

    def start(state: AgentState, graph: Exchange) -> tuple[AgentState, Any]:
        # Copied, because a method may keep the same array twice, and both will be donated.
        return jax.tree.map(jnp.copy, beginning(state, replicate(execution, graph)))

    def train(state, kept, graph, shards, key, epoch):
        resident, rows = (shards.images, shards.labels), order(shards, key, epoch)
        points = jax.tree.leaves(state.optimizer.points)[0].shape[1]
        return running(state, kept, rows, resident, graph, points, shards.steps)

    return Gossiping(start, train)


def make_schedule(setup: Setup, gossip: bool = False) -> optax.Schedule:
    """Step → learning rate, over the whole run, pretraining included.

    Args:
      setup: what the run works with.
      gossip: whether of a method that exchanges something in every step.
    """
    config = setup.config
    before, after = (examples // setup.batch_size for examples in setup.epoch_examples)
    if config.schedule == "exponential" and gossip:
        first = config.pretrain_epochs * before
        return optax.exponential_decay(
            setup.learning_rate, max(1, after), DECAY, transition_begin=first, staircase=True
        )
    if config.schedule != "cosine":
        return optax.constant_schedule(setup.learning_rate)
    epochs = config.rounds * config.epochs_per_round
    steps = config.pretrain_epochs * before + epochs * after
    return optax.cosine_decay_schedule(setup.learning_rate, max(1, steps))


def some_tests(dataset: Dataset, number: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A fixed part of the test images, in batches: the same in every run, of every class."""
    rows = np.arange(len(dataset.test_labels))
    if number is not None and number < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:number])
    return test_batches(
        dataset.test_images[rows], dataset.test_labels[rows], min(FORWARD_BATCH, len(rows))
    )


def place_shards(setup: Setup, seed: int, part: int, pooled: bool = False) -> Shards:
    """Puts the agents' examples on their devices.

    Args:
      setup: what the run works with.
      seed: of the run.
      part: for pretraining (0) or the rounds (1).
      pooled: whether the examples of all agents are dealt out to them at random.
    """
    rows = setup.shards[seed][part]
    if pooled:
        rows = np.random.default_rng(seed).permutation(rows.ravel()).reshape(rows.shape)
    images = setup.dataset.train_images[rows.reshape(-1)]
    labels = setup.dataset.train_labels[rows.reshape(-1)]
    steps = setup.epoch_examples[part] // setup.batch_size
    images, labels = spread(setup.execution, (images, labels))
    return Shards(images, labels, rows.shape[1], steps)


def consensus_distance(variables: Variables) -> Float[Array, ""]:
    """How far agents are from their mean: √(1/n Σ_i ‖x_i − x̄‖²), over the parameters.

    Args:
      variables: stacked ``[agents, ...]``.
    """

    def squares(x):
        return jnp.sum((x - x.mean(0)) ** 2) / len(x)

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(variables["params"]))))


def is_finite(variables: Variables) -> Bool[Array, ""]:
    """Whether one agent's parameters, and the sum of their squares, are finite numbers."""
    return jnp.isfinite(sum(jnp.sum(x**2) for x in jax.tree.leaves(variables["params"])))
