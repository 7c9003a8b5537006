"""Learning rates of every method, on held-out training data: as many trials for each.

    python -m experiments.tune --preset cpu

Seven rates for each method, a factor of 3 apart, in the settings of `experiments.paper` (5 agents
on a ring; pretrained apart, and from one common initialisation); each is judged by the agents' mean
accuracy at the end on a part of the *training* data that no agent trains on. The test set is not
looked at. Leaves a table (``tuning.md``) and the chosen rates (``tuned.json``), which
`experiments.paper` reads. Methods that train as another one does between merges take its rate.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from dimat_jax.registry import METHODS
from experiments import common, grid, presets
from experiments.grid import Cell, Outcome, Rates, Setting

if TYPE_CHECKING:
    from dimat_jax.datasets import Dataset

SMALLEST = {"sgd": 0.006, "momentum": 0.002}
"""The smallest rate of methods that exchange in every step: with a momentum of 0.9, steps of the
same rate are ten times as long in the end."""
SMALLEST_LOCAL = {"sgd": 0.002, "momentum": 0.0006, "adam": 0.00003}
"""The smallest rate of methods that train apart in between: merging takes smaller ones."""
TRIALS = 7
COMMON_ROUNDS = 4
"""Rounds of a trial from one common initialisation, where nothing is pretrained."""
HELD_OUT = {"cpu": 2000, "full": 5000, "smoke": 300}
Trials = Mapping[str, list[float | None]]
"""Method → accuracy at each rate of its grid, 0 to 1; None where it diverged."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    preset: Literal["cpu", "full", "smoke"] = "cpu"
    """As in experiments.paper, whose training it is; cpu: about 50 minutes on two slow cores."""
    out: pathlib.Path | None = None
    """Folder of the finished trials; None: runs/tune-PRESET."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    held_out: int | None = None
    """Training images that are held out to judge by; None: the preset's."""
    rounds: int = 3
    """Rounds of a trial from pretrained agents."""
    table: pathlib.Path | None = None
    """Where the table goes; None: tuning.md in the folder of the trials."""
    tuned: pathlib.Path | None = None
    """Where the chosen rates go; None: tuned.json in the folder of the trials."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return common.exit_code(lambda: tune(common.command_line(Options, "tune", __doc__, given)))


def held_out_of(options: Options) -> int:
    """The number of training images that are held out."""
    return HELD_OUT[options.preset] if options.held_out is None else options.held_out


def tuned() -> list[str]:
    """The methods that are tuned, in the order of tables."""
    return [name for name, method in METHODS.items() if method.rate_of is None]


def same_rate() -> dict[str, str]:
    """Methods that are not tuned, with the one whose rate they take."""
    return {name: method.rate_of for name, method in METHODS.items() if method.rate_of}


def steps_by(method: str) -> Literal["local", "sgd", "momentum"]:
    """How a method steps: by the run's optimizer, or by itself without or with momentum."""
    gossip = METHODS[method].gossip
    if gossip is None:
        return "local"
    return "momentum" if gossip.momentum else "sgd"


def rates_of(preset: str, method: str) -> list[float]:
    """A method's grid."""
    local = SMALLEST_LOCAL[presets.STUDIES[preset].base.optimizer]
    smallest = {"local": local, **SMALLEST}[steps_by(method)]
    return [round(smallest * 3**trial, 6) for trial in range(TRIALS)]


