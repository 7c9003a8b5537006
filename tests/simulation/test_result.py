"""A result where it is shown: what was run, and where it ended, on a few lines."""

import numpy as np
import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax.simulation.result import COLUMNS, LINES, Final
from dimat_jax.simulation.setup import prepare


def result(methods=("dimat", "wa"), ends=None, name="noise") -> dj.Result:
    """A result that ended with these accuracies, (method, seed) → agents."""
    config = small_config(agents=4, methods=methods, seeds=(0, 1), width=0.5)
    setup = prepare(config, linear_softmax(), noise(size=8)._replace(name=name))
    finals = {
        key: Final({}, {"accuracy": np.array(values)}, []) for key, values in (ends or {}).items()
    }
    return dj.Result([], None, setup.symmetries, finals, setup)


def test_a_result_says_what_was_run_and_where_it_ended():
    ends = {("dimat", 0): [0.5, 0.6], ("dimat", 1): [0.7, 0.8]}
    assert repr(result(ends=ends)).splitlines() == [
        "Result:",
        "  noise",
        "  own × 0.5, 4 agents, ring",
        "  seeds 0, 1; test accuracy in % at the end, ± std:",
        "  DIMAT: 65.0 ± 12.9",
        "  WA: did not end",
    ]
    assert "DIMAT: 50.0\n" in repr(result(ends={("dimat", 0): [0.5]}))  # one value has no spread


@pytest.mark.parametrize("number", [5, 6, 7, 22])
def test_a_result_is_short_whatever_it_holds(number):
    methods = tuple(
        name for name in dj.algorithms.METHODS if name != "sgp" and "repair" not in name
    )[:number]
    ends = {(method, seed): [0.25] * 4 for method in methods for seed in (0, 1)}
    lines = repr(result(methods, ends, name="a data set of a long name " * 9)).splitlines()
    assert len(lines) == min(LINES, 4 + number) <= 10
    assert max(map(len, lines)) == COLUMNS == 88
    shown = sum("25.0 ± 0.0" in line for line in lines)
    assert shown == number if number <= 6 else f"{number - shown} more" in lines[-1]
    assert shown >= 5


def test_a_result_is_still_a_tuple():
    found = result()
    assert found == tuple(found) and len(found) == 6
    assert found._replace(history=[1]).history == [1]
