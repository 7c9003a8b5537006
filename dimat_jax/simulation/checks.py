"""Checks of what a run is asked for, before anything compiles."""

import numbers
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dimat_jax import datasets, partition
from dimat_jax.algorithms import METHODS, Algorithm, Gossip, Merge
from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.metrics import PRETRAINING
from dimat_jax.registry import check_number, choose, expect, shown
from dimat_jax.topology import Topology
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.types import Model, Task

TAKEN: dict[type, tuple[Any, str]] = {
    str: (str, "a string"),
    bool: (bool, "True or False"),
    pathlib.Path: (str | os.PathLike, "a path"),
}
"""Type of an option → what is taken for it, and how to say that."""
HANDED_OVER = {
    "model": (Model, "dj.from_linen(module) and dj.from_nnx(make_module) make one of Flax's"),
    "dataset": (Dataset | Data, "dj.Dataset(...) makes one of arrays"),
    "task": (Task, "dj.classification(model) makes one"),
    "topology": (Topology, "dj.topology.from_matrix(array) and from_graph(graph) make one"),
}
"""What may be handed over instead of a name → its type, and how to come by it."""
MIN_VALUES = dict(
    agents=1,
    pretrain_epochs=0,
    rounds=0,
    epochs_per_round=0,
    matching_images=2,
    statistics_images=2,
    examples_per_agent=1,
    batch_size=1,
    micro_batch=1,
    test_examples=1,
    agents_at_once=1,
    gossip_every=1,
    evaluate_every=1,
    align_every=1,
    warmup_epochs=0,
    merged_every=0,
    checkpoint_every=0,
    keep_checkpoints=1,
)
"""Option → its smallest value."""


SHARES = ("label_smoothing", "message_loss", "stale_messages")
POSITIVE = ("clip", "learning_rate", "round_rate", "width", "alpha")
MAX_SEED = 2**32 - 1
"""What is more would be another seed in JAX, or none."""


def check_config(config: Any) -> None:
    """Raises a `ValueError` for anything but a `Config`."""
    expect("config", config, Config, "a dj.Config, as dj.Config(agents=4)")


def check_types(config: Config) -> None:
    """Raises a `ValueError` for an option of the wrong type: from Python anything may come."""
    check_config(config)
    for name, hint in get_type_hints(Config).items():
        check_type(name, hint, getattr(config, name))


def check_type(name: str, hint: Any, value: Any) -> None:
    """Raises a `ValueError` unless a value is of an option's type.

    Args:
      name: of the option.
      hint: its annotation in `Config`.
      value: any.
    """
    kinds = (hint,) if get_origin(hint) in (None, Literal, tuple) else get_args(hint)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    others = [kind for kind in kinds if kind is not NoneType and get_origin(kind) is not Literal]
    if (value is None and NoneType in kinds) or (isinstance(value, str) and value in words):
        return
    if not others:
        choose(name, value, words)
    for kind in others[-1:]:  # Of int | float the last takes both.
        if get_origin(kind) is tuple:
            check_tuple(name, get_args(kind), value)
        elif kind in (int, float):
            check_number(name, value, whole=kind is int)
        else:
            expect(name, value, *TAKEN[kind])


def check_tuple(name: str, kinds: tuple[Any, ...], value: Any) -> None:
    """Raises a `ValueError` unless a value is a tuple of an option's type.

    Args:
      name: of the option.
      kinds: the arguments of its annotation: ``(str, ...)``, or those of a pair.
      value: any.
    """
    if kinds[-1] is ...:
        of_pairs = get_origin(kinds[0]) is tuple
        if isinstance(value, str) or not isinstance(value, Sequence):
            single = "(('name', 1),)" if of_pairs else f"({shown(value)},)"
            raise ValueError(
                f"{name} must be a tuple, {single} for a single one, not {shown(value)}."
            )
        for item in value:
            check_type(name, kinds[0], item)
        if of_pairs and len({item[0] for item in value}) < len(value):
            raise ValueError(f"{name} must name each once, not {shown(value)}.")
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(kinds):
        raise ValueError(f"{name} must be of pairs, ('name', 1), not of {shown(value)}.")
    for kind, item in zip(kinds, value, strict=True):
        check_type(name, kind, item)


def check_own(
    model: Any, dataset: Any, graph: Any, task: Any = None, optimizer: Any = None
) -> None:
    """Raises a `ValueError` if what was handed over instead of a name is something else."""
    given = {"model": model, "dataset": dataset, "topology": graph, "task": task}
    for name, (kind, hint) in HANDED_OVER.items():
        if given[name] is not None and not isinstance(given[name], kind):
            raise ValueError(
                f"{name} must be a dj.{getattr(kind, '__name__', 'Dataset')}, not a "
                f"{type(given[name]).__name__}: {hint}; a name goes into the Config."
            )
    parts = [getattr(optimizer, name, None) for name in ("init", "update")]
    if optimizer is not None and not all(map(callable, parts)):
        raise ValueError(
            f"optimizer must be an optax.GradientTransformation, not {shown(optimizer)}; a name "
            "goes into the Config."
        )
    if model is not None and task is not None:
        raise ValueError("task says what agents learn: model must be left out beside it.")


