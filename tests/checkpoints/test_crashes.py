"""Whenever a process dies, what it leaves is gone on with, or begun anew: never refused."""

import json
import os
import warnings
import zlib
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.deaths import dying, every_death
from helpers.sessions import timeless
from helpers.small_runs import assert_trees_equal, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax.checkpoints import resume, store
from dimat_jax.checkpoints.pack import Packed
from dimat_jax.checkpoints.weights import load_final, save_final
from dimat_jax.datasets import cache
from dimat_jax.execution import compile_cache
from dimat_jax.metrics import append_row, read_rows
from dimat_jax.report import folder as folder_of_run
from dimat_jax.simulation import run as run_module
from dimat_jax.simulation.result import Final
from dimat_jax.simulation.session import session_of
from dimat_jax.simulation.setup import prepare

UNFINISHED = ".*.unfinished"


@pytest.fixture(autouse=True)
def without_warnings(monkeypatch):
    """Nobody is told of damage where a process has only died; the disk does not have to be waited
    for, which outlives it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(params=["light", pytest.param("orbax", marks=pytest.mark.slow)])
def arrays(request, monkeypatch):
    """Arrays are written by NumPy, in a tenth of the time; or as in a run."""
    if request.param == "orbax":
        return

    def save(self, path, args):
        path.mkdir()
        np.savez(path / "arrays.npz", **args.item)

    def restore(self, path, args):
        with np.load(path / "arrays.npz") as found:
            return dict(found)

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)


# One by one.


def packed(number: int) -> Packed:
    """A state of two arrays, which differs from number to number."""
    arrays: dict[str, Any] = {"0": np.full(100, number, np.float32), "1": np.arange(number + 1)}
    return Packed(arrays, {"lanes": 1, "number": number})


def save(under, number, pretrained=4):
    store.save(under, number, packed(number), {"pretrained": pretrained, "score": None})


def assert_holds(under, number):
    """Asserts that a checkpoint is whole, and what was written."""
    shapes = {name: np.zeros_like(array) for name, array in packed(number).arrays.items()}
    assert store.load(under, number)["number"] == number
    read = ocp_read(under, number, shapes)
    assert_trees_equal(read, dict(packed(number).arrays))


def ocp_read(under, number, shapes):
    structs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in shapes.items()}
    return dict(store.arrays_of(under, number)(structs))


def test_a_checkpoint_is_there_whole_or_not_at_all_and_those_before_it_stay(arrays, tmp_path):
    def first_ones(under):
        save(under, 4, None)
        save(under, 8)

    def one_more(under):
        save(under, 12)
        store.prune(under, 1)

    def check(under):
        found = [number for number, _ in store.newest(under)]
        assert found in ([8, 4], [12, 8, 4], [12, 4])
        for number in found:
            assert_holds(under, number)
        assert not list(under.glob(UNFINISHED))
        one_more(under)
        assert [number for number, _ in store.newest(under)] == [12, 4]

    assert every_death(first_ones, one_more, check, tmp_path) >= 10


def test_a_checkpoint_that_is_written_again_is_never_there_in_part(arrays, tmp_path):
    def check(under):
        assert [number for number, _ in store.newest(under)] in ([8, 4], [4])
        save(under, 8)
        assert [number for number, _ in store.newest(under)] == [8, 4]

    def first_ones(under):
        save(under, 4, None)
        save(under, 8)

    assert every_death(first_ones, lambda under: save(under, 8), check, tmp_path) >= 8


def final(value: float) -> Final:
    """Where a method of two agents has ended."""
    kernel = np.full((2, 3), value, np.float32)
    swapped = cast(dict, {"group": np.array([[0, 1], [1, 0]], np.int32)})
    return Final({"params": {"kernel": kernel}}, {"accuracy": np.array([0.5, value])}, [swapped])


def test_final_networks_are_there_whole_or_not_at_all(tmp_path):
    def check(under):
        if (under / "wa-seed0").exists():
            kernel = load_final(under / "wa-seed0").variables["params"]["kernel"]
            assert kernel[0, 0] in (0, 1)
        save_final(under / "wa-seed0", final(1))
        assert_trees_equal(load_final(under / "wa-seed0").variables, final(1).variables)
        assert [path.name for path in under.iterdir()] == ["wa-seed0"]

    for prepare_it in (lambda under: None, lambda under: save_final(under / "wa-seed0", final(0))):
        under = tmp_path / str(len(list(tmp_path.iterdir())))
        under.mkdir()
        deaths = every_death(
            prepare_it, lambda to: save_final(to / "wa-seed0", final(1)), check, under
        )
        assert deaths >= 10


def test_rows_are_cut_at_once(tmp_path):
    def six(under):
        for number in range(6):
            append_row(under / "metrics.jsonl", {"method": "wa", "round": number})

    def check(under):
        assert len(read_rows(under / "metrics.jsonl")) in (6, 4)
        resume.keep_rows(under / "metrics.jsonl", 4)
        assert [row["round"] for row in read_rows(under / "metrics.jsonl")] == [0, 1, 2, 3]

    def cut(under):
        resume.keep_rows(under / "metrics.jsonl", 4)

    assert every_death(six, cut, check, tmp_path) >= 3


def test_a_data_set_is_in_the_cache_whole_or_not_at_all(tmp_path):
    data = noise(examples=8, tests=4, size=4)

    def damaged(under):
        cache.cached("own", [], lambda: data, under)
        (images,) = under.glob("own-*/train_images.npy")
        images.write_bytes(b"")

    def fill(under):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What was damaged is said to be.
            cache.cached("own", [], lambda: data, under)

    def check(under):
        fill(under)
        found = cache.cached("own", [], pytest.fail, under)
        assert_trees_equal(found[:4], data[:4])
        assert not list(under.glob(UNFINISHED))

    def nothing(under):
        return None

    for number, before in enumerate((nothing, damaged)):
        under = tmp_path / str(number)
        under.mkdir()
        assert every_death(before, fill, check, under) >= 14


def test_a_cache_of_programs_is_healed_whenever_that_was_cut_short(tmp_path):
    whole = zlib.compress(b"compiled" * 100)

    def entries(under):
        for number in range(4):
            content = whole[: -5 if number % 2 else None]
            (under / f"{number}-cache").write_bytes(content)

    def check(under):
        compile_cache.heal(under)
        assert {path.name for path in under.glob("*-cache")} == {"0-cache", "2-cache"}
        assert len(json.loads((under / compile_cache.KNOWN).read_text())) == 2

    assert every_death(entries, compile_cache.heal, check, tmp_path) >= 5


# Whole runs.

DATASET = noise(examples=160, tests=20, size=8)
METHODS = {"methods": ("wa",), "seeds": (0,), "rounds": 1}
MORE = {"methods": ("wa", "dsgd"), "seeds": (0, 1), "rounds": 2}


class Picture:
    """What a report draws, which takes most of its time."""

    def savefig(self, path):
        path.write_bytes(b"a picture")


@pytest.fixture
def tiny(arrays, monkeypatch):
    """``(out, **options) -> result`` of runs that compile once and draw nothing."""
    compiled = {}

    def prepared(config, *given):
        kind = config.methods, config.seeds
        if kind not in compiled:
            compiled[kind] = session_of(prepare(config, linear_softmax(), DATASET))
        return compiled[kind].setup._replace(config=config)

    def session(setup, observer):
        return compiled[setup.config.methods, setup.config.seeds]._replace(setup=setup)

    monkeypatch.setattr(run_module, "prepare_run", prepared)
    monkeypatch.setattr(run_module, "session_of", session)
    monkeypatch.setattr(folder_of_run, "accuracy_figure", lambda *given: Picture())

    def go(out, **options):
        config = small_config(agents=2, topology="fully_connected", **options, out=out)
        return dj.simulate(config, observer=dj.Observer())

    return go


def assert_same(result, expected, out):
    """Asserts that a run gave the same, and that its folder holds all of that and no more."""
    assert [timeless(row) for row in result.history] == [timeless(r) for r in expected.history]
    assert [timeless(row) for row in read_rows(out / "metrics.jsonl")] == [
        timeless(r) for r in expected.history
    ]
    assert list(result.finals) == list(expected.finals)
    for name, found in result.finals.items():
        assert_trees_equal(found.variables, expected.finals[name].variables)
        assert_trees_equal(found.measured, expected.finals[name].measured)
    loaded = dj.load_run(out)
    assert loaded.summary is not None and loaded.summary["complete"] is True
    for name, variables in loaded.variables.items():
        assert_trees_equal(variables, expected.finals[name].variables)
    assert not list(out.rglob(UNFINISHED))
    assert {path.name for path in out.iterdir()} >= {*folder_of_run.FILES, *folder_of_run.FOLDERS}


def begun(out, tiny, options):
    """Leaves a run that has died before it ended."""
    with dying(40):
        tiny(out, **options)


BEFORE = {
    "nothing": (lambda out, tiny, options: None, {}),
    "a run that has ended": (
        lambda out, tiny, options: tiny(out, **options | {"seeds": (5,)}),
        {"overwrite": True},
    ),
    "a run that has died": (begun, {"resume": True}),
}


def die_everywhere(before, options, tiny, tmp_path, every, again):
    """Has a run die before its changes of the disk, and the one that goes on before one, too."""
    prepare_it, how = BEFORE[before]
    expected = tiny(tmp_path / "expected", **options)
    rng = np.random.default_rng(0)

    def check(out):
        for _ in range(again):
            with dying(int(rng.integers(1, 60))):
                again_of(out)
        assert_same(again_of(out), expected, out)

    def again_of(out):
        try:
            return tiny(out, resume=True, **options)
        except ValueError as error:
            # Died before it had replaced anything of what was there: that is as it was.
            assert "seeds was [5]" in str(error)
            summary = dj.load_run(out).summary
            assert summary is not None and summary["complete"] is True
            return tiny(out, overwrite=True, **options)

    def started(out):
        prepare_it(out, tiny, options)

    def go(out):
        tiny(out, **options | how)

    return every_death(started, go, check, tmp_path, every)


OFTEN = ("a run that has died",)


@pytest.mark.parametrize(
    "before", [pytest.param(n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n in BEFORE]
)
def test_a_run_that_dies_anywhere_goes_on_or_begins_anew(before, tiny, tmp_path):
    deaths = die_everywhere(before, METHODS, tiny, tmp_path, every=7, again=1)
    assert deaths >= 5


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("options", [METHODS, MORE], ids=["one method", "two methods, two seeds"])
def test_a_run_that_dies_anywhere_twice_goes_on(options, before, tiny, tmp_path):
    assert die_everywhere(before, options, tiny, tmp_path, every=1, again=2) >= 40