def tune(options: Options) -> None:
    """Runs the trials that are not finished, and writes table and rates.

    Raises:
      ValueError: for bad input, before anything compiles.
    """
    from dimat_jax.execution.devices import prepare_devices

    for name, value in (("held_out", held_out_of(options)), ("rounds", options.rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    out = options.out or pathlib.Path("runs") / f"tune-{options.preset}"
    table, tuned = options.table or out / "tuning.md", options.tuned or out / "tuned.json"
    grid.make_folders(out, table.parent, tuned.parent)
    for file in (table, tuned):
        if file.is_dir():
            raise ValueError(f"{file} is a folder, and cannot be a file of results.")
    study = presets.STUDIES[options.preset]
    first = study.cells[0].setting
    prepare_devices(first.agents)
    whole = grid.load_data(first.dataset, options.data_dir, None)
    dataset = hold_out(whole, held_out_of(options))
    found: dict[str, Trials] = {}
    ran: list[Outcome] = []
    for regime, partition in itertools.product(("pretrained", "common"), ("iid", "by_class")):
        setting = first._replace(partition=partition, topology="ring", regime=regime)
        outcomes = [trial(options, setting, number, out, dataset) for number in range(TRIALS)]
        ran += outcomes
        found[grid.rates_key(partition, regime)] = {
            method: [accuracy(outcome, method) for outcome in outcomes]
            for method in methods_of(regime)
        }
    write_rates(tuned, options.preset, found)
    table.write_text(report(options, found, ran), encoding="utf-8")
    print(f"Written to {table}")


def methods_of(regime: str) -> tuple[str, ...]:
    """The methods that are tuned in a regime: those of `experiments.paper` there."""
    return tuple(m for m in tuned() if regime == "pretrained" or m in presets.FROM_COMMON)


def trial(
    options: Options, setting: Setting, number: int, out: pathlib.Path, dataset: "Dataset"
) -> Outcome:
    """One rate of every method's grid, or what is stored of it."""
    base = presets.STUDIES[options.preset].base
    base = dataclasses.replace(base, rounds=options.rounds, test_examples=held_out_of(options))
    methods, key = methods_of(setting.regime), grid.rates_key(setting.partition, setting.regime)
    rates = {key: {method: rates_of(options.preset, method)[number] for method in methods}}
    config = grid.config_of(base, Cell(setting, 0, methods), rates)
    if setting.regime == "common":
        config = dataclasses.replace(config, rounds=COMMON_ROUNDS)
    folder = out / f"{setting.partition}-{setting.regime}-{number}-of-{held_out_of(options)}"
    outcome = grid.load_outcome(folder, config)
    if outcome is None:
        print(f"{key}, rate {number + 1} of {TRIALS}", flush=True)
        outcome = grid.run_and_store(folder, config, dataset)
    return outcome


def hold_out(dataset: "Dataset", number: int) -> "Dataset":
    """The training data in two parts, the second of so many images in place of the test data.

    Raises:
      ValueError: if nothing is left to train on.
    """
    import numpy as np

    total = len(dataset.train_labels)
    if number >= total:
        raise ValueError(f"held_out must be below the {total:,} training images, not {number}.")
    order = np.random.default_rng(0).permutation(total)
    kept, held = np.sort(order[number:]), np.sort(order[:number])
    return dataset._replace(
        train_images=dataset.train_images[kept],
        train_labels=dataset.train_labels[kept],
        test_images=dataset.train_images[held],
        test_labels=dataset.train_labels[held],
        name=f"{dataset.name} (judged by {number:,} held-out training images)",
    )


def accuracy(outcome: Outcome, method: str) -> float | None:
    """The agents' mean accuracy at the end; None if the method diverged."""
    values = outcome.all_tests.get(method)
    return None if values is None else sum(values) / len(values)


def best(values: Sequence[float | None]) -> int | None:
    """The place of the best trial, the smaller rate of equals; None if all diverged."""
    finite = [place for place, value in enumerate(values) if value is not None]
    return max(finite, key=lambda place: values[place] or 0.0, default=None)


def chosen_rates(preset: str, found: Mapping[str, Trials]) -> Rates:
    """Each method's best rate, by partition and regime."""
    rates: dict[str, dict[str, float]] = {}
    for partition, trials in found.items():
        places = {method: best(values) for method, values in trials.items()}
        own = {m: rates_of(preset, m)[place] for m, place in places.items() if place is not None}
        rates[partition] = own | {m: own[like] for m, like in same_rate().items() if like in own}
    return rates


def edges(preset: str, found: Mapping[str, Trials]) -> list[str]:
    """The best rates at the edge of their grid."""
    return [
        f"{METHODS[method].label} ({key}, {rates_of(preset, method)[place]:g})"
        for key, trials in found.items()
        for method, values in trials.items()
        if (place := best(values)) in (0, TRIALS - 1)
    ]


def write_rates(path: pathlib.Path, preset: str, found: Mapping[str, Trials]) -> None:
    """Writes the rates that `experiments.paper` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = f"python -m experiments.tune --preset {preset}"
    values = {"about": about, "rates": chosen_rates(preset, found), "at_edge": edges(preset, found)}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def report(options: Options, found: Mapping[str, Trials], ran: Sequence[Outcome]) -> str:
    """The table: each method's trials, the best in bold."""
    from dimat_jax.report.tables import Table, to_markdown

    body = []
    for partition, method in [(key, method) for key, trials in found.items() for method in trials]:
        values, rates = found[partition][method], rates_of(options.preset, method)
        place = best(values)
        shown = ["diverged" if v is None else f"{100 * v:.1f}" for v in values]
        shown = [f"**{text}**" if at == place else text for at, text in enumerate(shown)]
        tried = [f"{rate:g}: {text}" for rate, text in zip(rates, shown, strict=True)]
        body.append([partition, METHODS[method].label, *tried])
    columns = ["partition", "method", *(f"rate {trial + 1}" for trial in range(TRIALS))]
    first = presets.STUDIES[options.preset].cells[0].setting
    like = ", ".join(
        f"{METHODS[m].label} as {METHODS[other].label}" for m, other in same_rate().items()
    )
    return (
        f"# Learning rates\n\n`python -m experiments.tune --preset {options.preset}`: "
        f"{first.agents} agents on a ring, {first.model} × {first.width:g}, seed 0; pretrained "
        f"apart, {options.rounds} rounds, or, from one common initialisation, {COMMON_ROUNDS}. "
        f"{grid.provenance(ran)} Each "
        f"entry is a rate and the agents' mean accuracy in % on "
        f"{held_out_of(options):,} training images that no agent trains on; the best "
        "in bold. Every method has as many trials, a factor of 3 apart. "
        f"Not tuned: {like}. Graphs other than the ring take the same rates.\n\n"
        f"{to_markdown(Table('', columns, body))}\n\n"
        f"Best at the edge of its grid, so that a rate beyond may be better: "
        f"{', '.join(edges(options.preset, found)) or 'none'}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
