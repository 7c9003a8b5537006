"""Checks of what a run is asked for, before anything compiles."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dimat_jax import datasets, partition
from dimat_jax.algorithms import METHODS, Algorithm, Gossip, Merge
from dimat_jax.config import Config
from dimat_jax.datasets import Dataset
from dimat_jax.metrics import PRETRAINING
from dimat_jax.registry import choose
from dimat_jax.topology import Topology
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.types import Model

TAKEN = {
    int: ("a whole number", numbers.Integral),
    float: ("a number", numbers.Real),
}
"""Type of an option → how to say it, and what is taken for it."""
HANDED_OVER = {
    "model": (Model, "dj.from_linen(module) and dj.from_nnx(make_module) make one of Flax's"),
    "dataset": (Dataset, "dj.Dataset(...) makes one of arrays"),
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
    test_examples=1,
    agents_at_once=1,
    gossip_every=1,
    evaluate_every=1,
    align_every=1,
)
"""Option → its smallest value."""


def check_types(config: Config) -> None:
    """Raises a `ValueError` for an option of the wrong type: from Python anything may come."""
    for name in ("methods", "seeds"):
        value = getattr(config, name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(
                f"{name} must be a tuple, ({value!r},) for a single one, not {value!r}."
            )
    for name, hint in get_type_hints(Config).items():
        kinds, value = (hint, *get_args(hint)), getattr(config, name)
        if value is None and type(None) in kinds:
            continue
        values = value if get_origin(hint) is tuple else (value,)
        for kind, (form, taken) in TAKEN.items():
            worded = [word for k in kinds if get_origin(k) is Literal for word in get_args(k)]
            fits = [v for v in values if v not in worded]
            wrong = [v for v in fits if kind in kinds and not isinstance(v, taken)]
            if wrong:
                raise ValueError(f"{name} must be {form}, not {wrong[0]!r}.")


def check_own(model: Any, dataset: Any, graph: Any) -> None:
    """Raises a `ValueError` if what was handed over instead of a name is something else."""
    given = {"model": model, "dataset": dataset, "topology": graph}
    for name, (kind, hint) in HANDED_OVER.items():
        if given[name] is not None and not isinstance(given[name], kind):
            raise ValueError(
                f"{name} must be a dj.{kind.__name__}, not a {type(given[name]).__name__}: {hint}; "
                "a name goes into the Config."
            )


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
    for name, hint in get_type_hints(Config).items():
        choices = [c for c in (hint, *get_args(hint)) if get_origin(c) is Literal]
        value, number = getattr(config, name), int in get_args(hint)
        if choices and value is not None and not (number and isinstance(value, numbers.Integral)):
            choose(name, value, get_args(choices[0]))
    for name, smallest in MIN_VALUES.items():
        value = getattr(config, name)
        if value is not None and value != "once" and value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, not {value}.")
    for method, _ in config.method_learning_rate:
        choose("method of method_learning_rate", method, methods)
    if config.merge_frame == "own" and config.align_every != 1:
        raise ValueError(
            "In frames of their own agents align in every round: align_every must be 1, not "
            f"{config.align_every!r}, or merge_frame reference or tree."
        )
    if not 0 <= config.proximal < float("inf"):
        raise ValueError(f"proximal must be at least 0, not {config.proximal}.")
    rates = {
        "learning_rate": config.learning_rate,
        "round_rate": config.round_rate,
    } | {f"learning_rate of {method}": rate for method, rate in config.method_learning_rate}
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"{name} must be positive, not {rate}.")
