"""The compiled parts of a run: built once, used by every seed, method and round."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
from dimat_jax.datasets import Data
from dimat_jax.execution.forms import Update, lift, map_agents, repeat
from dimat_jax.execution.placement import AGENTS, place, replicate, shard
from dimat_jax.execution.products import multiplying
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import Merger, make_merger
from dimat_jax.simulation.examples import Shards, some_tests
from dimat_jax.simulation.mean_network import mean_evaluation
from dimat_jax.simulation.measure import consensus_distance, is_finite
from dimat_jax.simulation.setup import OWN, Setup
from dimat_jax.symmetries import permute
from dimat_jax.training.evaluation import Score, Tests, evaluate_update, zero_score
from dimat_jax.training.local import Micro, epoch_order, train_update
from dimat_jax.training.optimizers import make_schedule, own_hyperparams, round_factor, warmup
from dimat_jax.training.state import AgentState, init_population
from dimat_jax.types import Batch, Key, Permutations, Task, Variables


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
      evaluate_mean: ``(variables, pool) -> score``, see `dimat_jax.simulation.mean_network`.
      tests: the test examples of the evaluations along the way.
      all_tests: all of them.
      stopwatch: where the time goes.
    """

    init: Callable[[Key], AgentState]
    train: Callable[[AgentState, Shards, Key, int], AgentState]
    gossip: Callable[[Gossip], GossipParts]
    evaluate: Callable[[Variables, Tests], Score]
    fresh: Callable[[AgentState], AgentState]
    consensus_distance: Callable[[Variables], Float[Array, ""]]
    aligned_distance: Callable[[Permutations, Variables], Float[Array, ""]]
    finite: Callable[[Variables], Bool[Array, "lanes"]]
    merger: Merger
    evaluate_mean: Callable[[Variables, Batches], Score]
    tests: Tests
    all_tests: Tests
    stopwatch: Stopwatch


def make_parts(setup: Setup, stopwatch: Stopwatch | None = None) -> Parts:
    """Builds the parts; each is compiled when it is first used, as the stopwatch says."""
    config, execution, task, data = setup.config, setup.execution, setup.task, setup.data
    stopwatch = stopwatch or Stopwatch()
    optimizer = setup.optimizer
    prepare = prepared(data)

    order = make_order(setup, stopwatch)
    training = repeat(execution, local_update(setup), stopwatch, AGENTS)
    gradient = gradient_update(trained_task(setup), prepare.training, micro_of(setup))
    gradient_step = lift(execution, gradient, stopwatch, AGENTS)

    def train(state: AgentState, shards: Shards, key: Key, epoch: int) -> AgentState:
        return training(state, order(shards, key, epoch), shards.examples, shards.steps)

    @functools.cache
    def gossip(part: Gossip) -> GossipParts:
        schedule = schedule_of(setup, gossip=True)
        running = gossip_training(execution, part, schedule, gradient_step, stopwatch)
        return make_gossip_parts(setup, part, running, order, stopwatch)

    evaluating = repeat(execution, evaluate_update(task, prepare.always, setup.classes), stopwatch)
    initialise = map_agents(
        execution,
        lambda params, agent: own_hyperparams(optimizer.init(params), agent, execution.agents),
        stopwatch,
    )
    agents = place(execution, np.arange(execution.agents, dtype=np.int32))

    def evaluate(variables: Variables, tests: Tests) -> Score:
        score = zero_score(execution.all_lanes, setup.metrics, setup.classes)
        score = shard(execution, score)
        return evaluating(score, variables, replicate(execution, tests), len(tests.weights))

    distance = functools.partial(consensus_distance, agents=execution.agents)

    def aligned_distance(permutations: Permutations, variables: Variables) -> Float[Array, ""]:
        return distance(
            jax.vmap(functools.partial(permute, setup.symmetries))(permutations, variables)
        )

    merger = make_merger(
        execution, task, setup.symmetries, prepare.always, setup.abstract, stopwatch
    )
    tests = some_tests(data, config.test_examples)
    return Parts(
        init=make_init(setup, optimizer, stopwatch),
        train=train,
        gossip=gossip,
        evaluate=evaluate,
        fresh=lambda state: state._replace(optimizer=initialise(state.variables["params"], agents)),
        consensus_distance=compiled(jax.jit(distance), stopwatch),
        aligned_distance=compiled(jax.jit(aligned_distance), stopwatch),
        finite=map_agents(execution, is_finite, stopwatch),
        merger=merger,
        evaluate_mean=mean_evaluation(setup, merger.recompute, evaluating, tests, stopwatch),
        tests=tests,
        all_tests=some_tests(data, None),
        stopwatch=stopwatch,
    )


