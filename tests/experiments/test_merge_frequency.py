"""Merging more or less often: a small study from end to end, and what is read off its rows."""

import dataclasses

import numpy as np
import pytest
from helpers import small_studies

from experiments import merge_frequency
from experiments.reports import merge_frequency as merge_frequency_report


def test_a_study_from_end_to_end(tmp_path):
    smoke = merge_frequency.STUDIES["smoke"]
    base = dataclasses.replace(
        smoke.base, agents=3, examples_per_agent=40, pretrain_epochs=1, topology="ring"
    )
    study = smoke._replace(base=base, epochs=2, periods=(0.5, 2), seeds=1)
    cells, text = small_studies.run(merge_frequency, study, tmp_path)
    stored = cells["iid-0"]
    ends = {(row["method"], row["period"]): row for row in stored if "all_tests" in row}
    assert set(ends) == {("dimat", 0.5), ("wa", 0.5), ("dimat", 2), ("wa", 2), ("local_only", 2)}
    # All train as long, and each starts from the same agents.
    assert {row["epoch"] for row in ends.values()} == {2}
    assert len({row["before"] for row in stored}) == 1
    assert {r["epoch"] for r in stored if r["period"] == 0.5} == {0, 0.5, 1, 1.5, 2}
    # Four merges and the last one, against one and the last.
    assert ends["wa", 0.5]["bytes_sent"] == pytest.approx(2.5 * ends["wa", 2]["bytes_sent"])
    assert "alone: never" in text


@pytest.mark.parametrize("slope", [0.5, 1.0])
def test_the_drifts_exponent_is_found(slope):
    rows = [
        dict(method="wa", period=p, phase="train", epoch=e, seed=s, distance=(1 + s) * p**slope)
        for p in (0.1, 1, 10)
        for e in (5, 10)
        for s in (0, 1)
    ]
    pairs = [(p, merge_frequency_report.drifts(rows, "wa", p)[1]) for p in (0.1, 1, 10)]
    assert merge_frequency_report.exponent(pairs) == pytest.approx(slope)
    np.testing.assert_allclose([d for _, d in pairs], 2 * np.array([0.1, 1, 10]) ** slope)


def test_periods_go_evenly_into_epochs():
    for study in merge_frequency.STUDIES.values():
        steps = study.base.examples_per_agent // study.base.batch_size
        for period in study.periods:
            whole = study.epochs / period if period >= 1 else steps * period
            assert whole == pytest.approx(round(whole)) and round(whole) >= 1
