"""Who is ahead: of agents alone first, at the same epoch, paired by seed, and how sure that is."""

import numpy as np
import pytest
from helpers.report_rows import row, run
from scipy import stats

from dimat_jax.report.leads import comparisons, lead


def alone(seeds=(0, 1), rounds=3):
    """Agents that train alone: 0.30 after pretraining, and 0.01 more with each round."""
    return [
        row("local_only", seed, round, 2 + round, "train", [0.3 + 0.01 * round + 0.02 * seed])
        for seed in seeds
        for round in range(1, rounds + 1)
    ]


def pairs(found):
    return [(comparison.of, comparison.over) for comparison in found]


def test_each_method_is_compared_with_agents_alone_and_then_the_first_with_the_others():
    everyone = [*run(), *alone(), row("dsgd", 0, 3, 5, "train", [0.5])]
    assert pairs(comparisons(everyone, {})) == [
        ("dimat", "local_only"),
        ("wa", "local_only"),
        ("dsgd", "local_only"),
        ("dimat", "wa"),
        ("dimat", "dsgd"),
    ]
    assert pairs(comparisons(run(), {})) == [("dimat", "wa")]
    assert comparisons(alone(), {}) == comparisons(run(rounds=0), {}) == comparisons([], {}) == []


def test_agents_alone_stand_at_a_merge_where_they_stood_before_the_training_after_it():
    rows, tests = [*run(agents=1), *alone()], {"wa": {1: np.array([0.9])}}
    found = {(c.of, c.over): c.points for c in comparisons(rows, tests)}["wa", "local_only"]
    # The first merge leaves 0.17 (seed 0); agents alone are as pretraining left them, at 0.40.
    assert found["first_merge"].mean == pytest.approx(0.17 - 0.40)
    assert found["last_merge"].mean == pytest.approx(0.46 - 0.25 / 3 - 0.32)  # after two rounds
    assert found["final"].mean == pytest.approx(0.47 - 0.33)
    assert "all_tests" not in found  # agents alone have no such figure


def test_only_the_seeds_that_both_have_run_to_the_same_epoch_count():
    rows = [
        row("a", 0, 1, 1, "train", [0.9]),
        row("a", 1, 1, 1, "train", [0.6]),
        row("a", 2, 1, 1, "train", [0.6]),
        row("b", 1, 1, 1, "train", [0.5]),
        row("b", 2, 1, 0, "merge", [0.1]),  # interrupted before its training
    ]
    (found,) = comparisons(rows, {})
    assert found.points["final"] == (pytest.approx(0.1), None, 1)


def test_the_interval_is_students_over_paired_differences():
    ours, theirs = {0: 0.50, 1: 0.58, 2: 0.69, 5: 0.9}, {2: 0.60, 1: 0.54, 0: 0.45}
    found = lead(ours, theirs)
    expected = stats.ttest_rel([0.50, 0.58, 0.69], [0.45, 0.54, 0.60]).confidence_interval(0.95)
    assert found.seeds == 3 and found.mean == pytest.approx(0.06)
    np.testing.assert_allclose(found.interval, expected)


def test_one_seed_has_a_difference_and_no_interval():
    assert lead({0: 0.5, 1: 0.7}, {1: 0.6}) == (pytest.approx(0.1), None, 1)
    assert lead({0: 0.5}, {1: 0.6}) is None
