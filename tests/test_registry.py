"""Names: the nearest one is suggested, options are checked before anything is called."""

from collections.abc import Callable

import pytest

from dimat_jax import algorithms, datasets, models, partition, registry, topology
from experiments import common


def double(n: int, scale: float = 2.0) -> float:
    return n * scale


def test_choose_returns_a_known_name():
    assert registry.choose("model", "mlp", ["convnet", "mlp"]) == "mlp"


def test_choose_suggests_the_nearest_name():
    with pytest.raises(ValueError) as error:
        registry.choose("model", "convet", ["mlp", "convnet"])
    assert str(error.value) == (
        "Unknown model 'convet'. Did you mean 'convnet'? There are: mlp, convnet."
    )


def test_choose_suggests_nothing_where_nothing_is_near():
    with pytest.raises(ValueError, match=r"^Unknown model 'xyz'\. There are: mlp\.$"):
        registry.choose("model", "xyz", ["mlp"])


def test_make_calls_the_factory():
    assert registry.make("function", "double", {"double": double}, 3, scale=5.0) == 15.0


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((3,), {"factor": 1}, "function 'double': got an unexpected keyword argument 'factor'"),
        ((), {}, "function 'double': missing a required argument: 'n'"),
    ],
)
def test_make_checks_the_options(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        registry.make("function", "double", {"double": double}, *arguments, **options)


def test_a_registry_knows_its_names_without_importing_anything():
    nowhere = registry.Registry("no.such.package", {"a": "b:c"})
    assert list(nowhere) == ["a"] and len(nowhere) == 1 and "a" in nowhere and "b" not in nowhere
    with pytest.raises(ImportError):
        nowhere["a"]
    with pytest.raises(KeyError):
        nowhere["b"]


def test_a_registry_is_not_changed():
    with pytest.raises(TypeError):
        registry.MODELS["mine"] = double  # pyrefly: ignore


REGISTRIES = {
    "topology": (registry.TOPOLOGIES, topology.TOPOLOGIES),
    "data set": (registry.DATASETS, datasets.SOURCES),
    "augmentation": (registry.AUGMENTATIONS, datasets.AUGMENTATIONS),
    "partition": (registry.PARTITIONS, partition.PARTITIONS),
    "model": (registry.MODELS, models.FACTORIES),
    "method": (registry.METHODS, algorithms.METHODS),
}


@pytest.mark.parametrize(("names", "used"), REGISTRIES.values(), ids=REGISTRIES)
def test_every_name_is_of_something_that_is_there(names, used):
    assert used is names
    kind = algorithms.Algorithm if names is registry.METHODS else Callable
    assert all(isinstance(found, kind) for found in names.values())


def test_the_help_knows_every_registry_that_there_is():
    there = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    assert {*map(id, there)} == {*map(id, common.NAMED.values())}
    assert len(there) == len(REGISTRIES)
