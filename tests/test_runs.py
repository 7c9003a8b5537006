"""A run from Python, with and without a folder for its results."""

import json

import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj

OPTIONS = {"agents": 2, "topology": "fully_connected", "methods": ("wa",), "rounds": 1}


def simulate(**options) -> dj.Result:
    config = small_config(**OPTIONS, **options)
    return dj.simulate(config, model=linear_softmax(), dataset=noise(size=8))


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
