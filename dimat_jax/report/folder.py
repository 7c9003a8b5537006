"""The folder of a run: what lies in it, and how it comes there."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import filelock
import numpy as np
from jaxtyping import Float

from dimat_jax.checkpoints.resume import CHECKPOINTS
from dimat_jax.checkpoints.weights import WEIGHTS
from dimat_jax.config import Config
from dimat_jax.datasets.whole import synchronize
from dimat_jax.metrics import PRETRAINING, finite, measure_of, measured
from dimat_jax.report.figures import accuracy_figure
from dimat_jax.report.leads import comparisons
from dimat_jax.report.summary import commit, summarize, versions
from dimat_jax.report.tables import (
    Table,
    accuracy_table,
    cost_table,
    lead_table,
    merged_table,
    to_markdown,
)
from dimat_jax.simulation.result import Result
from dimat_jax.simulation.setup import Setup

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
TABLES_FILE = "tables.md"
FIGURE_FILE = "accuracy.png"
FILES = (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, TABLES_FILE, FIGURE_FILE)
FOLDERS = (CHECKPOINTS, WEIGHTS)
LOCK_FILE = ".lock"
NOT_COMPARED = {
    *("out", "overwrite", "resume", "checkpoint_every", "keep_checkpoints"),
    *("devices", "agents_at_once", "data_dir", "force"),
}
"""Options of which a run that goes on may have others than the one that was begun."""


@contextlib.contextmanager
def writing_to(folder: pathlib.Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `ValueError` that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"The results cannot be written to {folder}: {reason}.") from error


def check_folder(folder: pathlib.Path, overwrite: bool) -> None:
    """Raises a `ValueError` if the folder cannot be one, or holds what must not be replaced."""
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out must be a folder, but {folder} is a file.")
        there = [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{folder} already holds a run ({', '.join(there)}): choose another --out, go on with "
            "it by --resume, or replace it by --overwrite."
        )


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps it from all other runs while the block lasts.

    A process that is killed holds it no longer. Where nothing is written to
    the folder it is left as it was, or removed if it was made here.

    Raises:
      ValueError: if another run holds it, or if it cannot be made or written to.
    """
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out must be a folder, but {folder} is a file.")
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        before = {path.name for path in folder.iterdir()}
        lock = filelock.FileLock(folder / LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                f"{folder} is being written by another run: choose another --out, or wait."
            ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} - before == {LOCK_FILE}:
                (folder / LOCK_FILE).unlink()
                if made:
                    folder.rmdir()
        lock.release()


def holds_run(folder: pathlib.Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / CONFIG_FILE).is_file() and (folder / METRICS_FILE).is_file()


def has_rows(folder: pathlib.Path) -> bool:
    """Whether something was measured by the run in a folder."""
    metrics = folder / METRICS_FILE
    return metrics.is_file() and metrics.stat().st_size > 0


def is_complete(folder: pathlib.Path) -> bool:
    """Whether the run in a folder has come to its end."""
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        return summary["complete"] is True
    except (OSError, ValueError, LookupError, TypeError):
        return False


def has_report(folder: pathlib.Path) -> bool:
    """Whether all files of a report are there."""
    return all((folder / name).is_file() for name in FILES)


def check_same_run(setup: Setup) -> None:
    """Raises a `ValueError` if a run cannot go on with that in its folder: names what differs."""
    folder = out_of(setup)
    path = folder / CONFIG_FILE
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        was, data = begun["config"], begun["dataset"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    now = json.loads(json.dumps(plain(setup.config)))
    differing = [
        f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*was, *now} - NOT_COMPARED)
        if was.get(name) != now.get(name)
    ]
    schedule = repr(setup.schedule) if setup.schedule else None
    if begun.get("schedule") != schedule:
        differing.append(f"faults and events were {begun.get('schedule')} and are {schedule}")
    if data != setup.data.name:
        differing.append(f"the data were {data!r} and are {setup.data.name!r}")
    if differing:
        raise ValueError(
            f"The run in {folder} has another configuration: {'; '.join(differing)}. Give its own "
            "to go on with it, or choose another --out."
        )


