"""The compiled parts of a run: built once, used by every seed, method and round."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from dimat_jax.algorithms import Exchange, Gossip
from dimat_jax.algorithms.stepping import (
    GossipState,
    gossip_resume,
    gossip_start,
    gossip_training,
    gradient_update,
)
from dimat_jax.datasets import channel_statistics, normalize
from dimat_jax.execution.forms import lift, map_agents, repeat
from dimat_jax.execution.placement import AGENTS, place, replicate, shard
from dimat_jax.execution.products import multiplying
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import Merger, make_merger
from dimat_jax.simulation.images import Shards, some_tests
from dimat_jax.simulation.mean_network import mean_evaluation
from dimat_jax.simulation.measure import consensus_distance, is_finite
from dimat_jax.simulation.setup import Setup
from dimat_jax.symmetries import permute
from dimat_jax.training.evaluation import Score, evaluate_update, zero_score
from dimat_jax.training.local import epoch_order, train_update
from dimat_jax.training.optimizers import OPTIMIZERS, make_schedule, round_factor
from dimat_jax.training.state import AgentState, init_population
from dimat_jax.types import Key, Permutations, Variables


class GossipParts(NamedTuple):
    """The compiled parts of what a method does within a training step.

    Attributes:
      start: ``(agents, graph) -> (agents, state)``: the agents, and the method's state, before its
        first step on a graph, whose rounds are stacked ``[period, ...]``.
      resume: ``(agents, state, graph) -> state`` after a merge has changed the agents' parameters.
      train: ``(agents, state, graph, shards, key, epoch) -> (agents, state)``: one epoch of every
        agent.
    """

    start: Callable[[AgentState, Exchange], tuple[AgentState, GossipState]]
    resume: Callable[[AgentState, GossipState, Exchange], GossipState]
    train: Callable[..., tuple[AgentState, GossipState]]


class Parts(NamedTuple):
    """The compiled parts of a run.

    Attributes:
      init: ``(key) -> state`` of every agent.
      train: ``(state, shards, key, epoch) -> state``: one epoch of every agent, each by itself.
        Does not wait.
      gossip: ``(gossip) -> parts`` of a method that exchanges something in every step.
      evaluate: ``(variables, tests) -> score`` of every agent.
      fresh: ``(state) -> state`` with new optimizer states.
      consensus_distance: ``(variables) -> []``, see `dimat_jax.simulation.measure`.
      aligned_distance: ``(permutations, variables) -> []``, the same after these permutations.
      finite: ``(variables) -> [lanes]``, likewise.
      merger: the parts of a merge round.
      mean_correct: ``(frame, variables, pool) -> [classes]``, see
        `dimat_jax.simulation.mean_network`.
      tests: the test images of the evaluations along the way, in batches.
      all_tests: all test images.
      stopwatch: where the time goes.
    """

    init: Callable[[Key], AgentState]
    train: Callable[[AgentState, Shards, Key, int], AgentState]
    gossip: Callable[[Gossip], GossipParts]
    evaluate: Callable[[Variables, tuple[np.ndarray, np.ndarray]], Score]
    fresh: Callable[[AgentState], AgentState]
    consensus_distance: Callable[[Variables], Float[Array, ""]]
    aligned_distance: Callable[[Permutations, Variables], Float[Array, ""]]
    finite: Callable[[Variables], Bool[Array, "lanes"]]
    merger: Merger
    mean_correct: Callable[[Permutations, Variables, Batches], Int[np.ndarray, "classes"]]
    tests: tuple[np.ndarray, np.ndarray]
    all_tests: tuple[np.ndarray, np.ndarray]
    stopwatch: Stopwatch


def make_parts(setup: Setup, tell: Callable[[str], object] = lambda part: None) -> Parts:
    """Builds the parts; each is compiled when it is first used. ``tell`` as in `Stopwatch`."""
    config, execution, model = setup.config, setup.execution, setup.model
    stopwatch = Stopwatch(tell)
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

    order = make_order(setup, stopwatch)
    trained = multiplying(model) if execution.products else model
    update = train_update(trained, optimizer, schedule_of(setup), prepare, config.proximal)
    training = repeat(execution, update, stopwatch, AGENTS)
    gradient_step = lift(execution, gradient_update(trained, prepare), stopwatch, AGENTS)

    def train(state: AgentState, shards: Shards, key: Key, epoch: int) -> AgentState:
        resident = shards.images, shards.labels
        return training(state, order(shards, key, epoch), resident, shards.steps)

    @functools.cache
    def gossip(part: Gossip) -> GossipParts:
        schedule = schedule_of(setup, gossip=True)
        running = gossip_training(execution, part, schedule, gradient_step, stopwatch)
        return make_gossip_parts(setup, part, running, order, stopwatch)

    evaluating = repeat(execution, evaluate_update(model, prepare_test), stopwatch)
    initialise = map_agents(execution, optimizer.init, stopwatch)

    def evaluate(variables: Variables, tests: tuple[np.ndarray, np.ndarray]) -> Score:
        resident = replicate(execution, tests)
        score = shard(execution, zero_score(execution.all_lanes, setup.dataset.num_classes))
        return evaluating(score, variables, resident, len(tests[0]))

    distance = functools.partial(consensus_distance, agents=execution.agents)

    def aligned_distance(permutations: Permutations, variables: Variables) -> Float[Array, ""]:
        return distance(
            jax.vmap(functools.partial(permute, setup.symmetries))(permutations, variables)
        )

    merger = make_merger(
        execution, model, setup.symmetries, prepare_test, setup.abstract, stopwatch
    )
    tests = some_tests(setup.dataset, config.test_examples)
    return Parts(
        init=make_init(setup, optimizer, stopwatch),
        train=train,
        gossip=gossip,
        evaluate=evaluate,
        fresh=lambda state: state._replace(optimizer=initialise(state.variables["params"])),
        consensus_distance=compiled(jax.jit(distance), stopwatch),
        aligned_distance=compiled(jax.jit(aligned_distance), stopwatch),
        finite=map_agents(execution, is_finite, stopwatch),
        merger=merger,
        mean_correct=mean_evaluation(setup, merger.recompute, evaluating, tests, stopwatch),
        tests=tests,
        all_tests=some_tests(setup.dataset, None),
        stopwatch=stopwatch,
    )


def make_init(
    setup: Setup, optimizer: optax.GradientTransformation, stopwatch: Stopwatch
) -> Callable[[Key], AgentState]:
    """Builds `Parts.init`: computed on one device, then spread over all."""
    agents, image_shape = setup.execution.agents, setup.dataset.train_images.shape[1:]
    same = setup.config.init == "same"

    def initial(key: Key) -> AgentState:
        return init_population(setup.model, optimizer, key, agents, image_shape, same)

    # Compiling each leaf's random generator is all the work that initial weights are: on CPU, code
    # that need not be fast takes a fifth of it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    initialise = compiled(jax.jit(initial, compiler_options=options), stopwatch)
    return lambda key: place(setup.execution, initialise(key))


def make_order(setup: Setup, stopwatch: Stopwatch) -> Callable[[Shards, Key, int], Array]:
    """Builds ``(shards, key, epoch) -> order``, see `epoch_order`, compiled once for its shapes."""
    execution = setup.execution

    @functools.cache
    def ordering(examples: int, steps: int) -> Callable[..., Array]:
        def order(key: Key, epoch: Int[Array, ""]) -> Array:
            sizes = execution.agents, examples, steps, setup.batch_size
            return epoch_order(key, epoch, *sizes, execution.lanes, execution.all_lanes)

        return compiled(jax.jit(order), stopwatch)

    def order(shards: Shards, key: Key, epoch: int) -> Array:
        rows = ordering(shards.examples, shards.steps)(key, np.int32(epoch))
        return shard(execution, rows)

    return order


def make_gossip_parts(
    setup: Setup,
    gossip: Gossip,
    running: Callable[..., tuple[AgentState, GossipState]],
    order: Callable[[Shards, Key, int], Array],
    stopwatch: Stopwatch,
) -> GossipParts:
    """Builds the parts of a gossip method on ``running``, its steps."""
    of_agents = NamedSharding(setup.execution.mesh, AGENTS)

    def of_all(function: Callable) -> Callable:
        bound = functools.partial(function, gossip)
        return compiled(jax.jit(bound, out_shardings=of_agents), stopwatch)

    starting, resuming = of_all(gossip_start), of_all(gossip_resume)

    def start(agents: AgentState, graph: Exchange) -> tuple[AgentState, GossipState]:
        # Copied, because a method may keep the same array twice, and both will be donated.
        return jax.tree.map(jnp.copy, starting(agents, graph))

    def train(agents, state, graph, shards, key, epoch):
        resident, rows = (shards.images, shards.labels), order(shards, key, epoch)
        return running(agents, state, rows, resident, graph, shards.steps)

    return GossipParts(start, resuming, train)


def schedule_of(setup: Setup, gossip: bool = False) -> optax.Schedule:
    """Step → learning rate of a run, see `make_schedule`."""
    config = setup.config
    before, after = (examples // setup.batch_size for examples in setup.epoch_examples)
    first, epochs = config.pretrain_epochs * before, config.epochs_per_round
    schedule = make_schedule(
        config.schedule, setup.learning_rate, first, after, config.rounds * epochs, gossip
    )
    if config.round_schedule == "constant":
        return schedule
    factor = round_factor(config.round_schedule, first, epochs * after, config.rounds)
    return lambda step: factor(step) * schedule(step)
