"""The configuration: what the command line says of it is what the library does."""

import ast
import dataclasses
import pathlib
from typing import get_args, get_type_hints

import pytest

from dimat_jax import config, datasets, models, partition, topology
from dimat_jax.algorithms import METHODS
from dimat_jax.config import LEARNING_RATES, PRESETS, Config
from dimat_jax.simulation.checks import check_options
from dimat_jax.simulation.setup import choose_graphs
from dimat_jax.training.optimizers import OPTIMIZERS
from experiments import common


def help_texts() -> dict[str, str]:
    """Field → the docstring below it, which is what ``--help`` shows."""
    module = ast.parse(pathlib.Path(config.__file__).read_text(encoding="utf-8"))
    body = next(node for node in module.body if isinstance(node, ast.ClassDef)).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def test_every_option_is_explained():
    assert list(help_texts()) == [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("topology", topology.TOPOLOGIES),
        ("dataset", datasets.SOURCES),
        ("partition", partition.PARTITIONS),
        ("augmentation", datasets.AUGMENTATIONS),
        ("model", models.FACTORIES),
    ],
)
def test_the_help_lists_every_name_there_is(option, names, capsys):
    with pytest.raises(SystemExit):
        common.parse("", "", ["--help"])
    lines = capsys.readouterr().out.split(f"--{option} ")[1].splitlines()
    text = " ".join(word for line in lines for word in line.split() if word not in "│╭╰")
    listed = text.split("(names: ")[1].split("; default: ")[0]
    assert listed.split(", ") == list(names)


def test_the_help_says_what_presets_there_are():
    assert [name for name in PRESETS if name not in help_texts()["preset"]] == []


def test_the_help_gives_the_default_learning_rates():
    text = help_texts()["learning_rate"]
    for optimizer, rate in LEARNING_RATES.items():
        assert optimizer in text and f"{rate:g}" in text


def test_every_optimizer_has_a_learning_rate():
    allowed = get_args(get_type_hints(Config)["optimizer"])
    assert set(allowed) == set(OPTIMIZERS) == set(LEARNING_RATES)


def test_presets_can_be_run():
    assert PRESETS["quick"] == Config()
    for name, preset in PRESETS.items():
        assert preset.preset == name
        check_options(preset)
        methods = {method: METHODS[method] for method in preset.methods}
        choose_graphs(preset, topology.make(preset.topology, preset.agents), methods)
        assert preset.model in models.FACTORIES and preset.dataset in datasets.SOURCES


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().agents = 3  # pyrefly: ignore


def test_options_that_are_not_given_are_the_presets(untyped):
    for name, preset in PRESETS.items():
        found = Config(preset=name, agents=4, width=2.0)
        assert found == dataclasses.replace(preset, agents=4, width=2.0)
    assert Config(preset="paper", agents=4).model == "resnet20" != Config().model
    assert dataclasses.replace(PRESETS["paper"], preset="quick").model == "resnet20"
    for wrong in ("junk", None, 3, ["quick"]):
        with pytest.raises(ValueError, match="Unknown preset .* There are: quick, early, paper."):
            Config(preset=wrong)
