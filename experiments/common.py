"""What the commands share: the command line from `Config`, the run, its folder and its report.

Heavy modules are imported inside the functions that need them, so that ``--help`` and a wrong
option answer at once.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tyro

from dimat_jax.config import PRESETS, Config
from dimat_jax.registry import choose

if TYPE_CHECKING:
    from rich.console import Console

    from dimat_jax.setup import Setup
    from dimat_jax.simulation import Result

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
BAD_INPUT = 2


def run(description: str, arguments: Sequence[str]) -> int:
    """Parses the command line, runs it and reports.

    Returns:
      The exit code: 2, after one sentence, for bad input.
    """
    try:
        run_and_report(parse(description, arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def parse(description: str, arguments: Sequence[str]) -> Config:
    """The configuration that the arguments ask for, on top of their preset."""
    presets = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    presets.add_argument("--preset", default=Config.preset)
    preset = presets.parse_known_args(arguments)[0].preset
    default = PRESETS[choose("preset", preset, PRESETS)]
    return tyro.cli(Config, description=description, args=list(arguments), default=default)


def run_and_report(config: Config) -> "Result":
    """Runs a configuration, showing progress, and leaves its results in a folder.

    Raises:
      ValueError: for bad input, with nothing lost or overwritten.
    """
    if config.out is not None:
        check_folder(config.out, config.overwrite)

    from rich.console import Console

    from dimat_jax import metrics, simulation
    from dimat_jax.report.progress import show_progress

    console = Console()
    folder = config.out or default_folder(config)
    with show_progress(console) as shown:

        def on_start(setup: "Setup") -> None:
            open_folder(folder, setup)
            print_banner(console, folder, setup)

        def on_row(row: metrics.Row) -> None:
            metrics.append_row(folder / METRICS_FILE, row)
            shown.on_row(row)

        observer = shown._replace(on_start=on_start, on_row=on_row)
        result = simulation.simulate(config, observer=observer)
    report(console, folder, result)
    return result


def default_folder(config: Config) -> pathlib.Path:
    """A new folder under ``runs/``, named after the run and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.dataset}-{config.model}-{config.topology}-{config.agents}-{now}"
    return pathlib.Path("runs") / name


def check_folder(folder: pathlib.Path, overwrite: bool) -> None:
    """Raises a `ValueError` if the folder already holds a run that must not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, but {folder} is a file.")
    if (folder / METRICS_FILE).exists() and not overwrite:
        raise ValueError(
            f"{folder} already holds a run: choose another --out, or replace it by --overwrite."
        )


def open_folder(folder: pathlib.Path, setup: "Setup") -> None:
    """Makes the folder, with ``config.json`` and an empty ``metrics.jsonl``."""
    from dimat_jax.report.summary import commit, versions

    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "dataset": setup.dataset.name,
        "config": plain(setup.config),
        "versions": versions(),
        "commit": commit(),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / METRICS_FILE).write_text("", encoding="utf-8")


def plain(config: Config) -> dict[str, Any]:
    """A configuration as JSON knows it."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in values.items()}


def print_banner(console: "Console", folder: pathlib.Path, setup: "Setup") -> None:
    """Says what is about to run, on which data, and how it is evaluated."""
    config, dataset = setup.config, setup.dataset
    if "stand-in" in dataset.name:
        console.print(f"[bold red]NOT THE REAL DATA: {dataset.name}[/]", highlight=False)
    tests, examples = len(dataset.test_labels), setup.epoch_examples[1]
    some = min(config.test_examples or tests, tests)
    lines = {
        "data": f"{dataset.name}, {config.partition}, {examples:,} of the "
        f"{len(dataset.train_labels):,} training images for each agent",
        "model": f"{config.model}, width {config.width:g}, "
        f"{len(setup.symmetries.groups)} permutation groups",
        "agents": f"{config.agents}, {setup.topology.name}, spectral gap "
        f"{setup.topology.spectral_gap:.3f}; devices: {setup.execution.mesh.size}",
        "training": f"{config.pretrain_epochs} epochs apart, then {config.rounds} rounds of a "
        f"merge and {config.epochs_per_round} epochs; {config.optimizer}, learning rate "
        f"{config.learning_rate:g}, batch {config.batch_size}",
        "evaluation": f"on {some:,} fixed test images along the way, on all {tests:,} at the end",
        "results": str(folder),
    }
    for name, text in lines.items():
        console.print(f"{name:>10}  {text}", highlight=False, soft_wrap=True)


def report(console: "Console", folder: pathlib.Path, result: "Result") -> None:
    """Shows the tables, and writes them, ``summary.json`` and ``accuracy.png`` into the folder."""
    import numpy as np

    from dimat_jax.report.folder import write_report
    from dimat_jax.report.summary import final_line, headline
    from dimat_jax.report.tables import accuracy_table, cost_table, show

    config, name = result.setup.config, result.setup.dataset.name
    subtitle = f"{config.model}, {config.agents} agents, {config.topology}, {config.partition}"
    all_tests = {
        method: np.stack([result.finals[method, seed].test_accuracy for seed in config.seeds])
        for method in config.methods
    }
    summary = write_report(folder, result.history, name, plain(config), all_tests, subtitle)
    for table in (accuracy_table(result.history), cost_table(result.history)):
        show(table, console)
    for line in (headline(summary), final_line(summary)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"Written to {folder}", highlight=False)
