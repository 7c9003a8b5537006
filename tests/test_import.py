"""Importing is light, and the public names are there."""

import ast
import pathlib
import subprocess
import sys

import pytest

import dimat_jax as dj

STUB = pathlib.Path(dj.__file__).with_suffix(".pyi")
HEAVY = ("jax", "flax", "optax", "numpy", "scipy", "networkx", "matplotlib", "sklearn")

CONTRACT = """
Model from_linen from_nnx models Dataset find_symmetries Symmetries random_permutations permute
invert compose verify read_activations match_activations match_weights merge topology partition
algorithms simulate Config Result
""".split()


def public_names() -> list[str]:
    imports = ast.parse(STUB.read_text(encoding="utf-8")).body
    return [alias.asname for node in imports for alias in node.names]


@pytest.mark.parametrize("name", sorted({*public_names(), *CONTRACT}))
def test_every_public_name_can_be_had(name):
    assert name in dir(dj)
    assert getattr(dj, name).__doc__


def test_what_stands_in_the_namespaces():
    for name in "mlp convnet vgg11 vgg16 resnet20 resnet50 vit".split():
        assert callable(getattr(dj.models, name))
    for name in """ring fully_connected bipartite disconnected star torus exponential
        one_peer_exponential base_k hypercube erdos_renyi random_regular from_graph
        from_matrix""".split():
        assert callable(getattr(dj.topology, name))
    for name in "iid by_class dirichlet pretrain_iid_finetune_by_class".split():
        assert callable(getattr(dj.partition, name))
    assert {"dimat", "wa"} <= set(dj.algorithms.METHODS)


def test_an_unknown_name_is_not_there():
    assert not hasattr(dj, "simulat")


def heavy_modules_after(code: str) -> set[str]:
    """Which of `HEAVY` a fresh Python has imported after the code."""
    report = f"print('IMPORTED', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{report}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_imports_nothing_heavy():
    code = "import dimat_jax; dir(dimat_jax); dimat_jax.Config(agents=3); dimat_jax.PRESETS"
    assert heavy_modules_after(code) == set()


def test_the_command_answers_before_it_imports_anything_heavy():
    code = """
from experiments.cifar import main
for arguments in (["--help"], ["--optimizer", "none"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == (0 if arguments == ["--help"] else 2), (arguments, stop.code)
assert main(["--preset", "papr"]) == 2
"""
    assert heavy_modules_after(code) == set()
