"""Many trainings of one network at once: the agents' axis without any exchange."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.datasets.data import take
from dimat_jax.execution.compile_cache import keep_compilations
from dimat_jax.execution.devices import prepare_devices
from dimat_jax.execution.forms import repeat
from dimat_jax.execution.placement import (
    choose_execution,
    has_convolutions,
    place,
    replicate,
    to_host,
)
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.registry import check_number, choose, expect, shown
from dimat_jax.simulation.checks import MAX_SEED, check_config, check_types
from dimat_jax.simulation.parts import local_update, make_parts
from dimat_jax.simulation.session import on_own_mesh
from dimat_jax.simulation.setup import Setup, prepare
from dimat_jax.simulation.state import seed_keys
from dimat_jax.training.evaluation import values_of
from dimat_jax.training.local import epoch_order
from dimat_jax.training.optimizers import has_hyperparams
from dimat_jax.training.state import AgentState, init_population
from dimat_jax.types import Key, Model, Task

Point = dict[str, Any]
"""A training of a sweep: its seed, and the numbers that it goes by."""


def sweep(
    config: Config = Config(),
    *,
    seed: Sequence[int] = (0,),
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    **numbers: Sequence[float],
) -> list[dict[str, Any]]:
    """Trains one network for every seed and every choice of numbers, all of them at once.

    Each learns from the examples that a single agent would have (``config.examples_per_agent``,
    drawn by its seed) for ``config.pretrain_epochs`` epochs; those of one seed start from the same
    weights and see the same batches. Number of agents, graph, methods and rounds are not looked at.

        dj.sweep(config, learning_rate=[0.01, 0.1], seed=[0, 1])

    Args:
      config: data, model, optimizer, batch size, epochs, schedule.
      seed: the seeds.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``.
      task: what is learned, instead of to classify by a model.
      optimizer: used instead of ``config.optimizer``.
      **numbers: values to try of ``learning_rate``; of an optimizer that was handed over, of any
        number of `optax.inject_hyperparams`.

    Returns:
      A table: a row for each training, numbers outermost, with what it went by, ``train_loss`` (the
      mean of its last epoch), ``test_loss`` and ``test_`` with the name of every metric, on all
      test examples. A training that diverged has losses that are not finite.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles.
    """
    check_config(config)
    check_types(config)
    for name, values in {**numbers, "seed": seed}.items():
        expect(name, values, Sequence | np.ndarray, "a list of numbers")
        if np.ndim(values) != 1 or not len(values):
            raise ValueError(f"{name} must be a list of one number or more.")
        for value in values:
            whole = name == "seed"
            check_number(name, value, least=0, most=MAX_SEED if whole else None, whole=whole)
    choices = itertools.product(*numbers.values(), seed)
    points = [dict(zip((*numbers, "seed"), choice, strict=True)) for choice in choices]
    devices = config.devices and min(config.devices, len(points))
    config = dataclasses.replace(
        config, agents=1, topology="disconnected", topology_options=(), rounds=0, partition="iid",
        methods=("local_only",), devices=None, seeds=tuple(dict.fromkeys(map(int, seed))), out=None,
        learning_rate=None if "learning_rate" in numbers else config.learning_rate,
    )  # fmt: skip
    prepare_devices(len(points), devices)
    keep_compilations()
    setup = prepare(config, model, dataset, task=task, optimizer=optimizer)
    check_numbers(setup, numbers, own=optimizer is not None)
    return trained(for_points(setup, len(points), devices), points)


def check_numbers(setup: Setup, numbers: Mapping[str, Any], own: bool) -> None:
    """Raises a `ValueError` for a number that the optimizer does not go by."""
    names = ["learning_rate"]
    if own:
        state = jax.eval_shape(setup.optimizer.init, setup.abstract[0]["params"])
        nodes = jax.tree.leaves(state, is_leaf=has_hyperparams)
        nodes = list(filter(has_hyperparams, nodes))
        names = [name for node in nodes for name in node.hyperparams]
        for name in [name for node in nodes for name in getattr(node, "hyperparams_states", ())]:
            if name in numbers:
                raise ValueError(f"{name} is a schedule of the optimizer: it cannot be swept.")
        kinds = {name: x.dtype for node in nodes for name, x in node.hyperparams.items()}
        for name, values in numbers.items():
            whole = name in kinds and not jnp.issubdtype(kinds[name], jnp.floating)
            if whole and any(value != int(value) for value in values):
                raise ValueError(
                    f"{name} is a whole number in the optimizer, and {shown(list(values))} are not "
                    "all: give it as a float where the optimizer is made."
                )
    for name in numbers:
        choose("number of the optimizer", name, names)


def for_points(setup: Setup, points: int, devices: int | None) -> Setup:
    """What a single agent works with, for so many of them side by side."""
    config = setup.config
    convolutions = has_convolutions(setup.task.outputs, *setup.abstract)
    execution = choose_execution(points, convolutions, devices, config.agents_at_once)
    return setup._replace(execution=execution)


@on_own_mesh
def trained(setup: Setup, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Trains and tests an agent for each point; their rows."""
    config, execution, parts = setup.config, setup.execution, make_parts(setup)
    seeds = {seed: seed_keys(seed) for seed in config.seeds}
    start = {seed: initial(setup, keys.init) for seed, keys in seeds.items()}
    states = [with_numbers(setup, start[point["seed"]], point) for point in points]
    state = place(execution, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    # The examples of every seed, one after the other.
    rows = np.concatenate([setup.shards[seed][0][0] for seed in seeds])
    number, steps = len(rows) // len(seeds), setup.epoch_examples[0] // setup.batch_size
    first = {seed: number * i for i, seed in enumerate(seeds)}
    resident = replicate(execution, take(setup.data.train, rows))
    training = repeat(execution, local_update(setup), Stopwatch())
    for epoch in range(config.pretrain_epochs):
        sizes = 1, number, steps, setup.batch_size, 1
        orders = {
            seed: first[seed] + np.asarray(epoch_order(keys.order, epoch, *sizes))[0]
            for seed, keys in seeds.items()
        }
        order = place(execution, np.stack([orders[point["seed"]] for point in points]))
        state = training(state._replace(loss=jnp.zeros_like(state.loss)), order, resident, steps)
    losses = to_host(execution, state.loss) / max(1, steps)
    measured = values_of(to_host(execution, parts.evaluate(state.variables, parts.all_tests)))
    return [
        {
            **point,
            "train_loss": float(losses[i]),
            **{f"test_{name}": float(x[i]) for name, x in measured.items()},
        }
        for i, point in enumerate(points)
    ]


def initial(setup: Setup, key: Key) -> AgentState:
    """One network's state before its first step."""
    task, optimizer, batch = setup.task, setup.optimizer, setup.abstract[1]
    population = jax.jit(lambda key: init_population(task, optimizer, key, 1, batch))(key)
    return jax.tree.map(lambda x: x[0], population)


def with_numbers(setup: Setup, state: AgentState, point: Point) -> AgentState:
    """The state of a network that is to be trained by the numbers of a point."""
    numbers = {name: value for name, value in point.items() if name != "seed"}
    nodes = jax.tree.leaves(state.optimizer, is_leaf=has_hyperparams)
    if not any(map(has_hyperparams, nodes)):
        rate = numbers.get("learning_rate", setup.learning_rate)
        return state._replace(
            rate_scale=jnp.full_like(state.rate_scale, rate / setup.learning_rate)
        )

    def own(node: Any) -> Any:
        if not has_hyperparams(node):
            return node
        given = {n: jnp.full_like(x, numbers.get(n, x)) for n, x in node.hyperparams.items()}
        return node._replace(hyperparams=given)

    return state._replace(optimizer=jax.tree.map(own, state.optimizer, is_leaf=has_hyperparams))
