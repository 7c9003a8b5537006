"""Every bad value of every public function and option is answered by one sentence, a ValueError.

The table is made from the signatures: of each parameter every value in `POOL` is tried, in a call
that is good otherwise. What is taken is none of this test's business; but it may not be everything.
"""

import ast
import dataclasses
import functools
import inspect
import json
import pathlib
import tempfile
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.small_runs import linear_softmax, noise

import dimat_jax as dj
from dimat_jax import models, partition, runs, topology
from dimat_jax.report.folder import plain
from dimat_jax.simulation.session import prepare_run
from experiments import common

POOL = {
    "None": None,
    "text": "junk",
    "0": 0,
    "-1": -1,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "True": True,
    "complex": 1j,
    "bytes": b"x",
    "list": [],
    "dict": {},
    "set": {1},
    "words": ("a", "b"),
    "Nones": [None],
    "nested": [[1], [2, 3]],
    "odd keys": {1: 2},
    "array": np.zeros(3),
    "type": int,
    "object": object(),
    "function": lambda *_, **__: None,
}
TYPED = ("junk", "0", "-1", "1.5", "nan", "inf", "", "None", "True", "[/red]", "1 2", "a b c", "é")
"""What stands on a command line."""

DATASET = noise(examples=32, tests=8, size=4, channels=1)
CONFIG = dj.Config(agents=2, topology="ring", batch_size=4, methods=("wa",))
KEY, IMAGES = jax.random.key(0), jnp.ones((2, 4, 4, 1))
LABELS = np.arange(32) % 4
MODEL = dj.models.mlp(num_classes=4, width=0.02)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.reshape(len(x), -1))


def session_of(**options):
    """A session of these options: nothing is compiled."""
    return dj.make_session(dj.Config(**vars(CONFIG) | options), model=SOFTMAX, dataset=DATASET)


SOFTMAX = linear_softmax()


@functools.cache
def folder_of_a_run() -> pathlib.Path:
    """The folder of a run that has just begun."""
    folder = pathlib.Path(tempfile.mkdtemp())
    described = json.dumps({"dataset": "noise", "config": plain(CONFIG)})
    (folder / "config.json").write_text(described, encoding="utf-8")
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    return folder


def calls() -> dict:
    """Name → a good call of it: the function, and its arguments; ``*inputs`` as a tuple."""
    ours, theirs = (MODEL.init(jax.random.key(seed), IMAGES) for seed in range(2))
    found = dj.find_symmetries(MODEL, ours, IMAGES)
    drawn = dj.random_permutations(KEY, found)
    network = dict(model_or_function=MODEL, variables=ours, inputs=(IMAGES,))
    pair = dict(symmetries=found, target=ours, source=theirs)
    run = dict(config=CONFIG, model=SOFTMAX, dataset=DATASET)

    def read(symmetries, model_or_function):
        return dj.read_activations(symmetries, model_or_function)(ours, IMAGES)

    return {
        "prepare_devices": (dj.prepare_devices, dict(agents=2)),
        "connect_processes": (
            dj.connect_processes,
            dict(agents=2, coordinator="localhost:1", processes=1, process=0),
        ),
        "match_activations": (
            dj.match_activations,
            pair | dict(model_or_function=MODEL, inputs=(IMAGES,)),
        ),
        "match_weights": (dj.match_weights, pair | dict(key=KEY)),
        "matching_objective": (dj.matching_objective, pair | dict(permutations=drawn)),
        "merge": (
            dj.merge,
            dict(
                symmetries=found,
                variables_list=[ours, theirs],
                weights=[0.5, 0.5],
                permutations_list=[{}, drawn],
            ),
        ),
        "from_linen": (dj.from_linen, dict(module=Net())),
        "from_nnx": (
            dj.from_nnx,
            dict(make_module=lambda rngs: nnx.Linear(3, 4, rngs=rngs)),
        ),
        "simulate": (dj.simulate, run),
        "load_run": (dj.load_run, dict(path=folder_of_a_run())),
        "make_session": (dj.make_session, run),
        "estimate": (dj.estimate, run | dict(device="cpu", compiles=False)),
        "compose": (dj.compose, dict(first=drawn, then=drawn)),
        "find_symmetries": (dj.find_symmetries, network),
        "invert": (dj.invert, dict(permutations=drawn)),
        "permute": (dj.permute, dict(symmetries=found, permutations=drawn, variables=ours)),
        "random_permutations": (dj.random_permutations, dict(key=KEY, symmetries=found)),
        "read_activations": (read, dict(symmetries=found, model_or_function=MODEL)),
        "verify": (dj.verify, network | dict(symmetries=found)),
        "sweep": (dj.sweep, dict(config=CONFIG, model=SOFTMAX, dataset=DATASET)),
        "classification": (dj.classification, dict(model=MODEL)),
        "language_model": (dj.language_model, dict(model=MODEL)),
        "regression": (dj.regression, dict(model=MODEL)),
    }


