"""A run from Python, with and without a folder for its results."""

import io
import json
import sys

import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj

OPTIONS = {"agents": 2, "topology": "fully_connected", "methods": ("wa",), "rounds": 1}


def simulate(observer="auto", **options) -> dj.Result:
    config = small_config(**OPTIONS | options)
    return dj.simulate(config, model=linear_softmax(), dataset=noise(size=8), observer=observer)


def test_a_run_with_a_folder_leaves_there_what_it_returns(tmp_path):
    result = simulate(out=tmp_path / "new" / "out")
    lines = (tmp_path / "new" / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.history
    for name in ("config.json", "summary.json", "tables.md", "accuracy.png"):
        assert (tmp_path / "new" / "out" / name).stat().st_size > 0
    with pytest.raises(ValueError, match="already holds a run"):
        simulate(out=tmp_path / "new" / "out")


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(simulate().history) == 3
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_unless_nobody_is_to_be_told(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", output := io.StringIO())
    for stream, observer, shown in (
        (Terminal(), "auto", True),
        (Terminal(), None, False),
        (Terminal(), dj.Observer(), False),
        (io.StringIO(), "auto", False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        simulate(observer, rounds=0)
        assert ("pretraining: epoch 1 of 1, loss" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown
    assert output.getvalue() == ""


def interrupt(row):
    if row["phase"] == "merge":
        raise KeyboardInterrupt


def test_an_interrupted_run_leaves_the_report_of_what_there_is(tmp_path):
    reasons = []
    observer = dj.Observer(on_row=interrupt, on_stop=lambda _, reason: reasons.append(reason))
    with pytest.raises(KeyboardInterrupt):
        simulate(observer, out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"] is False and [summary["stopped"]] == reasons
    assert reasons == ["Interrupted in seed 0, WA, round 1: evaluating on 50 test examples."]
    assert "merge 1" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 0


def test_a_run_that_diverges_at_once_leaves_a_summary_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="loss of agent"):
        simulate(out=tmp_path / "out", learning_rate=1e38)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"] is False and summary["accuracy"] == {}
    assert summary["stopped"] == "Diverged in seed 0, pretraining: epoch 1 of 1."
