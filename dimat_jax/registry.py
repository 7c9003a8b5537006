"""What a run can name: the registries, looking things up in them, and saying what is no value.

A registry says where a thing lies and imports it when it is asked for, so that ``--help`` lists all
names and still answers at once. Adding a topology, a model, a data set, an augmentation, a
partition or a method takes its file and its line here, ``"name": "module:attribute"``.
"""

import difflib
import importlib
import inspect
import numbers
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Registry(Mapping[str, T_co]):
    """Name → object, read-only; an object's module is imported when the object is asked for.

    colours = Registry("mine.paints", {"red": "oil:red"})
    colours["red"]  # from mine.paints.oil import red
    """

    def __init__(self, package: str, places: Mapping[str, str]):
        self._package = package
        self._places = dict(places)

    def __getitem__(self, name: str) -> T_co:
        module, attribute = self._places[name].split(":")
        return getattr(importlib.import_module(f"{self._package}.{module}"), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would import it

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Registry({self._package!r}, {self._places})"


TOPOLOGIES: Registry[Callable] = Registry(
    "dimat_jax.topology",
    {
        "ring": "deterministic:ring",
        "fully_connected": "deterministic:fully_connected",
        "bipartite": "deterministic:bipartite",
        "disconnected": "deterministic:disconnected",
        "star": "deterministic:star",
        "torus": "deterministic:squarest_torus",
        "exponential": "deterministic:exponential",
        "one_peer_exponential": "schedules:one_peer_exponential",
        "base_k": "schedules:base_k",
        "random_peers": "schedules:random_peers",
        "random_matching": "schedules:random_matching",
        "epidemic": "schedules:epidemic",
        "hypercube": "deterministic:hypercube",
        "erdos_renyi": "random_graphs:erdos_renyi",
        "random_regular": "random_graphs:random_regular",
        "digraph": "deterministic:digraph",
    },
)
"""Each ``(number of agents, **options) -> Topology``."""

DATASETS: Registry[Callable] = Registry(
    "dimat_jax.datasets",
    {
        "auto": "auto:load",
        "cifar10": "cifar:load_cifar10",
        "cifar100": "cifar:load_cifar100",
        "tiny_imagenet": "tiny_imagenet:load",
        "digits": "digits:load",
        "shapes": "shapes:load",
        "tiny_shakespeare": "text:load_tiny_shakespeare",
        "python_docs": "text:load_python_docs",
        "breast_cancer": "tables:load_breast_cancer",
        "diabetes": "tables:load_diabetes",
    },
)
"""Each ``(data_dir, cache_dir) -> Dataset``, of images, or ``Data``."""

AUGMENTATIONS: Registry[Callable] = Registry(
    "dimat_jax.datasets",
    {
        "none": "augment:none",
        "flip_and_crop": "augment:flip_and_crop",
    },
)
"""Each ``(key, images) -> images``."""

PARTITIONS: Registry[Callable] = Registry(
    "dimat_jax",
    {
        "iid": "partition:iid",
        "by_class": "partition:by_class",
        "dirichlet": "partition:dirichlet",
        "pretrain_iid_finetune_by_class": "partition:pretrain_iid_finetune_by_class",
    },
)
"""Each ``(labels, n, key) -> index arrays``; see `dimat_jax.partition`."""

MODELS: Registry[Callable] = Registry(
    "dimat_jax.models",
    {
        "mlp": "mlp:mlp",
        "convnet": "convnet:convnet",
        "vgg11": "vgg:vgg11",
        "vgg16": "vgg:vgg16",
        "resnet20": "resnet:resnet20",
        "resnet50": "resnet:resnet50",
        "vit": "vit:vit",
        "gpt": "gpt:gpt",
    },
)
"""Each ``(num_classes, width, **options) -> Model``."""

METHODS: Registry = Registry(
    "dimat_jax.algorithms",
    {
        "local_only": "merging:local_only",
        "dimat": "merging:dimat",
        "dimat_once": "merging:dimat_once",
        "dimat_plus": "merging:dimat_plus",
        "wm": "merging:wm",
        "universe": "merging:universe",
        "wa": "merging:wa",
        "wa_published": "merging:wa_published",
        "final_dimat": "merging:final_dimat",
        "final_wa": "merging:final_wa",
        "sparse_final_wa": "merging:sparse_final_wa",
        "sparse_final_dimat": "merging:sparse_final_dimat",
        "dimat_repair": "merging:dimat_repair",
        "wa_repair": "merging:wa_repair",
        "cdsgd": "gossip:cdsgd",
        "cdmsgd": "gossip:cdmsgd",
        "sgp": "push_sum:sgp",
        "sgp_nesterov": "push_sum:sgp_nesterov",
        "cga": "cross_gradient:cga",
        "dsgd": "gossip:dsgd",
        "dsgd_momentum": "gossip:dsgd_momentum",
        "dsgd_nesterov": "gossip:dsgd_nesterov",
        "d2": "d2:d2",
        "d2_nesterov": "d2:d2_nesterov",
        "gradient_tracking": "gradient_tracking:gradient_tracking",
        "gradient_tracking_nesterov": "gradient_tracking:gradient_tracking_nesterov",
        "qg_dsgdm_n": "quasi_global:qg_dsgdm_n",
        "relay_sgd": "relay_sgd:relay_sgd",
        "relay_sgd_nesterov": "relay_sgd:relay_sgd_nesterov",
        "local_sgd": "fedavg:local_sgd",
        "fedavg": "fedavg:fedavg",
        "centralized": "fedavg:centralized",
        "centralized_nesterov": "fedavg:centralized_nesterov",
    },
)
"""Each an `dimat_jax.algorithms.Algorithm`; tables list them in this order."""


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns ``name`` if it is allowed.

    Args:
      kind: what is being named, for the message (``"model"``).
      name: the name given.
      allowed: the names there are.

    Raises:
      ValueError: if ``name`` is not among them; names the nearest one and all of them.
    """
    allowed = list(allowed)
    if isinstance(name, str) and name in allowed:
        return name
    # CIFAR-10 is near to cifar10.
    plain = {re.sub(r"\W|_", "", other.lower()): other for other in allowed}
    near = difflib.get_close_matches(re.sub(r"\W|_", "", str(name).lower()), plain, n=1)
    hint = f" Did you mean {plain[near[0]]!r}?" if near else ""
    there_are = f"There are: {', '.join(allowed)}." if allowed else "There are none."
    raise ValueError(f"Unknown {kind} {shown(name)}.{hint} {there_are}")


def make(kind: str, name: str, table: Mapping[str, Callable], /, *args: Any, **options: Any) -> Any:
    """Calls ``table[name](*args, **options)``.

    Raises:
      ValueError: if the name is unknown, or the factory does not take an option or lacks one.
    """
    factory = table[choose(kind, name, table)]
    signature = inspect.signature(factory)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[len(args) :]) or "none"
        raise ValueError(f"{kind} {name!r}: {error}. Its options: {takes}.") from error
    return factory(*args, **options)


# What is no value ---------------------------------------------------------------------------------

SHOWN = 60
"""Characters of a value in a message."""


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and no longer than `SHOWN`."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"a {type(value).__name__}"


def in_a_line(error: Exception) -> str:
    """An error's type and message on one line, without what some say after a first paragraph."""
    message = " ".join(str(error).strip().partition("\n\n")[0].split())
    message = message if len(message) <= 300 else f"{message[:300]} ..."
    return f"{type(error).__name__}: {message}"


def attempt(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls somebody's own function on arguments that it may not take.

    Args:
      what: a sentence's beginning, for the message: what does not work.
      function: what is called.
      *args: with what.

    Raises:
      ValueError: in one sentence, whatever the function raises.
    """
    try:
        return function(*args)
    except Exception as error:
        raise ValueError(f"{what} ({in_a_line(error)}).") from error


def expect(name: str, value: Any, kind: Any, what: str) -> None:
    """Raises a `ValueError` unless a value is of a kind.

    Args:
      name: of the value.
      value: from Python anything may come.
      kind: as of `isinstance`.
      what: says what it must be.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {what}, not {shown(value)}.")


def check_number(
    name: str,
    value: Any,
    least: int | float | None = None,
    above: int | float | None = None,
    most: int | float | None = None,
    whole: bool = False,
) -> None:
    """Raises a `ValueError` unless a value is a finite number, and in its range.

    Args:
      name: of the value.
      value: from Python anything may come.
      least: the smallest that it may be.
      above: what it must be larger than.
      most: the largest that it may be.
      whole: whether it must be a whole number.
    """
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} must be a{' whole' * whole} number, not {shown(value)}.")
    number: Any = value
    if not abs(number) <= (sys.maxsize if whole else sys.float_info.max):
        raise ValueError(f"{name} must be a finite number, not {shown(value)}.")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")
    if above is not None and number <= above:
        what = "positive" if above == 0 else f"more than {above}"
        raise ValueError(f"{name} must be {what}, not {value}.")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, not {value}.")
