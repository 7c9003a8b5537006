"""Progress: lines off a terminal, a bar on one, and nothing lost."""

import io
import re

import pytest
from helpers.report_rows import row, run
from rich.console import Console

from dimat_jax.report import progress
from dimat_jax.report.progress import describe, show_progress


def test_a_row_as_a_line():
    pretrained, merged = run()[1], run()[2]
    assert (
        describe(pretrained) == "seed 0, pretrain, epoch 2: accuracy 41.5 ± 1.1 %, 1,000 images/s"
    )
    assert describe(merged) == "seed 0, dimat, round 1, after merge: accuracy 43.5 ± 1.1 %"


def test_plain_lines_off_a_terminal(monkeypatch):
    times = iter([100.0, *[125.0] * 9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=False)) as observer:
        observer.on_phase("compiling", 0.0)
        observer.on_phase("seed 0, pretrain, epoch 1 of 2", 0.25)
        observer.on_phase("seed 0, wa, round 1", 1.0)
        observer.on_row(row("pretrain", 0, 0, 1, "pretrain", [0.5]))
    start, first, last, second = file.getvalue().splitlines()
    assert start.endswith("s]   0 %  compiling")
    assert first == "[   25.0 s]  25 %, 0:01:15 left  seed 0, pretrain, epoch 1 of 2"
    assert last.endswith("s] 100 %  seed 0, wa, round 1")
    assert second.endswith("s] seed 0, pretrain, epoch 1: accuracy 50.0 ± 0.0 %")
    assert "\x1b" not in file.getvalue()


def test_a_bar_with_rows_above_it_on_a_terminal():
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=120)) as observer:
        observer.on_phase("seed 0, dimat, round 1, merge", 0.5)
        observer.on_row(row("dimat", 0, 1, 3, "merge", [0.5]))
    assert "seed 0, dimat, round 1, after merge: accuracy 50.0 ± 0.0 %" in file.getvalue()
    assert "50%" in file.getvalue()
    assert "seed 0, dimat, round 1, merge" in file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_and_time_left_are_there_on_a_narrow_terminal(width):
    file = io.StringIO()
    label = "seed 12, gradient_tracking, round 100, epoch 10 of 10: loss 1.234, 12,345 images/s"
    with show_progress(Console(file=file, force_terminal=True, width=width)) as observer:
        observer.on_phase(label, 0.5)
    shown = [line for line in file.getvalue().replace("\r", "\n").splitlines() if "50%" in line]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown[-1])
    assert re.search(r"seed 12, gradient.* ━{8,}.* +50% left [-0-9:]+ *$", text)
    assert len(text) <= width


@pytest.mark.parametrize("terminal", [False, True])
def test_errors_go_through(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with pytest.raises(ValueError, match="boom"), show_progress(console):
        raise ValueError("boom")
