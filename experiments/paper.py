"""The paper's comparison: every method from the same agents, on the same data and batches.

    python -m experiments.paper --preset cpu --out runs/paper

Paper: DIMAT (arXiv 2404.08079), tables 1 to 3. ``--preset cpu`` is a reduction to CIFAR-10 and a
small network that takes about 90 minutes on two slow CPU cores; ``--preset full`` is the published
size, for accelerators. A run that was stopped goes on where it was: finished cells are skipped.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

from dimat_jax.config import Config
from dimat_jax.registry import METHODS
from experiments import common, grid, presets
from experiments.grid import Cell, Outcome

TUNED = pathlib.Path(__file__).parent / "tuned.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    preset: Literal["cpu", "full", "smoke"] = "cpu"
    """cpu: about 90 minutes on two slow cores. full: the paper's. smoke: a minute, to see that it
    works."""
    out: pathlib.Path | None = None
    """Folder of the finished cells; None: runs/paper-PRESET."""
    report: pathlib.Path | None = None
    """Folder for table and pictures; None: that of the cells."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    tuned: pathlib.Path | None = None
    """Learning rates, as experiments.tune leaves them; None: experiments/tuned.json, but for full
    the published ones."""
    list: bool = False
    """Only say the cells, and how long each takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def act() -> None:
        options = common.command_line(Options, "paper", __doc__, given)
        print_cells(options) if options.list else compare(options)

    return common.exit_code(act)


def plan(options: Options) -> list[tuple[Cell, Config]]:
    """The cells of a preset, each with its run.

    Raises:
      ValueError: if the learning rates cannot be read.
    """
    study, tuned = presets.STUDIES[options.preset], tuned_of(options)
    rates = grid.read_rates(tuned) if tuned else study.rates or {}
    base = dataclasses.replace(study.base, data_dir=options.data_dir)
    return [(cell, grid.config_of(base, cell, rates)) for cell in study.cells]


def tuned_of(options: Options) -> pathlib.Path | None:
    """The file of the learning rates; None: those that are published."""
    published = presets.STUDIES[options.preset].rates is not None
    return options.tuned or (None if published else TUNED)


def folder_of(options: Options, cell: Cell) -> pathlib.Path:
    """Where a cell's results lie."""
    return out_of(options) / "cells" / cell.name


def out_of(options: Options) -> pathlib.Path:
    """The folder of the finished cells."""
    return options.out or pathlib.Path("runs") / f"paper-{options.preset}"


def finished(options: Options) -> list[tuple[Cell, Config, Outcome | None]]:
    """Every cell, with what it gave if it is finished."""
    return [
        (cell, config, grid.load_outcome(folder_of(options, cell), config))
        for cell, config in plan(options)
    ]


def print_cells(options: Options) -> None:
    """Says the cells with their methods and times, and the time that is left in all."""
    most_tests, left = presets.STUDIES[options.preset].most_tests, 0.0
    for cell, config, outcome in finished(options):
        expected = presets.expected_seconds(config, most_tests)
        left += expected if outcome is None else 0
        took = f"about {clock(expected)}" if outcome is None else f"took {clock(outcome.seconds)}"
        labels = ", ".join(METHODS[method].label for method in cell.methods)
        print(f"{cell.name}: {took}; {labels}")
    print(f"Left: about {clock(left)} on two quiet CPU cores. An accelerator is much faster.")


def clock(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def compare(options: Options) -> None:
    """Runs the cells that are not finished; after each, the report is of all that are.

    Raises:
      ValueError: for bad input, before anything compiles.
    """
    from dimat_jax.execution.devices import prepare_devices, virtual_devices
    from experiments.reports.paper import write_report

    folder = options.report or out_of(options)
    grid.make_folders(out_of(options), folder)
    study, todo = presets.STUDIES[options.preset], finished(options)
    # All cells share one process, and so its devices: enough for each of them to use all cores.
    agents = {cell.setting.agents for cell, _, _ in todo}
    prepare_devices(max(agents), max(map(virtual_devices, agents)))
    load = functools.cache(lambda name: grid.load_data(name, options.data_dir, study.most_tests))
    tuned = tuned_of(options)
    edges = [] if tuned is None else grid.read_edges(tuned)

    def report() -> None:
        done = [(cell, outcome) for cell, _, outcome in todo if outcome is not None]
        write_report(folder, options.preset, study.reduced, done, len(todo), edges)

    for number, (cell, config, outcome) in enumerate(todo):
        if outcome is None:
            print(f"cell {number + 1} of {len(todo)}: {cell.name}", flush=True)
            outcome = grid.run_and_store(folder_of(options, cell), config, load(config.dataset))
            todo[number] = (cell, config, outcome)
            report()
    report()
    print(f"Written to {folder}")


if __name__ == "__main__":
    sys.exit(main())
