"""The summary: accuracies, leads, versions, and the commit of this very checkout."""

import json
import pathlib
import platform
import subprocess

import jax
import numpy as np
import pytest
from helpers.report_rows import row, run

from dimat_jax.report import summary

ALL_TESTS = {"dimat": np.array([[0.5, 0.7]]), "wa": np.array([[0.25, 0.25]])}


def test_accuracies_and_leads():
    found = summary.summarize(run(), "digits", {"agents": 4}, ALL_TESTS)
    spread = np.concatenate([np.arange(4) * 0.01 + seed * 0.02 for seed in (0, 1)])
    assert found["pretrained"]["mean"] == pytest.approx(0.4 + spread.mean())
    assert found["accuracy"]["wa"]["first_merge"]["mean"] == pytest.approx(0.17 + spread.mean())
    assert found["accuracy"]["dimat"]["final"]["mean"] == pytest.approx(0.47 + spread.mean())
    assert found["accuracy"]["dimat"]["final"]["std"] == pytest.approx(spread.std())
    assert found["lead"]["of"] == "dimat"
    assert found["lead"]["over"]["wa"]["first_merge"]["mean"] == pytest.approx(0.25)
    assert found["lead"]["over"]["wa"]["final"]["mean"] == pytest.approx(0)
    assert found["bytes_sent"] == {"dimat": 6e6, "wa": 6e6}
    assert found["dataset"] == "digits" and found["config"] == {"agents": 4}
    json.dumps(found, allow_nan=False)


def test_leads_are_paired_by_seed():
    """Only the seed that both have run counts: 0.6 against 0.5."""
    rows = [
        row("a", 0, 1, 1, "train", [0.9]),
        row("a", 1, 1, 1, "train", [0.6]),
        row("b", 1, 1, 1, "train", [0.5]),
    ]
    assert summary.summarize(rows, "d", {}, {})["lead"]["over"]["b"] == {
        "final": {"mean": pytest.approx(0.1), "std": 0.0}
    }


def test_headline_says_who_leads_by_how_much():
    found = summary.summarize(run(), "digits", {}, ALL_TESTS)
    assert summary.headline(found) == (
        "dimat against wa: +25.0 points after the first merge, +0.0 points at the end."
    )
    alone = summary.summarize(run(rounds=0), "digits", {}, ALL_TESTS)
    assert alone["lead"] is None and summary.headline(alone) == ""


def test_versions_are_those_installed():
    versions = summary.versions()
    assert versions["python"] == platform.python_version()
    assert versions["jax"] == jax.__version__
    assert versions["numpy"] == np.__version__
    assert summary.version("no-such-library") is None


def test_the_commit_is_this_checkouts():
    top = pathlib.Path(__file__).resolve().parents[2]
    head = subprocess.run(["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode or not (top / ".git").exists():
        assert summary.commit() is None
    else:
        assert summary.commit().rstrip("+") == head.stdout.strip()


def test_the_commit_of_another_repository_is_not_taken(tmp_path, monkeypatch):
    """An installed package may lie inside somebody's repository: that commit says nothing."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    package = tmp_path / "site-packages" / "dimat_jax"
    package.mkdir(parents=True)
    monkeypatch.setattr(summary, "PACKAGE", package)
    assert summary.commit() is None


def test_all_test_images_at_the_end():
    found = summary.summarize(run(), "digits", {}, ALL_TESTS)
    assert found["all_tests"]["dimat"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)}
    line = summary.final_line(found)
    assert line == "On all test images at the end: dimat 60.0 ± 10.0 %, wa 25.0 ± 0.0 %."
