"""The stopwatch: seconds by part, nested parts taken out, compilations apart."""

import jax
import jax.numpy as jnp
import pytest

from dimat_jax.execution import timing
from dimat_jax.execution.timing import Stopwatch, compiled, executables


class Clock:
    """A clock that only moves when told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_parts_add_up_until_they_are_taken(clock):
    stopwatch = Stopwatch()
    for seconds in (1.0, 2.0):
        with stopwatch.measure("train") as timer:
            clock.now += seconds
        assert timer.seconds == seconds
    clock.now += 100
    with stopwatch.measure("mix"):
        clock.now += 4
    assert stopwatch.take() == {"train": 3.0, "mix": 4.0}
    assert stopwatch.take() == {}


def test_an_inner_part_is_taken_out_of_all_that_are_around_it(clock):
    stopwatch = Stopwatch()
    with stopwatch.measure("evaluate") as outer:
        clock.now += 1
        with stopwatch.measure("train"):
            clock.now += 2
            with stopwatch.measure("compile"):
                clock.now += 4
            with stopwatch.measure("compile"):
                clock.now += 8
        clock.now += 16
    assert stopwatch.take() == {"compile": 12.0, "train": 2.0, "evaluate": 17.0}
    assert outer.seconds == 17.0


def test_who_asks_is_told_of_parts_when_they_begin_and_when_they_go_on():
    told = []
    stopwatch = Stopwatch(told.append)
    with stopwatch.measure("train"):
        with stopwatch.measure("compile"):
            pass
        assert told == ["train", "compile", "train"]
    with pytest.raises(KeyError), stopwatch.measure("match"), stopwatch.measure("assign"):
        raise KeyError("lost")
    assert told == ["train", "compile", "train", "match", "assign"]  # nothing goes on after it


def test_what_was_spent_is_known_after_it_was_taken(clock):
    stopwatch = Stopwatch()
    for seconds in (1.0, 2.0, 4.0):
        with stopwatch.measure("compile"):
            clock.now += seconds
        if seconds < 4:
            stopwatch.take()
    assert stopwatch.spent_on("compile") == 7.0 and stopwatch.spent_on("train") == 0.0


def test_a_block_that_fails_is_measured_and_ends(clock):
    stopwatch = Stopwatch()
    with pytest.raises(KeyError), stopwatch.measure("train"):
        clock.now += 1
        raise KeyError("lost")
    with stopwatch.measure("mix"):
        clock.now += 2
    assert stopwatch.take() == {"train": 1.0, "mix": 2.0}


def test_a_compiled_function_is_traced_once_for_each_set_of_shapes():
    traces = []

    @jax.jit
    def scale(tree, by):
        traces.append(tree["x"].shape)
        return jax.tree.map(lambda x: x * by, tree)

    stopwatch = Stopwatch()
    function = compiled(scale, stopwatch)
    for size in (2, 2, 3, 2, 3):
        result = function({"x": jnp.arange(size)}, jnp.asarray(3))
        assert result["x"].tolist() == [3 * i for i in range(size)]
    assert traces == [(2,), (3,)]
    assert function({"x": jnp.ones(2)}, jnp.asarray(3.0))["x"].tolist() == [3.0, 3.0]
    assert traces == [(2,), (3,), (2,)]


def test_only_compiling_counts_as_such():
    stopwatch = Stopwatch()
    function = compiled(jax.jit(lambda x: x + 1), stopwatch)
    function(jnp.zeros(3))
    assert stopwatch.take()["compile"] > 0
    function(jnp.ones(3))
    assert stopwatch.take() == {}


def test_executables_are_found_again_for_the_same_shapes_alone():
    find = executables(jax.jit(lambda x: x + 1), Stopwatch())
    two, three = find(jnp.zeros(2)), find(jnp.zeros(3))
    assert find(jnp.ones(2)) is two is not three
    assert two(jnp.ones(2)).tolist() == [2, 2]