def factories() -> dict:
    """The same of the functions that the registries name, and their like."""
    sizes = dict(labels=LABELS, n=2, key=KEY)
    graphs = {name: dict(n=4) for name in topology.TOPOLOGIES}
    given = {
        **{f"topology.{name}": (topology.TOPOLOGIES[name], v) for name, v in graphs.items()},
        **{f"models.{name}": (models.FACTORIES[name], {}) for name in models.FACTORIES},
        **{
            f"partition.{name}": (partition.PARTITIONS[name], sizes) for name in ("iid", "by_class")
        },
        "partition.dirichlet": (partition.dirichlet, sizes | dict(alpha=1.0)),
        "topology.torus": (topology.torus, dict(rows=2, cols=2)),
        "topology.from_matrix": (topology.from_matrix, dict(array=np.eye(2))),
        "topology.make": (topology.make, dict(name="ring", n=4)),
        "models.make": (models.make, dict(name="mlp")),
        "datasets.check": (dj.datasets.check, dict(dataset=DATASET)),
        "datasets.load": (dj.datasets.load, dict(name="digits")),
        "Dataset": (
            lambda **fields: dj.datasets.check(dj.Dataset(**fields)),
            DATASET._asdict(),
        ),
        "Topology": (dj.Topology, dict(name="mine", mixing_matrices=np.eye(2)[None])),
    }
    return given


def public_functions() -> set[str]:
    """The functions that ``__init__.pyi`` names."""
    stub = pathlib.Path(dj.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    names = [a.asname for node in ast.parse(stub).body for a in node.names]  # pyrefly: ignore
    return {name for name in names if inspect.isfunction(getattr(dj, name))}


def call(function, arguments):
    """Calls it; a tuple of what ``*inputs`` takes is among the arguments."""
    parameters = inspect.signature(function).parameters.values()
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if several not in arguments:
        return function(**arguments)
    before = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = {n: x for n, x in arguments.items() if n not in (*before, several)}
    return function(*(arguments[name] for name in before), *arguments[several], **rest)


def parameters_of(function, arguments) -> list[str]:
    """What can be given to a function by name, and ``*inputs``."""
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return named or list(arguments)


def faults_of(function, arguments, name) -> tuple[list[str], int]:
    """What is wrong with the answers to a parameter's values, and how many values are refused."""
    faults, refused = [], 0
    several = inspect.signature(function).parameters.get(name)
    in_tuple = several is not None and several.kind is several.VAR_POSITIONAL
    for label, value in POOL.items():
        try:
            call(function, {**arguments, name: (value,) if in_tuple else value})
        except ValueError as error:
            refused += 1
            if "\n" in str(error).strip() or not str(error).strip():
                faults.append(f"{name}={label}: {error}")
        except Exception as error:
            faults.append(f"{name}={label}: {type(error).__name__}: {error}")
    return faults, refused


@pytest.fixture
def quiet(untyped, monkeypatch, tmp_path):
    """As users run it; nothing is run, and nobody is warned."""
    monkeypatch.setattr(runs, "run", lambda *args: prepare_run(*args[:-2]))
    monkeypatch.setattr("dimat_jax.simulation.sweep.trained", lambda *args: [])
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_public_function_is_tried():
    assert set(calls()) == public_functions()


ANYTHING = {
    ("topology.from_matrix", "name"),
    ("Dataset", "name"),
}
"""Where nearly any value is one."""


@pytest.mark.parametrize("table", [calls, factories])
def test_every_bad_value_of_a_function_is_one_sentence(table, quiet):
    faults = []
    for name, (function, arguments) in table().items():
        call(function, arguments)  # It is a good call.
        for parameter in parameters_of(function, arguments):
            found, refused = faults_of(function, arguments, parameter)
            faults += [f"{name}, {fault}" for fault in found]
            if (name, parameter) not in ANYTHING and refused < len(POOL) // 2:
                faults.append(f"{name}, {parameter}: {refused} values are refused")
    assert not faults, "\n".join(faults)


OPTIONS = [field.name for field in dataclasses.fields(dj.Config)]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_bad_value_of_an_option_is_one_sentence(option, quiet):
    faults, refused = faults_of(session_of, {option: getattr(CONFIG, option)}, option)
    assert not faults, "\n".join(faults)
    assert refused >= len(POOL) // 2


@pytest.mark.parametrize("option", OPTIONS)
def test_every_bad_value_on_the_command_line_is_one_sentence(option, quiet, capsys):
    faults, refused, given = [], 0, [f"--{option.replace('_', '-')}"]
    usual = "--agents 2 --topology ring --batch-size 4 --methods wa".split()
    usual = usual if option not in ("agents", "topology", "batch_size", "methods") else []
    for typed in TYPED:
        try:
            config = common.parse("cifar", "", [*usual, *given, *(typed.split() or [""])])
            prepare_run(config, SOFTMAX, DATASET)
        except ValueError as error:
            refused += 1
            if "\n" in str(error).strip():
                faults.append(f"{typed!r}: {error}")
        except (Exception, SystemExit) as error:
            faults.append(f"{typed!r}: {type(error).__name__} {error} {capsys.readouterr()}")
    assert not faults, "\n".join(faults)
    assert refused > 0
