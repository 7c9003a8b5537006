"""What a run works with, made from its configuration; everything wrong in it is said here."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Int

from dimat_jax import datasets, models, partition, topology
from dimat_jax.algorithms import Algorithm, Merge
from dimat_jax.algorithms.stepping import guarded
from dimat_jax.config import EXAMPLES_PER_AGENT, LEARNING_RATES, Config
from dimat_jax.datasets import Dataset
from dimat_jax.datasets.augment import Augmentation
from dimat_jax.datasets.data import Data, examples_of, of_images
from dimat_jax.execution.placement import (
    Execution,
    choose_execution,
    has_convolutions,
    with_patches,
)
from dimat_jax.execution.products import patch_bytes
from dimat_jax.partition import stack
from dimat_jax.registry import choose, make
from dimat_jax.simulation.checks import (
    all_methods,
    check_config,
    check_micro_batch,
    check_options,
    check_options_of_optimizer,
    check_own,
)
from dimat_jax.simulation.faults import Schedule, check_schedule
from dimat_jax.simulation.own_model import abstract_inputs
from dimat_jax.simulation.own_task import (
    abstract_batch,
    abstract_task,
    check_data,
    check_optimizer,
    check_outputs_of_model,
    classes_of,
    targets_mean,
    what_to_learn,
    with_plain_dicts,
)
from dimat_jax.simulation.state import seed_keys
from dimat_jax.symmetries import Symmetries, find_symmetries
from dimat_jax.tasks import TASKS
from dimat_jax.topology import Topology, stretched
from dimat_jax.training.evaluation import LogTotal, Total
from dimat_jax.training.optimizers import as_steps, make_optimizer
from dimat_jax.types import Batch, Key, Model, Task, Variables

BATCH_SIZE = 50
STEPS_PER_EPOCH = 10
"""The default batch is `BATCH_SIZE` images, or fewer where an epoch had fewer steps than this."""

NOTHING = Schedule()
OWN = "own"
"""What a model or an optimizer is called that was handed over instead of named."""


class Setup(NamedTuple):
    """What a run works with.

    Attributes:
      config: with every default filled in; model, data set and graph that were handed over instead
        of named are in it as `OWN` and by their own names.
      batch_size: examples in an agent's batch.
      learning_rate: of the local optimizer that the configuration names, and of methods that step
        by themselves.
      optimizer: gradient → the direction in which an agent steps.
      data: the examples actually used.
      task: what all agents learn.
      abstract: shapes and dtypes of one agent's variables, and of a batch of one example as the
        task takes it.
      metrics: what the task measures besides its loss, by name, and what it adds up to.
      classes: how many classes examples have; None: none, or no accuracy of them.
      topology: the graph.
      methods: the methods of the run, by name, in their order.
      schedule: what goes wrong in the network, and who joins and leaves it.
      graphs: for each method the graph on which each of its parts works (`Algorithm.parts`).
      symmetries: the model's permutation groups.
      execution: where and in which form the agents run.
      shards: for each seed, the agents' training examples ``[agents, examples]`` in pretraining
        and in the rounds; an agent with fewer than another has some of them more than once.
      examples: for each seed, how many examples each agent has in the rounds, int ``[agents]``.
      epoch_examples: examples that each agent goes through in an epoch of either.
    """

    config: Config
    batch_size: int
    learning_rate: float
    optimizer: optax.GradientTransformation
    data: Data
    task: Task
    abstract: tuple[Variables, Batch]
    metrics: dict[str, type[Total | LogTotal]]
    classes: int | None
    topology: Topology
    methods: dict[str, Algorithm]
    schedule: Schedule
    graphs: dict[str, dict[str, Topology]]
    symmetries: Symmetries
    execution: Execution
    shards: dict[int, tuple[Int[np.ndarray, "agents examples"], Int[np.ndarray, "agents examples"]]]
    examples: dict[int, Int[np.ndarray, "agents"]]
    epoch_examples: tuple[int, int]


def prepare(
    config: Config,
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    graph: Topology | None = None,
    methods: Mapping[str, Algorithm] | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    schedule: Schedule = NOTHING,
    say: Callable[[str], object] = lambda what: None,
) -> Setup:
    """Checks a configuration and makes what it names; nothing is compiled.

    Args:
      config: the run.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``.
      graph: used instead of ``config.topology``.
      methods: of one's own, by name, besides those of the registry; those that ``config.methods``
        does not name follow them.
      task: used instead of the classification by a model.
      optimizer: used instead of ``config.optimizer``, with a learning rate of its own.
      schedule: faults of the network, besides those that the configuration names, and events.
      say: is told of what takes a while, when it begins.

    Raises:
      ValueError: for anything that cannot be run, in one sentence.
    """
    # Cheap checks first: a wrong word in the configuration must not wait for a data set.
    check_config(config)
    known = all_methods(methods)
    if methods and isinstance(config.methods, tuple | list):
        more = tuple(name for name in methods if name not in config.methods)
        config = dataclasses.replace(config, methods=(*config.methods, *more))
    check_options(config, known)
    check_own(model, dataset, graph, task, optimizer)
    schedule = with_options(schedule, config)
    named = names_of(config, model or task, dataset, graph, optimizer)
    config = with_examples(config, dataset)
    graph = graph or make_graph(config)
    chosen = {name: known[name] for name in config.methods}
    if schedule:
        chosen = {name: with_guard(method) for name, method in chosen.items()}
    graphs = choose_graphs(config, graph, chosen)
    say(f"reading the data set {named['dataset']}")
    data, images = load(config, dataset)
    # Batch size and learning rate hang on the size of the shards, and these on the seed.
    divided = {seed: divide(config, data, seed_keys(seed).partition) for seed in config.seeds}
    epoch_examples = mean_share(divided, 0), mean_share(divided, 1)
    batch_size = choose_batch_size(config, min(epoch_examples))
    learning_rate = choose_learning_rate(config, batch_size)
    learned = choose_task(config, task, model, data, images)
    task, abstract = learned.task, learned.abstract
    steps = choose_optimizer(config, optimizer, abstract[0], known)
    say(f"finding the permutation groups of the model {named['model']}")
    symmetries = find_symmetries(task.outputs, *abstract)
    check_fit(chosen, task, symmetries, abstract)
    return Setup(
        config=dataclasses.replace(
            config, batch_size=batch_size, learning_rate=learning_rate, **named
        ),
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=steps,
        data=data,
        task=task,
        abstract=abstract,
        metrics=learned.metrics,
        classes=learned.classes,
        topology=graph,
        methods=chosen,
        schedule=schedule,
        graphs=graphs,
        symmetries=symmetries,
        execution=lay_out(config, task, abstract, batch_size, config.devices),
        shards={seed: (stack(before), stack(after)) for seed, (before, after) in divided.items()},
        examples={seed: np.array(list(map(len, after))) for seed, (_, after) in divided.items()},
        epoch_examples=epoch_examples,
    )


def lay_out(
    config: Config,
    task: Task,
    abstract: tuple[Variables, Batch],
    batch_size: int,
    devices: int | None,
    described: Sequence[Any] | None = None,
    memory: int | float | None = None,
) -> Execution:
    """Where and in which form a run's agents train.

    Args:
      config: the run.
      task: what all agents learn.
      abstract: shapes of one agent's variables, and of a batch of one example.
      batch_size: examples in an agent's batch.
      devices: how many to use.
      described: devices that are not here, instead of JAX's.
      memory: bytes that there are on one of these.
    """
    convolutions = has_convolutions(task.outputs, *abstract)
    execution = choose_execution(
        config.agents, convolutions, devices, config.agents_at_once, described
    )
    if not execution.products or not convolutions:
        return execution

    def loss(variables: Variables, batch: Batch, key: Key) -> Any:
        return task.loss(variables, batch, key=key, train=True)

    patches = patch_bytes(loss, *abstract, jax.random.key(0))
    return with_patches(execution, patches * (config.micro_batch or batch_size), memory)


def with_options(schedule: Schedule, config: Config) -> Schedule:
    """The schedule with what the configuration says of faults.

    Raises:
      ValueError: for a schedule that cannot be, or where both say the same.
    """
    check_schedule(schedule, config.agents)
    faults = schedule.faults
    for option, field in (("message_loss", "message_loss"), ("stale_messages", "stale")):
        value = getattr(config, option)
        if value:
            if getattr(faults, field):
                raise ValueError(f"faults has {field}: leave {option} at 0.")
            faults = dataclasses.replace(faults, **{field: value})
    return Schedule(faults, schedule.events)


def with_guard(method: Algorithm) -> Algorithm:
    """A method that leaves out agents who are no longer finite in every gossip step."""
    return method._replace(gossip=guarded(method.gossip)) if method.gossip else method


def with_examples(config: Config, dataset: Dataset | Data | None) -> Config:
    """The configuration, in which ``examples_per_agent`` is a number or None."""
    if config.examples_per_agent != "auto":
        return config
    most = EXAMPLES_PER_AGENT if dataset is None else None
    return dataclasses.replace(config, examples_per_agent=most)


def load(config: Config, dataset: Dataset | Data | None) -> tuple[Data, Dataset | None]:
    """The examples of a run; and as images with labels, if they are such.

    Raises:
      ValueError: for a data set that cannot be had, or is none.
    """
    found = dataset or datasets.load(config.dataset, data_dir=config.data_dir)
    if isinstance(found, Data):
        if config.augmentation is not None:
            raise ValueError(f"augmentation is of images, and {found.name} is none.")
        return check_data(found), None
    images = datasets.check(found)
    return of_images(images, choose_augmentation(config, images)), images


class Learned(NamedTuple):
    """What agents learn, and what is known of it: see `Setup`."""

    task: Task
    abstract: tuple[Variables, Batch]
    metrics: dict[str, type[Total | LogTotal]]
    classes: int | None = None


def choose_task(
    config: Config, given: Task | None, model: Model | None, data: Data, images: Dataset | None
) -> Learned:
    """What agents learn: a task of one's own, or what the data ask of a model.

    Raises:
      ValueError: for a task or a model that does not fit the data.
    """
    kind, outputs = ("labels", images.num_classes) if images is not None else (None, None)
    if given is None and images is None:
        kind, outputs = what_to_learn(data)
    if config.label_smoothing and (given is not None or kind != "labels"):
        raise ValueError("label_smoothing is of classification by a model: leave it at 0.")
    if given is not None:
        task = with_plain_dicts(given)
        abstract, metrics = abstract_task(task, data)
        return Learned(task, abstract, metrics, classes_of(task, abstract, data))
    assert kind is not None and outputs is not None
    model = model or make_model(config, outputs)
    options: dict[str, dict[str, Any]] = {
        "labels": {"label_smoothing": config.label_smoothing},
        "targets": {"mean": targets_mean(data)},
    }
    task = with_plain_dicts(TASKS[kind](model, **options.get(kind, {})))
    classes = outputs if kind == "labels" else None
    if images is not None:
        variables, _ = abstract_inputs(model, images)
        return Learned(task, (variables, abstract_batch(data, 1)), {"accuracy": Total}, classes)
    abstract, metrics = abstract_task(task, data)
    check_outputs_of_model(task, abstract, kind, outputs, data.name)
    return Learned(task, abstract, metrics, classes)


def names_of(
    config: Config,
    model: Model | Task | None,
    dataset: Dataset | Data | None,
    graph: Topology | None,
    optimizer: optax.GradientTransformation | None,
) -> dict[str, Any]:
    """What model, data set, graph and optimizer are called, by the option that names them.

    Raises:
      ValueError: for a name that there is not, of what was not handed over; for options of a graph
        that was.
    """
    if model is None:
        choose("model", config.model, models.FACTORIES)
    if dataset is None:
        choose("data set", config.dataset, datasets.SOURCES)
    if graph is None:
        choose("topology", config.topology, topology.TOPOLOGIES)
    elif config.topology_options:
        raise ValueError("topology_options are those of a named topology: one was handed over.")
    return {
        "model": config.model if model is None else OWN,
        "dataset": config.dataset if dataset is None else dataset.name,
        "topology": config.topology if graph is None else graph.name,
        "optimizer": config.optimizer if optimizer is None else OWN,
    }


def make_graph(config: Config) -> Topology:
    """The graph that the configuration names.

    Raises:
      ValueError: if it does not take the options, or so many agents.
    """
    # Not by topology.make: an option may have the name of one of its arguments.
    options = dict(config.topology_options)
    return make("topology", config.topology, topology.TOPOLOGIES, config.agents, **options)


def choose_graphs(
    config: Config, graph: Topology, methods: Mapping[str, Algorithm]
) -> dict[str, dict[str, Topology]]:
    """The graph on which each part of each method works.

    Raises:
      ValueError: unless the given graph is one of so many agents that all methods can use; for a
        method that cannot leave out exchanges.
    """
    if graph.agents != config.agents:
        raise ValueError(f"The topology has {graph.agents} agents, the run {config.agents}.")
    every = config.gossip_every
    graphs = {
        name: {
            part: found.graph(stretched(graph, every) if part == "gossip" else graph)
            for part, found in algorithm.parts().items()
        }
        for name, algorithm in methods.items()
    }
    for name, parts in graphs.items():
        if "gossip" in parts and parts["gossip"].period % every:
            raise ValueError(
                f"{name} exchanges something in every step, so gossip_every must be 1, not {every}."
            )
    return graphs


def check_fit(
    methods: Mapping[str, Algorithm],
    task: Task,
    symmetries: Symmetries,
    abstract: tuple[Variables, Batch],
) -> None:
    """Raises a `ValueError` for a method that cannot merge the model: before it is pretrained."""
    for name, algorithm in methods.items():
        merges = [part for part in algorithm.parts().values() if isinstance(part, Merge)]
        for merge in merges:
            try:
                merge.fits(task, symmetries, abstract)
            except ValueError as error:
                raise ValueError(f"The method {name!r} cannot merge this model: {error}") from error


def divide(config: Config, data: Data, key: Key) -> tuple[list, list]:
    """Gives each agent its training examples, at most ``config.examples_per_agent`` of them.

    Returns:
      Index arrays of each agent for pretraining, and for the rounds; mostly the same.

    Raises:
      ValueError: for a partition by class of examples without classes.
    """
    labels = data.labels
    if labels is None:
        if config.partition != "iid":
            raise ValueError(
                f"{data.name} has no labels: partition must be iid, not {config.partition!r}."
            )
        labels = np.zeros(examples_of(data.train), np.int32)
    options = {"alpha": config.alpha} if config.partition == "dirichlet" else {}
    function = partition.PARTITIONS[config.partition]
    shards = function(labels, config.agents, key, **options)
    before, after = shards if isinstance(shards, tuple) else (shards, shards)
    most = config.examples_per_agent
    assert most != "auto"  # It is chosen by then.
    return [s[:most] for s in before], [s[:most] for s in after]


def mean_share(divided: dict[int, tuple[list, list]], part: int) -> int:
    """Examples of an agent in the mean, of the seed where they are fewest."""
    return min(sum(map(len, parts[part])) // len(parts[part]) for parts in divided.values())


def choose_batch_size(config: Config, examples: int) -> int:
    """The batch size asked for, or one that leaves an epoch enough steps.

    Raises:
      ValueError: if it is larger than an agent's share, or its parts do not divide it.
    """
    batch_size = config.batch_size or min(BATCH_SIZE, max(1, examples // STEPS_PER_EPOCH))
    if batch_size > examples:
        raise ValueError(
            f"batch_size is {batch_size}, but an agent has {examples} examples: it must be 1 to "
            f"{examples}."
        )
    check_micro_batch(config.micro_batch, batch_size)
    return batch_size


def choose_learning_rate(config: Config, batch_size: int) -> float:
    """The learning rate asked for, or the optimizer's own.

    Smaller batches take smaller steps, in proportion (Goyal et al. 2017), but for Adam's, which are
    of one size whatever the gradients'.
    """
    share = 1.0 if config.optimizer.startswith("adam") else batch_size / BATCH_SIZE
    return config.learning_rate or share * LEARNING_RATES[config.optimizer]


def choose_optimizer(
    config: Config,
    given: optax.GradientTransformation | None,
    variables: Variables,
    methods: Mapping[str, Algorithm],
) -> optax.GradientTransformation:
    """Gradient → the direction in which an agent steps, see `make_optimizer`.

    Args:
      config: the run.
      given: an optimizer to use instead of the one that it names.
      variables: shapes and dtypes of one agent's.
      methods: those that there are.

    Raises:
      ValueError: for an optimizer that cannot take the parameters' gradients; for options of
        a named one beside it.
    """
    if given is None:
        return make_optimizer(config.optimizer, config.weight_decay, config.clip)
    check_options_of_optimizer(config, methods)
    check_optimizer(given, variables["params"], config.agents)
    return as_steps(given)


def choose_augmentation(config: Config, dataset: Dataset) -> Augmentation:
    """The augmentation asked for, or what suits the data set."""
    return datasets.AUGMENTATIONS[config.augmentation or dataset.augmentation]


def make_model(config: Config, num_classes: int) -> Model:
    """Makes the model that the configuration names, for so many classes.

    Raises:
      ValueError: if it does not take the options.
    """
    factory = models.FACTORIES[config.model]
    if config.norm is not None and "norm" not in inspect.signature(factory).parameters:
        raise ValueError(
            f"{config.model} takes no norm: its normalisation is always the same, so norm must be "
            f"left out, not {config.norm!r}."
        )
    options = {} if config.norm is None else {"norm": config.norm}
    return models.make(config.model, num_classes=num_classes, width=config.width, **options)
