"""A run together with the folder in which it leaves its results."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.datasets import Dataset
from dimat_jax.metrics import Row, append_row
from dimat_jax.registry import expect
from dimat_jax.simulation.checks import check_config, check_types
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.result import Result
from dimat_jax.simulation.run import run
from dimat_jax.simulation.setup import Setup
from dimat_jax.topology import Topology
from dimat_jax.types import Model


def simulate(
    config: Config = Config(),
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
    topology: Topology | None = None,
    methods: Mapping[str, Algorithm] | None = None,
    observer: Observer | None | Literal["auto"] = "auto",
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Of a run that diverges or is interrupted the folder gets the report of what there is, whose
    ``summary.json`` says so.

    Args:
      config: the run. With ``out`` given its results are left in that folder: ``config.json``,
        ``metrics.jsonl`` (a row as soon as it is measured), ``summary.json``, ``tables.md`` and
        ``accuracy.png``; otherwise nothing is written.
      model: used instead of ``config.model``.
      dataset: used instead of ``config.dataset``.
      topology: used instead of ``config.topology``.
      methods: of one's own, name to `dimat_jax.algorithms.Algorithm`, besides those that there are;
        those that ``config.methods`` does not name follow the ones that it does.
      observer: is told of what happens; None: nobody is. By default progress is shown where
        somebody looks on, on a terminal or in a notebook. A run that leaves its results in a folder
        ends where a method diverges, whatever the observer says.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles, or a folder that
        already holds a run or cannot be written to; if a loss is no longer finite, with the agent
        and the step.
      KeyboardInterrupt: if it is interrupted.
    """
    check_config(config)
    watched = isinstance(observer, str) and observer == "auto"
    if not watched and observer is not None:
        expect("observer", observer, Observer, 'a dj.Observer, "auto" or None')

    def go(config: Config, observer: Observer) -> Result:
        return run(config, model, dataset, topology, methods, observer)

    if not watched:
        return run_and_record(config, go, observer or Observer())
    # Here, so that a run that shows nothing does without rich.
    from dimat_jax.report.progress import show_if_watched

    with show_if_watched() as shown:
        return run_and_record(config, go, shown)


def run_and_record(
    config: Config, go: Callable[[Config, Observer], Result], observer: Observer
) -> Result:
    """Runs, and leaves the results in the folder of the configuration, if it has one."""
    if config.out is None:
        return go(config, observer)
    # Here, so that a run that writes nothing does without matplotlib.
    from dimat_jax.report import folder

    check_types(config)
    out = pathlib.Path(config.out)  # A user may have given a string.
    config = dataclasses.replace(config, out=out)
    folder.check_folder(out, config.overwrite)
    metrics = out / folder.METRICS_FILE

    def on_start(setup: Setup) -> None:
        folder.open_folder(setup)
        observer.on_start(setup)

    def on_row(row: Row) -> None:
        with folder.writing_to(out):
            append_row(metrics, row)
        observer.on_row(row)

    def on_stop(result: Result, reason: str) -> None:
        observer.on_phase("writing the tables and the picture of what there is", 1.0)
        folder.write_report(result, reason)
        observer.on_stop(result, reason)

    recorder = Observer(on_start, observer.on_phase, on_row, on_stop=on_stop)
    result = go(config, recorder)
    observer.on_phase("writing the tables and the picture", 1.0)
    folder.write_report(result)
    return result
