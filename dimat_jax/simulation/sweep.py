"""Many trainings of one network at once: the agents' axis without any exchange."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.datasets.data import examples_of
from dimat_jax.execution.compile_cache import keep_compilations
from dimat_jax.execution.devices import prepare_devices
from dimat_jax.execution.forms import repeat
from dimat_jax.execution.placement import place, replicate, to_host
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.registry import check_number, expect
from dimat_jax.simulation.parts import make_parts, prepared, schedule_of
from dimat_jax.simulation.setup import Setup, prepare
from dimat_jax.simulation.state import seed_keys
from dimat_jax.training.evaluation import values_of
from dimat_jax.training.local import epoch_order, train_update
from dimat_jax.training.state import AgentState, init_population
from dimat_jax.types import Key, Model, Task


class Trial(NamedTuple):
    """One training of a sweep.

    Attributes:
      learning_rate: that it stepped by.
      seed: of its initial weights, data order and augmentation.
      train_loss: mean of its last epoch.
      measured: metric → its value on the test examples at the end, the loss among them.
    """

    learning_rate: float
    seed: int
    train_loss: float
    measured: dict[str, float]


def sweep(
    config: Config = Config(),
    *,
    learning_rate: Sequence[float],
    seed: Sequence[int] = (0,),
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    task: Task | None = None,
) -> list[Trial]:
    """Trains one network for every learning rate and seed, all of them at once.

    Each goes through the training examples (at most ``config.examples_per_agent`` of them) for
    ``config.pretrain_epochs`` epochs; those of one seed start from the same weights and see the
    same batches. Agents, graph, methods and rounds of the configuration are not looked at.

    Args:
      config: data, model, optimizer, batch size, epochs.
      learning_rate: the rates.
      seed: the seeds.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``.
      task: what is learned, instead of to classify by a model.

    Returns:
      A trial for each learning rate and seed, rates outermost. A training that diverged has losses
      that are not finite.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles.
    """
    for name, values in (("learning_rate", learning_rate), ("seed", seed)):
        expect(name, values, Sequence | np.ndarray, "a list of numbers")
        if not len(values):
            raise ValueError(f"{name} must be a list of one number or more.")
    for rate in learning_rate:
        check_number("learning_rate", float(rate), above=0)
    points = list(itertools.product(map(float, learning_rate), map(int, seed)))
    config = dataclasses.replace(
        config, agents=len(points), topology="disconnected", topology_options=(), rounds=0,
        partition="iid", methods=("local_only",), seeds=tuple(dict.fromkeys(map(int, seed))),
        learning_rate=None, out=None,
    )  # fmt: skip
    prepare_devices(config.agents, config.devices)
    keep_compilations()
    setup = prepare(config, model, dataset, task=task)
    return trials(setup, points)


def trials(setup: Setup, points: Sequence[tuple[float, int]]) -> list[Trial]:
    """Runs a sweep that is prepared: an agent for each point."""
    config, execution, stopwatch = setup.config, setup.execution, Stopwatch()
    parts, prepare_batch = make_parts(setup), prepared(setup.data)
    number = examples_of(setup.data.train)
    if isinstance(config.examples_per_agent, int):
        number = min(number, config.examples_per_agent)
    size = min(setup.batch_size, number)
    steps = number // size
    seeds = {seed: seed_keys(seed) for _, seed in points}
    base = setup.learning_rate
    start = {seed: initial(setup, keys.init) for seed, keys in seeds.items()}
    states = [
        start[seed]._replace(rate_scale=jnp.full_like(start[seed].rate_scale, rate / base))
        for rate, seed in points
    ]
    state = place(execution, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    resident = replicate(execution, jax.tree.map(lambda x: x[:number], setup.data.train))
    schedule = schedule_of(setup)
    update = train_update(setup.task, setup.optimizer, schedule, prepare_batch.training)
    training = repeat(execution, update, stopwatch)
    for epoch in range(config.pretrain_epochs):
        orders = {
            seed: np.asarray(epoch_order(keys.order, epoch, 1, number, steps, size, 1))[0]
            for seed, keys in seeds.items()
        }
        order = place(execution, np.stack([orders[seed] for _, seed in points]))
        state = training(state._replace(loss=jnp.zeros_like(state.loss)), order, resident, steps)
    losses = to_host(execution, state.loss) / max(1, steps)
    score = to_host(execution, parts.evaluate(state.variables, parts.all_tests))
    measured = values_of(score)
    return [
        Trial(*point, float(losses[i]), {name: float(x[i]) for name, x in measured.items()})
        for i, point in enumerate(points)
    ]


def initial(setup: Setup, key: Key) -> AgentState:
    """One network's state before its first step."""
    task, optimizer, batch = setup.task, setup.optimizer, setup.abstract[1]
    population = jax.jit(lambda key: init_population(task, optimizer, key, 1, batch))(key)
    return jax.tree.map(lambda x: x[0], population)
