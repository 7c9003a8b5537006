"""What a run says while it runs: a bar on a terminal, plain lines elsewhere.

Imports neither JAX nor what needs it: the first line stands there before they are imported.
"""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from dimat_jax.metrics import Row, measure_of, values_of
from dimat_jax.report.tables import NO_LABELS, shown
from dimat_jax.report.terminal import terminal
from dimat_jax.simulation.observer import Observer

SHORT = 0.5
"""Seconds: what goes on after something shorter is not said again in a log of lines."""


def describe(row: Row, labels: Mapping[str, str] = NO_LABELS) -> str:
    """A row of metrics as a line for people; ``labels`` are what methods are called, by name."""
    parts = [f"seed {row['seed']}"]
    if row["phase"] == "pretrain":
        parts += ["pretraining", f"epoch {row['epoch']}"]
    else:
        name = labels.get(row["method"], row["method"])
        parts += [name, f"round {row['round']}", f"after {row['phase']}"]
    if "diverged" in row:
        return f"{', '.join(parts)}: diverged"
    measure = measure_of([row])
    value = shown(values_of({0: row}, measure), measure)
    speed = f", {row['images_per_second']:,.0f} examples/s" if row["images_per_second"] else ""
    return f"{', '.join(parts)}: {measure.name} {value}{measure.sign}{speed}"


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Observer]:
    """Shows phase, epoch, loss, examples/s, accuracy and time left while the block runs.

    Args:
      console: where to; a bar if it is a terminal, a line for each phase and row otherwise; nothing
        if it is quiet.

    Yields:
      The observer to hand to the run.
    """
    with bar(console) if console.is_terminal else lines(console) as observer:
        yield observer


@contextlib.contextmanager
def show_if_watched() -> Iterator[Observer]:
    """Shows progress where somebody looks on, on a terminal or in a notebook; else says nothing.

    Yields:
      The observer to hand to the run.
    """
    notebook = terminal()
    if notebook.is_jupyter:
        with lines(notebook) as observer:
            yield observer
    elif sys.stderr.isatty():
        # What a program writes to its output stays its own.
        with show_progress(terminal(stderr=True)) as observer:
            yield observer
    else:
        yield Observer()


class Labelled(Progress):
    """A bar below its label, which has lines of its own: nothing of it is cut off."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The label, folded where the terminal is narrow, and the bar."""
        for task in self.tasks:
            yield Text(task.description, overflow="fold")
        yield self.make_tasks_table(self.tasks)


class LeftColumn(ProgressColumn):
    """The time left, which goes on between two events."""

    def render(self, task: Task) -> Text:
        """The time until the end, as it was expected last."""
        end = task.fields["end"]
        left = None if end is None else max(0.0, end - time.monotonic())
        return Text(f"{'-:--:--' if left is None else as_time(left)} left")


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Observer]:
    """What happens, and below it a bar with the time left; rows are printed above them."""
    columns = (
        SpinnerColumn(),
        TimeElapsedColumn(),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        LeftColumn(),
    )
    clock, labels = Clock(), {}
    with Labelled(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("starting", total=1.0, end=None)

        def on_phase(label: str, done: float) -> None:
            left = clock.left(done)
            end = None if left is None else time.monotonic() + left
            # A bar that is full stands still, and with it the spinner.
            progress.update(task, description=label, completed=min(done, 0.999), end=end)
            # At once: what comes now may hold Python, and with it the bar's own thread, for long.
            progress.refresh()

        yield Observer(
            on_start=lambda setup: start(clock, labels, setup),
            on_phase=on_phase,
            on_row=lambda row: progress.console.print(describe(row, labels)),
            on_note=lambda text: progress.console.print(text, markup=False, soft_wrap=True),
        )


@contextlib.contextmanager
def lines(console: Console) -> Iterator[Observer]:
    """A line for each phase and each row, with the seconds since the start, and those left."""
    begun, clock, labels = time.monotonic(), Clock(), {}
    last, said = begun, set()

    def say(text: str) -> None:
        nonlocal last
        last = time.monotonic()
        if console.quiet:
            return
        console.file.write(f"[{last - begun:7.1f} s] {text}\n")
        console.file.flush()

    def on_phase(label: str, done: float) -> None:
        # What goes on after something short inside it need not be said again.
        if label not in said or time.monotonic() - last > SHORT:
            said.add(label)
            left = clock.left(done)
            say(f"{100 * done:3.0f} %{f', {as_time(left)} left' if left else ''}  {label}")

    yield Observer(
        on_start=lambda setup: start(clock, labels, setup),
        on_phase=on_phase,
        on_row=lambda row: say(describe(row, labels)),
        on_note=say,
    )


class Clock:
    """Knows since when the time of a run is counted."""

    def __init__(self):
        self.begun = time.monotonic()

    def left(self, done: float) -> float | None:
        """The seconds left, when this share of the expected time has passed; None: unknown."""
        return (time.monotonic() - self.begun) * (1 - done) / done if done > 0 else None


def start(clock: Clock, labels: dict[str, str], setup: object) -> None:
    """A run starts: its time counts from now on, and its methods have labels."""
    clock.begun = time.monotonic()
    methods: Mapping = getattr(setup, "methods", {})
    labels.update({name: method.label for name, method in methods.items()})


def as_time(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
