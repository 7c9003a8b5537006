"""Progress: lines off a terminal, a bar on one, nothing where nobody looks, and nothing lost."""

import io
import re
import subprocess
import sys
import types

import pytest
from helpers.report_rows import row, run
from rich.console import Console
from rich.progress import Task, TaskID

from dimat_jax.report import progress
from dimat_jax.report.progress import describe, show_if_watched, show_progress
from dimat_jax.simulation.observer import Observer

LABEL = "seed 12, Gradient tracking, round 100: epoch 10 of 10, loss 1.234, 12,345 images/s"
SETUP = types.SimpleNamespace(methods={"dimat": types.SimpleNamespace(label="DIMAT")})


def shown_in(file):
    """What was written, without what moves the cursor and colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    return text.replace("\r", "\n").splitlines()


def test_a_row_as_a_line():
    pretrained, merged = run()[1], run()[2]
    assert (
        describe(pretrained)
        == "seed 0, pretraining, epoch 2: accuracy 41.5 ± 1.3 %, 1,000 images/s"
    )
    labels = {"dimat": "DIMAT"}
    assert describe(merged, labels) == "seed 0, DIMAT, round 1, after merge: accuracy 43.5 ± 1.3 %"
    assert describe(row("x", 1, 1, 1, "train", [0.5])).endswith(
        "seed 1, x, round 1, after train: accuracy 50.0 %"
    )


class Clock:
    """A clock that only moves when told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_off_a_terminal(clock):
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=False)) as observer:
        observer.on_phase("importing", 0.0)
        clock.now += 5
        observer.on_start(SETUP)  # From here on the time of the run counts.
        clock.now += 20
        observer.on_phase("seed 0, pretraining: epoch 1 of 2", 0.25)
        observer.on_phase("writing", 1.0)
        observer.on_row(row("dimat", 0, 1, 1, "merge", [0.5]))
    assert file.getvalue().splitlines() == [
        "[    0.0 s]   0 %  importing",
        "[   25.0 s]  25 %, 0:01:00 left  seed 0, pretraining: epoch 1 of 2",
        "[   25.0 s] 100 %  writing",
        "[   25.0 s] seed 0, DIMAT, round 1, after merge: accuracy 50.0 %",
    ]


def test_a_log_says_again_only_what_goes_on_after_something_long(clock):
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=False)) as observer:
        for label, seconds in (("a", 0.1), ("b", 0.1), ("a", 9.0), ("b", 0.1), ("a", 0.1)):
            observer.on_phase(label, 0.0)
            clock.now += seconds
    assert [line[-1] for line in file.getvalue().splitlines()] == ["a", "b", "b"]


def test_a_bar_with_rows_above_it_on_a_terminal():
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=120)) as observer:
        observer.on_start(SETUP)
        observer.on_phase("seed 0, DIMAT, round 1: merging", 0.5)
        observer.on_row(row("dimat", 0, 1, 3, "merge", [0.5]))
    said = "\n".join(shown_in(file))
    assert "seed 0, DIMAT, round 1, after merge: accuracy 50.0 %" in said
    assert "50%" in said
    assert "seed 0, DIMAT, round 1: merging" in said


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_nothing_is_cut_off_on_a_narrow_terminal(width):
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=width)) as observer:
        observer.on_phase(LABEL, 0.5)
    shown = shown_in(file)
    assert max(map(len, shown)) <= width
    at = max(i for i, line in enumerate(shown) if "50%" in line)
    assert re.search(r"^\S 0:00:\d\d [━╺╸]{8,} +50% 0:00:\d\d left *$", shown[at])
    above = shown[at - -(-len(LABEL) // width) : at]
    assert " ".join(" ".join(above).split()).endswith(LABEL)


def test_the_time_left_goes_on_between_two_events(clock):
    def left(end):
        task = Task(TaskID(0), "merging", 1.0, 0.5, clock.monotonic, fields={"end": end})
        return str(progress.LeftColumn().render(task))

    end = clock.now + 100
    clock.now += 30
    assert left(end) == "0:01:10 left"
    clock.now += 100
    assert left(end) == "0:00:00 left"
    assert left(None) == "-:--:-- left"
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=80)) as observer:
        observer.on_phase("starting", 0.0)
        clock.now += 100
        observer.on_phase("merging", 0.5)
        observer.on_phase("writing", 1.0)
    shown = shown_in(file)
    assert any("0:01:40 left" in line for line in shown)
    assert re.match(r"\S 0:0", [line for line in shown if "100%" in line][-1])  # it still spins


@pytest.mark.parametrize("terminal", [False, True])
def test_errors_go_through(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with pytest.raises(ValueError, match="boom"), show_progress(console):
        raise ValueError("boom")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_where_somebody_looks_on(monkeypatch):
    for stream, looks in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", output := io.StringIO())
        with show_if_watched() as observer:
            observer.on_phase("merging", 0.5)
        assert (observer == Observer()) == (not looks)
        assert ("merging" in stream.getvalue()) == looks and output.getvalue() == ""


def test_a_notebook_gets_lines(monkeypatch):
    monkeypatch.setattr(progress, "terminal", lambda: Console(force_jupyter=True))
    monkeypatch.setattr(sys, "stdout", output := io.StringIO())
    with show_if_watched() as observer:
        observer.on_phase("merging", 0.5)
    assert re.fullmatch(r"\[ +0\.\d s\]  50 %, 0:00:00 left  merging\n", output.getvalue())


def test_the_first_line_stands_before_anything_heavy_is_imported():
    heavy = ("jax", "flax", "scipy", "matplotlib")
    code = f"import sys, dimat_jax.report.progress; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
