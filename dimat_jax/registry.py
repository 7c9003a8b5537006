"""What a run can name: the registries, and looking things up in them.

A registry says where a thing lies and imports it when it is asked for, so that ``--help`` lists all
names and still answers at once. Adding a topology, a model, a data set, an augmentation, a
partition or a method takes its file and its line here, ``"name": "module:attribute"``.
"""

import difflib
import importlib
import inspect
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
    },
)
"""Each ``(data_dir, cache_dir) -> Dataset``."""

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
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {kind} {name!r}.{hint} There are: {', '.join(allowed)}.")


def make(kind: str, name: str, table: Mapping[str, Callable], *args: Any, **options: Any) -> Any:
    """Calls ``table[name](*args, **options)``.

    Raises:
      ValueError: if the name is unknown, or the factory does not take an option or lacks one.
    """
    factory = table[choose(kind, name, table)]
    signature = inspect.signature(factory)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r}: {error}. It takes {signature}.") from error
    return factory(*args, **options)
