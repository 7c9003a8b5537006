"""Rows of metrics: what is written comes back; stages and methods in their order."""

import json
import math

import numpy as np
import pytest
from helpers.report_rows import row, run

from dimat_jax import metrics
from dimat_jax.metrics import Stage

CONTRACT = {
    "method", "seed", "round", "epoch", "phase", "test_accuracy", "test_accuracy_std",
    "test_accuracy_agents", "test_loss", "train_loss", "consensus_distance", "bytes_sent",
    "images_per_second", "seconds",
}  # fmt: skip


def test_a_row_has_the_fields_of_the_contract():
    assert metrics.Row.__optional_keys__ == {
        "agents_measured",
        "messages_lost",
        "messages_left_out",
        "diverged",
    }
    fields = set(metrics.Row.__required_keys__)
    more = {"consensus_distance_aligned", "test_accuracy_classes", "merged_accuracy", "units_moved"}
    more |= {"test_loss_std", "test_loss_agents", "merged_loss"}
    assert fields == CONTRACT | more == set(run()[0])


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = run()
    for number, line in enumerate(rows, 1):
        metrics.append_row(path, line)
        assert len(path.read_text().splitlines()) == number
    assert metrics.read_rows(path) == rows


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    bad = row("wa", 0, 1, 1, "merge", [0.1], test_loss=math.nan, seconds={"mix": math.inf})
    metrics.append_row(path, bad)
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["test_loss"] is None
    assert written["seconds"] == {"mix": None}
    assert written["test_accuracy_agents"] == [0.1]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in run()[:2]:
        metrics.append_row(path, line)
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 4])
    assert metrics.read_rows(path) == run()[:2]


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"method": "wa"}\n{"method"\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not a row of metrics"):
        metrics.read_rows(path)


def test_methods_leave_the_shared_pretraining_out_unless_it_is_all():
    assert metrics.methods_of(run()) == ["dimat", "wa"]
    assert metrics.methods_of(run(rounds=0)) == ["pretrain"]


def test_stages_are_in_order_of_time():
    names = [str(stage) for stage in metrics.stages_of(reversed(run(rounds=2)))]
    assert names == ["pretraining", "merge 1", "train 1", "merge 2", "train 2"]


def test_the_last_row_of_a_stage_counts():
    found = metrics.last_rows(run(), "dimat")
    assert found[Stage(0, "pretrain")][1]["epoch"] == 2
    assert found[Stage(2, "merge")][0]["method"] == "dimat"
    assert sorted(found[Stage(2, "merge")]) == [0, 1]


def test_accuracies_are_those_of_all_agents_and_seeds():
    by_seed = {0: row("a", 0, 1, 1, "merge", [0.1, 0.2]), 5: row("a", 5, 1, 1, "merge", [0.3])}
    np.testing.assert_array_equal(metrics.values_of(by_seed), [0.1, 0.2, 0.3])
    assert metrics.values_of({}).shape == (0,)


def test_the_spread_is_that_of_a_sample_and_none_of_a_single_value():
    assert metrics.spread(np.array([1.0, 2.0, 4.0])) == pytest.approx((7 / 3) ** 0.5)
    assert metrics.spread(np.array([1.0])) is None and metrics.spread(np.array([])) is None
