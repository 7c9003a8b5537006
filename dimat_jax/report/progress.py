"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from dimat_jax.metrics import Row
from dimat_jax.simulation.result import Observer


def describe(row: Row) -> str:
    """A row of metrics as a line for people."""
    parts = [f"seed {row['seed']}", row["method"]]
    if row["phase"] == "pretrain":
        parts.append(f"epoch {row['epoch']}")
    else:
        parts += [f"round {row['round']}", f"after {row['phase']}"]
    accuracy = f"{100 * row['test_accuracy']:.1f} ± {100 * row['test_accuracy_std']:.1f} %"
    speed = f", {row['images_per_second']:,.0f} images/s" if row["images_per_second"] else ""
    return f"{', '.join(parts)}: accuracy {accuracy}{speed}"


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Observer]:
    """Shows phase, epoch, images/s, accuracy and time left while the block runs.

    Args:
      console: where to; a bar if it is a terminal, a line for each phase and row otherwise.

    Yields:
      The observer to hand to the run.
    """
    with bar(console) if console.is_terminal else lines(console) as observer:
        yield observer


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Observer]:
    """A bar with the phase and the time left; rows are printed above it."""
    columns = (
        # The only column that gives way, so that bar and time are there on any terminal.
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield Observer(
            on_phase=lambda label, done: progress.update(task, description=label, completed=done),
            on_row=lambda row: progress.console.print(describe(row), highlight=False),
        )


@contextlib.contextmanager
def lines(console: Console) -> Iterator[Observer]:
    """A line for each phase and each row, with the seconds since the start, and those left."""
    start = time.monotonic()

    def say(text: str) -> None:
        console.file.write(f"[{time.monotonic() - start:7.1f} s] {text}\n")
        console.file.flush()

    def left(done: float) -> str:
        """The time left, as the time so far tells it."""
        seconds = (time.monotonic() - start) * (1 - done) / done if 0 < done < 1 else 0
        return f", {datetime.timedelta(seconds=round(seconds))} left" if seconds else ""

    yield Observer(
        on_phase=lambda label, done: say(f"{100 * done:3.0f} %{left(done)}  {label}"),
        on_row=lambda row: say(describe(row)),
    )
