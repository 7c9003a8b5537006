"""The benchmarks' own arithmetic: ratios, counts and tables. Nothing is timed here."""

import functools
import json
import os
import subprocess
import sys
import time
import types

import pytest

from benchmarks import harness, merge, population, report, round, startup, step
from benchmarks.opponents.passes import passes_of
from benchmarks.work import Work, noise

NAMES = ("step", "round", "merge", "startup")
LIMITS = {
    "NumPy": [{"product": 1e11, "copy": 4e9}, {"product": 3e11, "copy": 4e9}],
    "JAX": [{"product": 1.5e11, "copy": 8e9}, {"product": 1.5e11, "copy": 6e9}],
}


def cells(table):
    """(row name, column) → cell."""
    return {
        (line[0], column): cell
        for line in table.rows
        for column, cell in zip(table.columns[1:], line[1:], strict=True)
    }


def test_a_spread_is_the_median_and_the_range():
    assert harness.spread([3.0, 1.0, 8.0]) == (3.0, 1.0, 8.0, 3)
    assert str(harness.spread([3.0, 1.0, 8.0])) == "3.00 (1.00 to 8.00)"
    assert str(harness.spread([1234.5])) == "1,234 (once)"
    with pytest.raises(ValueError, match="at least one value"):
        harness.spread([])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (99999.0, "99,999")],
)
def test_figures_have_three_digits(value, text):
    assert harness.figure(value) == text


def test_ratios_are_paired_by_repetition():
    # The machine slows down by half in the second repetition: both contestants with it.
    assert harness.ratios([1.0, 2.0, 1.0], [2.0, 4.0, 3.0]) == (2.0, 2.0, 3.0, 3)
    assert harness.ratios([1.0, 2.0, 1.0], [5.0]) == (5.0, 5.0, 5.0, 1)


