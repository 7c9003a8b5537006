"""Adding a method, a topology, a model, a data set: one file and one line make it known to all."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

CHAIN = '''
import networkx as nx

from dimat_jax.topology.base import Topology, from_graph


def chain(n: int) -> Topology:
    """Each agent and the next one."""
    return from_graph(nx.path_graph(n), "chain")
'''

LINEAR = '''
import flax.linen as nn

from dimat_jax.models.adapters import from_linen
from dimat_jax.types import Model


def linear(num_classes: int = 10, width: float = 1.0) -> Model:
    """A hidden layer without a nonlinearity."""
    flat = lambda x: x.reshape(x.shape[0], -1)
    return from_linen(nn.Sequential([flat, nn.Dense(round(8 * width)), nn.Dense(num_classes)]))
'''

STRIPES = '''
import numpy as np

from dimat_jax.datasets.base import Dataset


def load(data_dir=None, cache_dir=None) -> Dataset:
    """Vertical and horizontal stripes."""
    labels = np.arange(240, dtype=np.int32) % 2
    columns = np.where(np.arange(8) % 2, 255, 0).astype(np.uint8) * np.ones((8, 1), np.uint8)
    images = np.where(labels[:, None, None] == 1, columns, columns.T)[..., None]
    return Dataset(images[:200], labels[:200], images[200:], labels[200:], 2, "my stripes")
'''

HALFWAY = '''
import jax

from dimat_jax.algorithms.base import Algorithm, Gossip, descend, doubly_stochastic
from dimat_jax.execution.exchange import mix


def update(params, gradients, state, exchange, rate):
    """Halfway to the neighbours' average."""
    stepped = descend(params, rate, gradients[0])
    halfway = jax.tree.map(lambda x, m: (x + m) / 2, stepped, mix(exchange.matrix, stepped))
    return halfway, state


halfway = Algorithm(
    label="Half DSGD",
    update="x_i ← ½ x_i½ + ½ Σ_j π_ij x_j½",
    source="nobody",
    gossip=Gossip(update, doubly_stochastic),
)
'''

ADDED = {
    "algorithms/halfway.py": (HALFWAY, '"halfway": "halfway:halfway"', '"cdsgd": "gossip:cdsgd"'),
    "topology/chain.py": (CHAIN, '"chain": "chain:chain"', '"ring": "deterministic:ring"'),
    "models/linear.py": (LINEAR, '"linear": "linear:linear"', '"mlp": "mlp:mlp"'),
    "datasets/stripes.py": (STRIPES, '"stripes": "stripes:load"', '"auto": "auto:load"'),
}
"""File → its content, its line in the registry, and the line that it comes before."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the library and the commands, with a file of each kind and its line added."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in ("dimat_jax", "experiments", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    registry = root / "dimat_jax/registry.py"
    text = registry.read_text(encoding="utf-8")
    for file, (content, line, following) in ADDED.items():
        (root / "dimat_jax" / file).write_text(content, encoding="utf-8")
        assert text.count(following) == 1
        text = text.replace(following, f"{line},\n        {following}")
    registry.write_text(text, encoding="utf-8")
    return root


def run(root: pathlib.Path, *arguments: str) -> str:
    """What a command of the copy says."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_help_lists_what_was_added(copy):
    said = run(copy, "experiments.cifar", "--help")
    assert all(name in said for name in ("chain", "linear", "stripes", "halfway"))


def test_a_run_takes_what_was_added(copy):
    named = "--topology chain --model linear --dataset stripes --methods dimat halfway"
    sizes = "--agents 4 --pretrain-epochs 1 --rounds 1 --learning-rate 0.1 --out out"
    said = run(copy, "experiments.cifar", *named.split(), *sizes.split())
    assert "my stripes" in said and "chain, spectral gap" in said and "linear, width 1" in said
    summary = json.loads((copy / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"] == "my stripes" and summary["config"]["topology"] == "chain"
    assert min(summary["all_tests"][method]["mean"] for method in ("dimat", "halfway")) > 0.9
    assert "Half DSGD" in (copy / "out/tables.md").read_text(encoding="utf-8")
    # Ten steps of a message to 1.5 neighbours in the mean, against DIMAT's two merges and a network
    # over the three edges of the chain.
    assert summary["bytes_sent"]["halfway"] == 4 * summary["bytes_sent"]["dimat"] > 0


@pytest.mark.slow
def test_the_tests_of_all_methods_test_what_was_added(copy):
    said = run(copy, "pytest", "tests/algorithms/test_algorithms.py", "-k", "halfway", "-vv")
    for test in (
        "test_a_method_says_what_it_is",
        "test_at_learning_rate_0_agents_that_agree_stay",
        "test_a_method_names_what_makes_a_graph_unfit",
    ):
        assert f"{test}[halfway] PASSED" in said
