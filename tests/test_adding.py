"""Adding a topology, a model, a data set: one file and one line, and a command can name it."""

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

ADDED = {
    "topology/chain.py": (CHAIN, '"chain": "chain:chain"', '"ring": "deterministic:ring"'),
    "models/linear.py": (LINEAR, '"linear": "linear:linear"', '"mlp": "mlp:mlp"'),
    "datasets/stripes.py": (STRIPES, '"stripes": "stripes:load"', '"auto": "auto:load"'),
}
"""File → its content, its line in the registry, and the line that it comes before."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the library and the commands, with a file of each kind and its line added."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("dimat_jax", "experiments"):
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


def cifar(root: pathlib.Path, *arguments: str) -> str:
    """What the copy's main job says."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cifar", *arguments],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_lists_what_was_added(copy):
    said = cifar(copy, "--help")
    assert all(name in said for name in ("chain", "linear", "stripes"))


def test_a_run_takes_what_was_added(copy):
    named = "--topology chain --model linear --dataset stripes"
    sizes = "--agents 4 --pretrain-epochs 1 --rounds 1 --learning-rate 0.1 --out out"
    said = cifar(copy, *named.split(), *sizes.split())
    assert "my stripes" in said and "chain, spectral gap" in said and "linear, width 1" in said
    summary = json.loads((copy / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"] == "my stripes" and summary["config"]["topology"] == "chain"
    assert summary["all_tests"]["dimat"]["mean"] > 0.9
