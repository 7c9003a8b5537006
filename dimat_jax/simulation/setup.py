"""What a run works with, made from its configuration; everything wrong in it is said here."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from dimat_jax import datasets, models, partition, topology
from dimat_jax.algorithms import Algorithm, Merge
from dimat_jax.config import EXAMPLES_PER_AGENT, LEARNING_RATES, Config
from dimat_jax.datasets import Dataset
from dimat_jax.datasets.augment import Augmentation
from dimat_jax.execution.placement import Execution, choose_execution, has_convolutions
from dimat_jax.registry import choose, make
from dimat_jax.simulation.checks import all_methods, check_config, check_options, check_own
from dimat_jax.simulation.own_model import abstract_inputs
from dimat_jax.simulation.state import seed_keys
from dimat_jax.symmetries import Symmetries, find_symmetries
from dimat_jax.topology import Topology, stretched
from dimat_jax.types import Key, Model, Variables

BATCH_SIZE = 50
STEPS_PER_EPOCH = 10
"""The default batch is `BATCH_SIZE` images, or fewer where an epoch had fewer steps than this."""

OWN = "own"
"""What a model is called that was handed over instead of named."""


class Setup(NamedTuple):
    """What a run works with.

    Attributes:
      config: with every default filled in; model, data set and graph that were handed over instead
        of named are in it as `OWN` and by their own names.
      batch_size: images in an agent's batch.
      learning_rate: of the local optimizer.
      dataset: the data set actually used.
      model: the model of all agents.
      abstract: shapes and dtypes of one agent's variables, and of one image as the model takes it.
      augment: ``(key, images) -> images``, as stored, for training.
      topology: the graph.
      methods: the methods of the run, by name, in their order.
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
    dataset: Dataset
    model: Model
    abstract: tuple[Variables, jax.ShapeDtypeStruct]
    augment: Augmentation
    topology: Topology
    methods: dict[str, Algorithm]
    graphs: dict[str, dict[str, Topology]]
    symmetries: Symmetries
    execution: Execution
    shards: dict[int, tuple[Int[np.ndarray, "agents examples"], Int[np.ndarray, "agents examples"]]]
    examples: dict[int, Int[np.ndarray, "agents"]]
    epoch_examples: tuple[int, int]


def prepare(
    config: Config,
    model: Model | None = None,
    dataset: Dataset | None = None,
    graph: Topology | None = None,
    methods: Mapping[str, Algorithm] | None = None,
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
    check_own(model, dataset, graph)
    named = names_of(config, model, dataset, graph)
    graph = graph or make_graph(config)
    chosen = {name: known[name] for name in config.methods}
    graphs = choose_graphs(config, graph, chosen)
    if config.examples_per_agent == "auto":
        most = EXAMPLES_PER_AGENT if dataset is None else None
        config = dataclasses.replace(config, examples_per_agent=most)
    say(f"reading the data set {named['dataset']}")
    dataset = datasets.check(dataset or datasets.load(config.dataset, data_dir=config.data_dir))
    # Batch size and learning rate hang on the size of the shards, and these on the seed.
    divided = {seed: divide(config, dataset, seed_keys(seed).partition) for seed in config.seeds}
    epoch_examples = mean_share(divided, 0), mean_share(divided, 1)
    batch_size = choose_batch_size(config, min(epoch_examples))
    learning_rate = choose_learning_rate(config, batch_size)
    model = model or make_model(config, dataset)
    abstract = abstract_inputs(model, dataset)
    say(f"finding the permutation groups of the model {named['model']}")
    symmetries = find_symmetries(model, *abstract)
    check_fit(chosen, model, symmetries, abstract)
    return Setup(
        config=dataclasses.replace(
            config, batch_size=batch_size, learning_rate=learning_rate, **named
        ),
        batch_size=batch_size,
        learning_rate=learning_rate,
        dataset=dataset,
        model=model,
        abstract=abstract,
        augment=choose_augmentation(config, dataset),
        topology=graph,
        methods=chosen,
        graphs=graphs,
        symmetries=symmetries,
        execution=choose_execution(
            config.agents,
            has_convolutions(model.apply, *abstract),
            config.devices,
            config.agents_at_once,
        ),
        shards={
            seed: (partition.stack(before), partition.stack(after))
            for seed, (before, after) in divided.items()
        },
        examples={seed: np.array(list(map(len, after))) for seed, (_, after) in divided.items()},
        epoch_examples=epoch_examples,
    )


def names_of(
    config: Config, model: Model | None, dataset: Dataset | None, graph: Topology | None
) -> dict[str, Any]:
    """What model, data set and graph are called, by the option that names them.

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
    model: Model,
    symmetries: Symmetries,
    abstract: tuple[Variables, jax.ShapeDtypeStruct],
) -> None:
    """Raises a `ValueError` for a method that cannot merge the model: before it is pretrained."""
    for name, algorithm in methods.items():
        merges = [part for part in algorithm.parts().values() if isinstance(part, Merge)]
        for merge in merges:
            try:
                merge.fits(model, symmetries, abstract)
            except ValueError as error:
                raise ValueError(f"The method {name!r} cannot merge this model: {error}") from error


def divide(config: Config, dataset: Dataset, key: Key) -> tuple[list, list]:
    """Gives each agent its training examples, at most ``config.examples_per_agent`` of them.

    Returns:
      Index arrays of each agent for pretraining, and for the rounds; mostly the same.
    """
    options = {"alpha": config.alpha} if config.partition == "dirichlet" else {}
    function = partition.PARTITIONS[config.partition]
    shards = function(dataset.train_labels, config.agents, key, **options)
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
      ValueError: if it is larger than an agent's share.
    """
    batch_size = config.batch_size or min(BATCH_SIZE, max(1, examples // STEPS_PER_EPOCH))
    if batch_size > examples:
        raise ValueError(
            f"batch_size is {batch_size}, but an agent has {examples} examples: it must be 1 to "
            f"{examples}."
        )
    return batch_size


def choose_learning_rate(config: Config, batch_size: int) -> float:
    """The learning rate asked for, or the optimizer's own.

    Smaller batches take smaller steps, in proportion (Goyal et al. 2017), but for Adam's, which are
    of one size whatever the gradients'.
    """
    share = 1.0 if config.optimizer == "adam" else batch_size / BATCH_SIZE
    return config.learning_rate or share * LEARNING_RATES[config.optimizer]


def choose_augmentation(config: Config, dataset: Dataset) -> Augmentation:
    """The augmentation asked for, or what suits the data set."""
    return datasets.AUGMENTATIONS[config.augmentation or dataset.augmentation]


def make_model(config: Config, dataset: Dataset) -> Model:
    """Makes the model that the configuration names, for the data set's classes.

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
    return models.make(config.model, num_classes=dataset.num_classes, width=config.width, **options)