def open_folder(setup: Setup) -> None:
    """Makes the folder of a run: ``config.json``, an empty ``metrics.jsonl``, no older results.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    folder = out_of(setup)
    description = {
        "dataset": setup.data.name,
        "config": plain(setup.config),
        "schedule": repr(setup.schedule) if setup.schedule else None,
        # On other devices sums differ in their last digits.
        "devices": [device.device_kind for device in setup.execution.mesh.devices.flat],
        "versions": versions(),
        "commit": commit(),
    }
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Rows first and the configuration last: whoever is killed in between has not begun, see
        # `holds_run`, and may begin again.
        (folder / METRICS_FILE).unlink(missing_ok=True)
        for name in FOLDERS:
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        (folder / METRICS_FILE).write_text("", encoding="utf-8")
        write_json(folder / CONFIG_FILE, description)


def write_report(result: Result, stopped: str | None = None) -> dict[str, Any]:
    """Writes ``summary.json``, ``tables.md`` and ``accuracy.png`` into the folder of a run.

    Args:
      result: what there is; without a single row there are neither tables nor a picture.
      stopped: why and where the run ended before its end; None: it did not.

    Returns:
      The summary, as `dimat_jax.report.summary.summarize` describes it.
    """
    config, rows = result.setup.config, measured(result.history)
    name, folder, labels = result.setup.data.name, out_of(result.setup), labels_of(result)
    summary = summarize(rows, name, plain(config), all_tests_of(result), labels, stopped)
    summary["diverged"] = [
        {"method": method, "seed": seed, "where": where}
        for (method, seed), where in result.diverged.items()
    ]
    if rows:
        write_tables(result, stopped)
    with writing_to(folder):
        write_json(folder / SUMMARY_FILE, summary)  # Last: it says that all is there.
    return summary


def write_tables(result: Result, stopped: str | None) -> None:
    """Writes ``tables.md`` and ``accuracy.png``; arguments as of `write_report`."""
    config, data, rows = result.setup.config, result.setup.data, measured(result.history)
    name, folder, labels = data.name, out_of(result.setup), labels_of(result)
    sections = [f"# {name}", *filter(None, [stopped]), *divergences(result)]
    sections += [f"{table.title}\n\n{to_markdown(table)}" for table in tables_of(result)]
    subtitle = f"{config.model}, {config.agents} agents, {config.topology}, {config.partition}"
    made_up = data.synthetic or data.stand_in_for is not None
    figure = accuracy_figure(rows, name, subtitle, made_up, labels)
    with writing_to(folder):
        (folder / TABLES_FILE).write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        figure.savefig(folder / FIGURE_FILE)
        for name in (TABLES_FILE, FIGURE_FILE):
            synchronize(folder / name)


def tables_of(result: Result) -> list[Table]:
    """The tables of a run: accuracy, the merged model's, who is ahead, and what it cost."""
    rows, labels = measured(result.history), labels_of(result)
    found = [
        accuracy_table(rows, labels=labels),
        merged_table(rows, labels),
        lead_table(comparisons(rows, all_tests_of(result)), labels, measure_of(rows)),
        cost_table(rows, labels),
    ]
    return [table for table in found if table is not None]


def divergences(result: Result) -> list[str]:
    """A line for each method and seed whose loss did not stay finite."""
    return [f"Diverged: {where}" for where in result.diverged.values()]


def all_tests_of(result: Result) -> dict[str, dict[int, Float[np.ndarray, " agents"]]]:
    """For each method and seed that ended what is compared of the agents, on all test examples."""
    found: dict[str, dict[int, Float[np.ndarray, " agents"]]] = {}
    name = measure_of(measured(result.history)).name
    for (method, seed), final in result.finals.items():
        found.setdefault(method, {})[seed] = final.measured[name]
    return found


def labels_of(result: Result) -> dict[str, str]:
    """What the methods of a run are called, by name, and its shared pretraining."""
    named = {name: algorithm.label for name, algorithm in result.setup.methods.items()}
    return {PRETRAINING: "pretraining"} | named


def out_of(setup: Setup) -> pathlib.Path:
    """The folder that a run writes to.

    Raises:
      ValueError: if it has none.
    """
    if setup.config.out is None:
        raise ValueError("out is None: a run that is to be reported needs a folder.")
    return setup.config.out


def plain(config: Config) -> dict[str, Any]:
    """A configuration as JSON knows it."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in values.items()}


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all; numbers that are not finite as null."""
    text = json.dumps(finite(values), indent=2, allow_nan=False)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text + "\n", encoding="utf-8")
    synchronize(unfinished)
    unfinished.replace(path)