def test_contestants_run_in_turn_after_one_warm_up_each():
    order = []
    blocks = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    found = harness.interleave(blocks, 3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert found == {"a": [4, 9, 10], "b": [5, 8, 11], "c": [6, 7, 12]}
    with pytest.raises(ValueError, match="at least 1, not 0"):
        harness.interleave(blocks, 0)


def test_a_slow_contestant_is_measured_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(harness, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def block(seconds):
        now[0] += seconds
        return seconds

    blocks = {name: functools.partial(block, s) for name, s in (("slow", 9.0), ("fast", 1.0))}
    assert harness.interleave(blocks, 3, limit=5.0) == {"slow": [9.0], "fast": [1.0] * 3}


def test_each_contestant_has_a_process_of_its_own_that_remembers():
    with harness.contestants({"a": (counter, 5), "b": (counter, 7)}) as blocks:
        values = [blocks[name]().value for name in ("a", "b", "a")]
        peak = blocks["a"]().peak_bytes
    (first, a), (second, other), (third, again) = values
    assert (first, second, third) == (5, 7, 6)
    assert len({a, other, os.getpid()}) == 3 and again == a
    assert 1e6 < peak < 1e11


def counter(start):
    """A block that counts up from a number, and says in which process."""
    state = [start - 1]

    def block():
        state[0] += 1
        return state[0], os.getpid()

    return block


def test_what_fails_in_a_contestant_fails_here():
    with pytest.raises(RuntimeError, match="invalid literal"):
        harness.apart(int, "x")
    with pytest.raises(RuntimeError, match="positional argument"):
        harness.apart(no_argument, "x")
    with harness.contestant(no_argument, "x") as block:  # the block is never made
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no_argument"):
                block()
    assert harness.apart(int, "17") == 17


def no_argument():
    """Makes no block, for it is called with an argument."""


def test_json_is_written_with_its_folder(tmp_path):
    harness.write_json(tmp_path / "a" / "b.json", {"x": [1.5]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1.5]}


def test_where_it_was_measured_is_said():
    where = harness.provenance(["benchmarks.step", "--quick"])
    assert where["command"] == "python -m benchmarks.step --quick"
    assert where["cores"] == len(os.sched_getaffinity(0))
    assert where["versions"]["jax"] and "torch_that_never_was" not in where["versions"]
    assert where["accelerator"] is None or where["accelerator"]
    assert "an H9, 2 cores" in report.sentence(where | {"accelerator": "an H9", "cores": 2})
    said = report.sentence(where)
    assert where["commit"] in said and f"jax {where['versions']['jax']}" in said


def test_the_limit_is_the_best_library():
    assert report.best(LIMITS, "product") == 2e11
    assert report.best(LIMITS, "copy") == 7e9
    assert "200 to 200 GFLOP/s, a copy at 7.00 to 7.00 GB/s" in report.limit_sentence([LIMITS])


def test_noise_is_the_same_each_time_and_of_all_classes():
    images, labels = noise(20)
    assert images.shape == (20, 32, 32, 3) and images.dtype == "uint8"
    assert (images == noise(20)[0]).all() and set(labels) == set(range(10))


def test_each_row_of_the_step_changes_one_thing():
    for name, work in step.ROWS.items():
        if not name.endswith("_batch_50"):
            changed = {
                field
                for field in ("model", "agents", "batch", "width")
                if getattr(work, field) != getattr(step.CENTRE, field)
            }
            assert len(changed) == (name != "centre") or (name == "vgg16" and len(changed) == 2)
    assert {step.ROWS[f"agents_{n}"].agents for n in (1, 2, 4, 8, 32, 64)} == {1, 2, 4, 8, 32, 64}
    assert set(step.QUICK) <= set(step.ROWS)


def test_the_table_of_the_step():
    row = {
        "operations_an_image": 1e8,
        "images_per_second": {"ours": [400.0, 500.0], "torch": [200.0, 500.0], "vmap": [40.0]},
        "peak_bytes": {"ours": 5e8},
        "limits": LIMITS,
    }
    each = cells(step.contestants_table({"centre": row}))
    assert each["centre", "torch"] == "350 (18%)" and each["centre", "vmap"] == "40.0 (2%)"
    other = {**row, "images_per_second": {"ours": [1000.0, 1000.0], "torch": [500.0, 500.0]}}
    found = cells(step.table({"centre": row}))
    assert found["centre", "ours, images/s"] == "450 (400 to 500)"
    assert found["centre", "of the limit"] == "22%"  # 450 x 1e8 of 2e11
    assert found["centre", "against torch"] == "1.50 (1.00 to 2.00)"
    assert found["centre", "against vmap"] == "10.0 (once)"
    assert cells(step.table({"mlp": other}))["mlp", "against torch"] == "2.00 (2.00 to 2.00)"


def test_the_published_passes():
    # One ring merge of 5 agents with 10,000 images in all: 350,000 forward passes of an image.
    assert passes_of("ring", 5) == (20, 5, 3)
    assert 10_000 * (20 + 5 * 3) == 350_000
    assert passes_of("fully_connected", 5) == (6, 1, 5)
    with pytest.raises(ValueError, match="not 'star'"):
        passes_of("star", 5)


def test_ours_at_the_same_number_of_passes():
    work = Work(agents=5, batch=100, steps=20)
    seconds = {"match": 1.0, "statistics": 1.0, "assign": 0.5, "train": 3.0}
    ring = round.at_the_same_passes(seconds, work, "ring")
    assert ring == {
        "match": pytest.approx(5 * 3 * 10_000 / (5 * 3 * 512)),
        "statistics": pytest.approx(20 * 10_000 / (5 * 1024)),
        "assign": 0.5,
        "train": 3.0,
    }
    full = round.at_the_same_passes(seconds, work, "fully_connected")
    assert full["match"] == pytest.approx(5 * 10_000 / (5 * 2 * 512))


def test_the_tables_of_the_round():
    def parts(merge, train):
        return {"match": merge, "train": train}

    seconds = {
        "ours": [parts(1.0, 1.0), parts(2.0, 2.0)],
        "published": [parts(9.0, 1.0), parts(36.0, 4.0)],
        "ours, same passes": [parts(4.0, 1.0), parts(8.0, 2.0)],
    }
    measured = {"ring_5": {"seconds": seconds}}
    found = cells(round.table(measured))
    assert found["ring_5", "ratio"] == "7.50 (5.00 to 10.0)"
    assert found["ring_5", "same passes"] == "3.00 (2.00 to 4.00)"
    assert found["ring_5", "merge alone"] == "13.5 (9.00 to 18.0)"
    assert cells(round.parts(measured))["ring_5, published", "match"] == "22.5"


def test_the_tables_of_the_merge():
    row = {
        "work": {"agents": 4},
        "seconds": [{"match": 1.0, "mix": 1.0}, {"match": 2.0, "mix": 2.0}],
        "demand": {"network_bytes": 1e6},
        "limit": {"match": 0.6, "assign": 0.3, "mix": 0.6, "statistics": 0.0},
        "limits": LIMITS,
        "peak_bytes": 5e8,
        "grown_bytes": 2e7,
    }
    found = cells(merge.table({"r": row}))
    assert found["r", "limit / measured"] == "50%"
    assert found["r", "grown / parameters"] == "5.00"
    assert cells(merge.parts({"r": row}))["r", "match"] == "1.50 / 0.600"


def test_the_tables_of_startup():
    def one(seconds, compile):
        return {"seconds": seconds, "peak_bytes": 2e8, "value": {"compile": compile}}

    row = {
        "first step": [one(2.0, 0), one(4.0, 0)],
        "torch, first step": [one(1.0, 0), one(2.0, 0)],
        "main job": [one(9.0, 5.0), one(9.0, 7.0)],
        "main job, cached": [one(9.0, 1.0)],
    }
    found = cells(startup.table({"16": row}))
    assert found["16", "ratio"] == "0.500 (0.500 to 0.500)"
    assert found["16", "compile, s"] == "6.00 (5.00 to 7.00)"
    assert found["16", "compile, cached, s"] == "1.00 (once)"
    assert found["16", "main job, peak MB"] == "200"


def test_results_are_left_as_json_and_markdown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/step.py", "--quick"])
    options = step.Options(out=tmp_path / "out", limit=3.0)
    table = report.Table("T", ["row", "x"], [["a", "1"]])
    report.publish("step", options, [table], {"a": [1.0]})
    written = json.loads((tmp_path / "out" / "step.json").read_text())
    assert written["measured"] == {"a": [1.0]} and written["options"]["limit"] == 3.0
    assert written["command"] == "python -m benchmarks.step --quick"
    text = (tmp_path / "out" / "step.md").read_text()
    assert "| a   | 1 |" in text and written["commit"] in text
    assert "| a   | 1 |" in capsys.readouterr().out


def test_a_population_is_shown_in_some_rounds_and_the_last():
    rows = [
        dict(method="wa", round=n, phase="train", accuracy=n / 100, seconds=10 * n, held=n * 1e9)
        for n in (1, 3, 10, 77)
    ]
    shown = cells(population.table({"dataset": "noise", "peak": 8e10, "rows": rows}))
    assert {name.split(",")[1] for name, _ in shown} == {" round 1", " round 10", " round 77"}
    assert shown["wa, round 77, after train", "accuracy"] == "77.0"
    assert shown["wa, round 10, after train", "GB"] == "10.00"
    assert population.held() > 1e6


@pytest.mark.parametrize("name", NAMES)
def test_help_answers_before_anything_heavy_is_imported(name):
    code = f"""
import runpy, sys
sys.argv = ["benchmarks/{name}.py", "--help"]
try:
    runpy.run_module("benchmarks.{name}", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
print("HEAVY", *[m for m in ("jax", "torch", "flax", "scipy", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY"
    assert "--repetitions" in done.stdout and f"benchmarks.{name}" in done.stdout


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (merge.main, "--rows agent_16", "Unknown row 'agent_16'. Did you mean 'agents_16'"),
        (step.main, "--rows centr", "Did you mean 'centre'"),
        (round.main, "--share 2", "share must be more than 0 and at most 1, not 2.0."),
        (startup.main, "--repetitions 0", "repetitions must be at least 1, not 0."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(main, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        report.run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_rows_are_chosen_by_name():
    assert report.chosen(("b",), {"a": 1, "b": 2}) == {"b": 2}
    assert report.chosen((), {"a": 1, "b": 2}) == {"a": 1, "b": 2}


def test_timed_returns_seconds():
    assert 0.009 < harness.timed(lambda: time.sleep(0.01))() < 5
