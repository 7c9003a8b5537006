"""The summary: accuracies, leads, versions, and the commit of this very checkout."""

import json
import pathlib
import platform
import subprocess

import jax
import numpy as np
import pytest
from helpers.report_rows import run

from dimat_jax.report import summary

ALL_TESTS = {"dimat": {0: np.array([0.5, 0.7])}, "wa": {0: np.array([0.25, 0.25])}}
LABELS = {"dimat": "DIMAT", "wa": "WA"}


def test_accuracies_and_leads():
    found = summary.summarize(run(), "digits", {"agents": 4}, ALL_TESTS, LABELS)
    spread = np.concatenate([np.arange(4) * 0.01 + seed * 0.02 for seed in (0, 1)])
    assert found["pretrained"]["mean"] == pytest.approx(0.4 + spread.mean())
    assert found["accuracy"]["wa"]["first_merge"]["mean"] == pytest.approx(0.17 + spread.mean())
    assert found["accuracy"]["dimat"]["final"]["mean"] == pytest.approx(0.47 + spread.mean())
    assert found["accuracy"]["dimat"]["final"]["std"] == pytest.approx(spread.std(ddof=1))
    (lead,) = found["leads"]
    assert (lead["of"], lead["over"]) == ("dimat", "wa")
    assert lead["first_merge"]["mean"] == pytest.approx(0.25)
    assert lead["final"]["mean"] == pytest.approx(0) and lead["final"]["seeds"] == 2
    assert lead["all_tests"] == {"mean": pytest.approx(0.35), "interval": None, "seeds": 1}
    assert found["bytes_sent"] == {"dimat": 6e6, "wa": 6e6}
    assert found["dataset"] == "digits" and found["config"] == {"agents": 4}
    assert found["complete"] is True and found["stopped"] is None
    json.dumps(found, allow_nan=False)


def test_one_agent_of_one_seed_has_no_spread():
    rows = run(seeds=(0,), agents=1)
    found = summary.summarize(rows, "digits", {}, {"dimat": {0: np.array([0.5])}}, LABELS)
    assert found["accuracy"]["dimat"]["final"] == {"mean": pytest.approx(0.47), "std": None}
    assert found["all_tests"]["dimat"] == {"mean": 0.5, "std": None}
    assert summary.final_line(found) == "On all test examples at the end: DIMAT 50.0 %."


def test_headline_says_who_leads_by_how_much_and_how_sure_that_is():
    found = summary.summarize(run(), "digits", {}, ALL_TESTS, LABELS)
    assert summary.headline(found) == (
        "DIMAT against WA: +25.0 [+25.0, +25.0] points after the first merge, "
        "+0.0 [+0.0, +0.0] points at the end; 95% intervals over 2 seeds."
    )
    one = summary.summarize(run(seeds=(0,)), "digits", {}, ALL_TESTS, LABELS)
    assert summary.headline(one) == (
        "DIMAT against WA: +25.0 points after the first merge, +0.0 points at the end; of one seed."
    )
    alone = summary.summarize(run(rounds=0), "digits", {}, ALL_TESTS)
    assert alone["leads"] == [] and summary.headline(alone) == ""


def test_a_run_that_was_stopped_says_so_however_little_there_is():
    found = summary.summarize([], "digits", {}, {}, LABELS, "interrupted in seed 0")
    assert found["complete"] is False and found["stopped"] == "interrupted in seed 0"
    assert summary.headline(found) == summary.final_line(found) == ""


def test_kernels_that_are_switched_off_have_no_version(monkeypatch):
    monkeypatch.setattr(summary, "version", lambda name: "1")
    assert summary.versions()["dimat_jax_cpu"] == "1"
    monkeypatch.setenv("DIMAT_JAX_CPU", "0")
    assert summary.versions()["dimat_jax_cpu"] is None
    assert summary.versions()["jax"] == "1"


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
    found = summary.summarize(run(), "digits", {}, ALL_TESTS, {"dimat": "DIMAT"})
    assert found["all_tests"]["dimat"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.2 / 2**0.5),
    }
    line = summary.final_line(found)
    assert line == "On all test examples at the end: DIMAT 60.0 ± 14.1 %, wa 25.0 ± 0.0 %."
