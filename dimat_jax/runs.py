"""A run together with the folder in which it leaves its results."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal

import optax

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.execution.processes import any_of, decided, is_first
from dimat_jax.metrics import Row, append_row
from dimat_jax.registry import expect
from dimat_jax.simulation.checks import check_config, check_types
from dimat_jax.simulation.faults import Events, Faults, scheduled
from dimat_jax.simulation.narrator import describe
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.plan import Event
from dimat_jax.simulation.result import Result, SoFar
from dimat_jax.simulation.run import run
from dimat_jax.simulation.session import Session
from dimat_jax.simulation.setup import Setup
from dimat_jax.topology import Topology
from dimat_jax.types import Model, Task


def simulate(
    config: Config = Config(),
    *,
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    topology: Topology | None = None,
    methods: Mapping[str, Algorithm] | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    faults: Faults | None = None,
    events: Events | None = None,
    observer: Observer | None | Literal["auto"] = "auto",
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    A method that diverges for a seed ends there, and the others go on: its last row, the summary
    and the tables say so. Of a run that is interrupted the folder gets the report of what there is,
    whose ``summary.json`` says so, and ``resume`` goes on from its last checkpoint. Of several
    processes (`dimat_jax.execution.processes`) the first writes, and all get the result.

    Args:
      config: the run. With ``out`` given its results are left in that folder: ``config.json``,
        ``metrics.jsonl`` (a row as soon as it is measured), ``summary.json``, ``tables.md``,
        ``accuracy.png``, ``checkpoints`` and the final ``weights``; otherwise nothing is written.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``: images with labels, or any examples.
      topology: used instead of ``config.topology``.
      methods: of one's own, name to `dimat_jax.algorithms.Algorithm`, besides those that there are;
        those that ``config.methods`` does not name follow the ones that it does.
      task: what agents learn, instead of to classify by a model.
      optimizer: of every agent, instead of ``config.optimizer``: any of Optax's, with its own
        learning rate, schedule, decay, clipping. ``config.round_rate`` multiplies its steps.
      faults: of the simulated network, besides those that the configuration names.
      events: agents that join and leave.
      observer: is told of what happens; None: nobody is. By default progress is shown where
        somebody looks on, on a terminal or in a notebook.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles; for a folder
        that already holds a run, is being written by another one or cannot be written to; if the
        pretraining diverges, or every method, with the agent and the step.
      KeyboardInterrupt: if it is interrupted.
    """
    check_config(config)
    watched = isinstance(observer, str) and observer == "auto"
    if not watched and observer is not None:
        expect("observer", observer, Observer, 'a dj.Observer, "auto" or None')

    schedule = scheduled(faults, events)

    def go(config: Config, observer: Observer, begin: Begin) -> Result:
        own = model, dataset, topology, methods, task, optimizer, schedule
        return run(config, *own, observer, begin)

    if not watched:
        return run_and_record(config, go, observer or Observer())
    # Here, so that a run that shows nothing does without rich.
    from dimat_jax.report.progress import show_if_watched

    with show_if_watched() as shown:
        return run_and_record(config, go, shown)


Begin = Callable[[Session], SoFar | None]


def run_and_record(
    config: Config, go: Callable[[Config, Observer, Begin], Result], observer: Observer
) -> Result:
    """Runs, and leaves the results in the folder of the configuration, if it has one."""
    if config.out is None:
        if config.resume:
            raise ValueError("resume needs out: the folder of the run that is to go on.")
        return go(config, observer, lambda session: None)
    # Here, so that a run that writes nothing does without matplotlib and orbax.
    from dimat_jax.report import folder

    check_types(config)
    out = pathlib.Path(config.out)  # A user may have given a string.
    config = dataclasses.replace(config, out=out)
    with contextlib.ExitStack() as until_the_end:

        def look() -> list[bool]:
            until_the_end.enter_context(folder.held(out))
            resumes = config.resume and folder.holds_run(out)
            if not resumes and (not config.resume or folder.has_rows(out)):
                folder.check_folder(out, config.overwrite)
            return [resumes, resumes and folder.is_complete(out)]

        resumes, done = decided(look)
        if config.resume and not resumes:
            observer.on_note(f"There is no run in {out}: it starts from the beginning.")
        result = go(config, *recorder(out, config, observer, resumes, done))
        if done:
            observer.on_note(f"The run in {out} has ended already: nothing was left to do.")

        def report() -> None:
            if not done or not folder.has_report(out):
                observer.on_phase("writing the tables and the picture", 1.0)
                folder.write_report(result)

        decided(report)
        return result


def recorder(
    out: pathlib.Path, config: Config, observer: Observer, resumes: bool, done: bool
) -> tuple[Observer, Begin]:
    """Who writes down what a run gives, and where the run goes on from.

    Args:
      out: its folder.
      config: the run.
      observer: who is told, too.
      resumes: whether there is a run in the folder that is to go on.
      done: whether that has ended.
    """
    from dimat_jax.checkpoints.resume import checkpointer, finished, go_on
    from dimat_jax.report import folder

    metrics = out / folder.METRICS_FILE
    save = checkpointer(out, metrics, config.checkpoint_every, config.keep_checkpoints)

    def on_start(setup: Setup) -> None:
        decided(lambda: (folder.check_same_run if resumes else folder.open_folder)(setup))
        observer.on_start(setup)

    def begin(session: Session) -> SoFar | None:
        if not resumes:
            return None
        if done:
            return finished(out, metrics, session)
        found = go_on(out, metrics, session)
        if found is None or found.state is None:
            observer.on_note(f"No checkpoint in {out} can be used: it starts from the beginning.")
            decided(lambda: folder.open_folder(session.setup))
            return None
        after = describe(session.setup, session.plan[found.state.position.event - 1])
        observer.on_note(f"Goes on from the checkpoint after {after}.")
        return found

    def on_row(row: Row) -> None:
        if is_first():
            with folder.writing_to(out):
                append_row(metrics, row)
        observer.on_row(row)

    def on_event(session: Session, event: Event, so_far: SoFar) -> None:
        stop = observer.stop()
        if any_of(stop is not None) and stop is None:
            stop = KeyboardInterrupt("Another process of the run was asked to end it.")
        with folder.writing_to(out):
            save(session, event, so_far, stop is not None)
        if stop is not None:
            raise stop
        observer.on_event(session, event, so_far)

    def on_stop(result: Result, reason: str) -> None:
        observer.on_phase("writing the tables and the picture of what there is", 1.0)
        if is_first():
            folder.write_report(result, reason)
        observer.on_stop(result, reason)

    told = observer._replace(on_start=on_start, on_row=on_row, on_event=on_event, on_stop=on_stop)
    return told, begin
