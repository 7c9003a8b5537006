"""What the commands share: the command line from `Config`, the run, its folder and its report.

Heavy modules are imported inside the functions that need them, so that ``--help`` and a wrong
option answer at once.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tyro

from dimat_jax.config import PRESETS, Config
from dimat_jax.registry import choose

if TYPE_CHECKING:
    from rich.console import Console

    from dimat_jax.setup import Setup
    from dimat_jax.simulation import Result

BAD_INPUT = 2


def run(description: str, arguments: Sequence[str]) -> int:
    """Parses the command line, runs it and reports.

    Returns:
      The exit code: 2, after one sentence, for bad input.
    """
    return exit_code(lambda: run_and_report(parse(description, arguments)))


def exit_code(action: Callable[[], object]) -> int:
    """Does what a command does; 2, after one sentence, for bad input, else 0."""
    try:
        action()
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
    """Runs a configuration, showing progress and in the end its tables.

    Raises:
      ValueError: for bad input, with nothing lost or overwritten.
    """
    from rich.console import Console

    from dimat_jax.report.progress import show_progress
    from dimat_jax.runs import simulate

    console = Console()
    config = dataclasses.replace(config, out=config.out or default_folder(config))
    with show_progress(console) as shown:
        on_start = functools.partial(print_banner, console)
        result = simulate(config, observer=shown._replace(on_start=on_start))
    show_report(console, result)
    return result


def default_folder(config: Config) -> pathlib.Path:
    """A new folder under ``runs/``, named after the run and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.dataset}-{config.model}-{config.topology}-{config.agents}-{now}"
    return pathlib.Path("runs") / name


def print_banner(console: "Console", setup: "Setup") -> None:
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
        "results": str(config.out),
    }
    for name, text in lines.items():
        console.print(f"{name:>10}  {text}", highlight=False, soft_wrap=True)


def show_report(console: "Console", result: "Result") -> None:
    """Shows what `dimat_jax.report.folder` has written: the tables, and who leads by how much."""
    from dimat_jax.report.folder import SUMMARY_FILE, out_of
    from dimat_jax.report.summary import final_line, headline
    from dimat_jax.report.tables import accuracy_table, cost_table, show

    folder = out_of(result.setup)
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    for table in (accuracy_table(result.history), cost_table(result.history)):
        show(table, console)
    for line in (headline(summary), final_line(summary)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"Written to {folder}", highlight=False)