class Prepared(NamedTuple):
    """What is done to a batch of examples as stored: in training, and always."""

    training: Callable[[Key, Batch], Batch]
    always: Callable[[Batch], Batch]


def prepared(data: Data) -> Prepared:
    """What a data set does to its batches; nothing where it says nothing."""

    def always(batch: Batch) -> Batch:
        return batch if data.prepare is None else data.prepare(batch)

    def training(key: Key, batch: Batch) -> Batch:
        return always(batch if data.augment is None else data.augment(key, batch))

    return Prepared(training, always)


def trained_task(setup: Setup) -> Task:
    """The task as the devices compute its gradient."""
    execution = setup.execution
    return multiplying(setup.task, execution.recompute) if execution.products else setup.task


def local_update(setup: Setup) -> Update:
    """One step of one agent by itself, see `train_update`."""
    return train_update(
        trained_task(setup),
        setup.optimizer,
        schedule_of(setup),
        prepared(setup.data).training,
        setup.config.proximal,
        micro_of(setup),
    )


def micro_of(setup: Setup) -> Micro | None:
    """How a batch is gone through: by Python where it loops over steps, and for the same reason."""
    size = setup.config.micro_batch
    return None if size is None else Micro(size, setup.execution.sequential)


def make_init(
    setup: Setup, optimizer: optax.GradientTransformation, stopwatch: Stopwatch
) -> Callable[[Key], AgentState]:
    """Builds `Parts.init`: computed on one device, then spread over all."""
    agents, batch = setup.execution.agents, setup.abstract[1]
    same = setup.config.init == "same"

    def initial(key: Key) -> AgentState:
        return init_population(setup.task, optimizer, key, agents, batch, same)

    # Compiling each leaf's random generator is all the work that initial weights are: on CPU, code
    # that need not be fast takes a fifth of it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    initialise = compiled(jax.jit(initial, compiler_options=options), stopwatch)
    return lambda key: place(setup.execution, initialise(key))


def make_order(setup: Setup, stopwatch: Stopwatch) -> Callable[[Shards, Key, int], Any]:
    """Builds ``(shards, key, epoch) -> order``, see `epoch_order`, compiled once for its shapes."""
    execution = setup.execution

    @functools.cache
    def ordering(examples: int, steps: int) -> Callable[..., Array]:
        def order(key: Key, epoch: Int[Array, ""]) -> Array:
            sizes = execution.agents, examples, steps, setup.batch_size
            return epoch_order(key, epoch, *sizes, execution.lanes, execution.all_lanes)

        return compiled(jax.jit(order), stopwatch)

    def order(shards: Shards, key: Key, epoch: int) -> Any:
        rows = ordering(shards.number, shards.steps)(key, np.int32(epoch))
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
        rows = order(shards, key, epoch)
        return running(agents, state, rows, shards.examples, graph, shards.steps)

    return GossipParts(start, resuming, train)


def schedule_of(setup: Setup, gossip: bool = False) -> optax.Schedule:
    """Step → learning rate of a run, see `make_schedule`.

    An optimizer that was handed over has its own: its steps are multiplied by 1, but for
    ``round_schedule``.

    Args:
      setup: what the run works with.
      gossip: whether of a method that exchanges something in every step, and steps by itself.
    """
    config = setup.config
    own = config.optimizer == OWN and not gossip
    before, after = (examples // setup.batch_size for examples in setup.epoch_examples)
    first, epochs = config.pretrain_epochs * before, config.epochs_per_round
    name, rate = ("constant", 1.0) if own else (config.schedule, setup.learning_rate)
    factors = [make_schedule(name, rate, first, after, config.rounds * epochs, gossip)]
    if config.warmup_epochs and not own:
        factors.append(warmup(config.warmup_epochs * (before if config.pretrain_epochs else after)))
    if config.round_schedule != "constant":
        factors.append(round_factor(config.round_schedule, first, epochs * after, config.rounds))
    return lambda step: math.prod(factor(step) for factor in factors)
