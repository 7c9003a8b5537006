"""Progress: lines off a terminal, a bar on one, and nothing lost."""

import io

import pytest
from report_rows import row, run
from rich.console import Console

from dimat_jax.report.progress import describe, show_progress


def test_a_row_as_a_line():
    pretrained, merged = run()[1], run()[2]
    assert (
        describe(pretrained) == "seed 0, pretrain, epoch 2: accuracy 41.5 ± 1.1 %, 1,000 images/s"
    )
    assert describe(merged) == "seed 0, dimat, round 1, after merge: accuracy 43.5 ± 1.1 %"


def test_plain_lines_off_a_terminal():
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=False)) as observer:
        observer.on_phase("seed 0, pretrain, epoch 1 of 2", 0.25)
        observer.on_row(row("pretrain", 0, 0, 1, "pretrain", [0.5]))
    first, second = file.getvalue().splitlines()
    assert first.endswith("s]  25 %  seed 0, pretrain, epoch 1 of 2")
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


@pytest.mark.parametrize("terminal", [False, True])
def test_errors_go_through(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with pytest.raises(ValueError, match="boom"), show_progress(console):
        raise ValueError("boom")
