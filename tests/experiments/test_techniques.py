"""The command that compares merging techniques: its rows, its report, bad input."""

import csv
import io
import json
import re

import numpy as np
import pytest

from experiments import techniques
from experiments.reports.techniques import barriers, mean_std
from experiments.techniques import CORRECTIONS, PRESETS, main

TINY = "--preset smoke --dataset digits --agents 3 --examples 200 --epochs 8 --images 64".split()
TECHNIQUES = ["averaging", "activation matching", "weight matching", "cycle-consistent"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of both networks of the smoke preset."""
    folder = tmp_path_factory.mktemp("techniques")
    assert main([*TINY, "--seeds", "0", "1", "--test-examples", "200", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    text = (folder / "techniques.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_every_technique_is_measured_with_every_correction_that_a_network_takes(rows):
    for network in PRESETS["smoke"]:
        for seed in (0, 1):
            mine = [r for r in rows if (r["network"], r["seed"]) == (network.label, seed)]
            corrections = [c for c in CORRECTIONS if c != "RESET" or network.norm == "batch"]
            assert [(r["technique"], r["correction"]) for r in mine] == [
                (t, c) for t in TECHNIQUES for c in corrections
            ]
            # Of one network it is the first one's, of all of them that of the mean.
            assert all(
                r["losses_of_first"][0] == pytest.approx(r["losses"][0], rel=1e-4)
                for r in mine
                if r["technique"] == "averaging" and r["correction"] == "none"
            )
            assert all(r["losses_of_first"][-1] == r["loss"] for r in mine)
            assert all(len(r["losses_of_first"]) == 3 for r in mine)
            # The networks themselves are the same whatever is done to them.
            assert len({r["ends_accuracy"] for r in mine}) == 1
            assert len({(r["accuracies"][0], r["accuracies"][-1]) for r in mine}) == 1


@pytest.mark.slow
def test_aligned_networks_merge_better_than_others(rows):
    """The direction of the published figures, at a scale that takes seconds."""

    def mean(technique, correction):
        found = [r for r in rows if (r["technique"], r["correction"]) == (technique, correction)]
        return np.mean([r["loss"] for r in found])

    assert mean("activation matching", "REPAIR") < mean("averaging", "REPAIR") - 0.1
    assert mean("activation matching", "REPAIR") < mean("activation matching", "none")
    assert mean("weight matching", "none") < mean("averaging", "none")


@pytest.mark.slow
def test_the_report_names_what_it_is_of(folder, rows):
    text = (folder / "techniques.md").read_text(encoding="utf-8")
    assert "digits" in text and "Seeds: 0, 1" in text and "jax " in text
    assert re.search(r"Commit [0-9a-f]{40}", text)
    assert "python -m experiments.techniques --preset smoke" in text
    for network in PRESETS["smoke"]:
        assert f"## {network.label}" in text
    with (folder / "techniques.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


@pytest.mark.slow
def test_published_figures_stand_beside_ours_and_the_networks_are_listed(folder, rows, capsys):
    text = (folder / "techniques.md").read_text(encoding="utf-8")
    figures = "MNIST: 71.7 → 83.0"
    assert text.count(figures) == len(PRESETS["smoke"]) and "arXiv 2211.08403" in text
    label = PRESETS["smoke"][0].label
    before, after = (
        mean_std(
            [
                100 * r["accuracies"][2]
                for r in rows
                if (r["network"], r["technique"], r["correction"])
                == (label, "activation matching", correction)
            ]
        )
        for correction in ("none", "REPAIR")
    )
    assert f"before → after REPAIR: {before} → {after} (end points" in text
    assert main(["--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(PRESETS["cpu"])
    assert said[0] == "mlp × 1, no normalisation: 3 networks, 1 seeds, 10 epochs of 10,000 examples"


def test_barriers_are_measured_from_the_straight_line_between_the_ends():
    row = {"accuracies": [0.8, 0.3, 0.6], "losses": [1.0, 2.5, 2.0]}
    found = barriers(row)
    assert found["accuracy_barrier"] == pytest.approx(0.4)
    assert found["loss_barrier"] == pytest.approx(1.0)
    straight = {"accuracies": [0.8, 0.7, 0.6], "losses": [1.0, 1.5, 2.0]}
    assert barriers(straight) == pytest.approx({"accuracy_barrier": 0.0, "loss_barrier": 0.0})


def test_a_mean_of_one_value_has_no_deviation():
    assert [mean_std(x) for x in ([], [2.0], [1.0, 3.0])] == ["-", "2.0", "2.0 ± 1.4"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--agents", "1"], "at least 2"),
        (["--examples", "3"], "at least 50, not 3"),
        (["--models", "lenet"], "Unknown model of the preset 'lenet'"),
        (["--report", __file__], "cannot be a folder of results"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(wrong, said, tmp_path, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(techniques.sys, "stderr", errors)
    assert main([*TINY, *wrong, "--out", str(tmp_path / "none")]) == 2
    assert errors.getvalue().startswith("error: ") and said in errors.getvalue()
    assert errors.getvalue().count("\n") == 1