def all_methods(given: Any) -> dict[str, Algorithm]:
    """The methods that there are: those of the registry, and those handed over.

    Args:
      given: name to `Algorithm`, or None; from Python anything may come.

    Raises:
      ValueError: if what was handed over is no `Algorithm`, or has a name that there is already.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"methods must be a dict of name to dj.algorithms.Algorithm, not a "
            f"{type(given).__name__}; names go into the Config."
        )
    for name, algorithm in given.items():
        if name in METHODS or name == PRETRAINING:
            raise ValueError(f"There is a method {name!r} already: choose another name.")
        check_method(name, algorithm)
    return {**METHODS, **given}


def check_method(name: Any, algorithm: Any) -> None:
    """Raises a `ValueError` unless it is a method, with parts that are what they should be."""
    if not isinstance(name, str) or not isinstance(algorithm, Algorithm):
        raise ValueError(
            f"methods must be of name to dj.algorithms.Algorithm; {name!r} is a "
            f"{type(algorithm).__name__}."
        )
    if not re.fullmatch(r"[^\W_.][^/\\\0]{0,99}", name):
        raise ValueError(
            "A name of a method must have at most 100 characters, none of them / or \\, and begin "
            f"with a letter or digit: {shown(name)} is none, and its networks are kept under it."
        )
    expect(f"label of method {name!r}", algorithm.label, str, "a string")
    kinds = {"gossip": Gossip, "initial": Merge, "merge": Merge, "final": Merge}
    for part, found in algorithm.parts().items():
        if not isinstance(found, kinds[part]):
            raise ValueError(
                f"{part} of method {name!r} must be a dj.algorithms.{kinds[part].__name__}, not a "
                f"{type(found).__name__}."
            )


def check_options(config: Config, methods: Mapping[str, Algorithm] = METHODS) -> None:
    """Raises a `ValueError` for an option that has no meaning by itself.

    Args:
      config: the run.
      methods: those that there are.
    """
    check_types(config)
    for method in config.methods:
        choose("method", method, methods)
    choose("partition", config.partition, partition.PARTITIONS)
    if config.augmentation is not None:
        choose("augmentation", config.augmentation, datasets.AUGMENTATIONS)
    choose("optimizer", config.optimizer, OPTIMIZERS)
    for name in ("methods", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, not {values}.")
    for name, smallest in MIN_VALUES.items():
        value = getattr(config, name)
        if isinstance(value, numbers.Integral) and value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, not {value}.")
    for method, _ in config.method_learning_rate:
        choose("method of method_learning_rate", method, methods)
    if config.merge_frame == "own" and config.align_every != 1:
        raise ValueError(
            "In frames of their own agents align in every round: align_every must be 1, not "
            f"{config.align_every!r}, or merge_frame reference or tree."
        )
    for name in ("proximal", "weight_decay"):
        check_number(name, getattr(config, name), least=0)
    for name in SHARES:
        check_number(name, getattr(config, name), least=0, most=1)
    for seed in config.seeds:
        check_number("seeds", seed, least=0, most=MAX_SEED, whole=True)
    positive = {name: getattr(config, name) for name in POSITIVE}
    positive |= {f"learning_rate of {name}": rate for name, rate in config.method_learning_rate}
    for name, value in positive.items():
        if value is not None:
            check_number(name, value, above=0)


def check_micro_batch(micro_batch: int | None, batch_size: int) -> None:
    """Raises a `ValueError` for parts that do not divide a batch."""
    if micro_batch is not None and batch_size % micro_batch:
        divisors = [str(d) for d in range(1, batch_size + 1) if batch_size % d == 0]
        raise ValueError(
            f"micro_batch is {micro_batch}, but batch_size is {batch_size}, which it must divide: "
            f"it must be one of {', '.join(divisors)}."
        )


def check_options_of_optimizer(config: Config, methods: Mapping[str, Algorithm]) -> None:
    """Raises a `ValueError` for options of a named optimizer, where one was handed over.

    Args:
      config: the run.
      methods: those that there are: who steps by itself has a learning rate all the same.
    """
    if config.weight_decay or config.clip is not None or config.warmup_epochs:
        raise ValueError(
            "weight_decay, clip and warmup_epochs are of a named optimizer: one was handed over."
        )
    for name, _ in config.method_learning_rate:
        if methods[name].gossip is None:
            raise ValueError(
                f"method_learning_rate of {name!r} is of a named optimizer: one was handed over, "
                "whose steps round_rate multiplies."
            )
