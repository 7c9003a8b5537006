"""The rows of ``metrics.jsonl``: what a run measures, one JSON object a line, in order of time."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

PRETRAINING = "pretrain"
"""The ``method`` of the shared pretraining, which runs once a seed."""


Phase = Literal["pretrain", "merge", "train"]


class Row(TypedDict):
    """One measurement of all agents.

    Nothing that depends on the clock, the folder, the process or an interruption stands outside
    ``images_per_second`` and ``seconds``.
    """

    method: str
    """As named in ``--methods``; `PRETRAINING` for the shared pretraining."""
    seed: int
    round: int
    """0 in pretraining, then counted from 1."""
    epoch: int
    """Epochs trained since the start, pretraining included."""
    phase: Phase
    """What has just ended."""
    test_loss: float | None
    """Mean over agents. Every metric of the task has the same entries, ``test_accuracy`` and so on:
    those of a classification are listed here."""
    test_loss_std: float
    """Sample standard deviation over agents; 0 of a single one."""
    test_loss_agents: list[float]
    merged_loss: float | None
    """Of the plain mean of all agents' parameters, with statistics of everyone's examples: as if
    they were all averaged now; None if not asked for."""
    test_accuracy: float
    """0 to 1."""
    test_accuracy_std: float
    test_accuracy_agents: list[float]
    merged_accuracy: float | None
    test_accuracy_classes: list[list[float]]
    """Of each agent on each class, rounded to four digits: ``[agents][classes]``."""
    train_loss: float | None
    consensus_distance: float | None
    """√(1/n Σ_i ‖x_i − x̄‖²) over the parameters, each agent's units in the order that they have."""
    consensus_distance_aligned: float | None
    """The same modulo permutation: with each agent's units brought into agent 0's frame by the
    permutations of the merges so far; None where nothing has aligned them."""
    units_moved: float | None
    """The share of hidden units that a merge's permutations moved; None where nothing was
    aligned."""
    bytes_sent: float
    """By an agent, since the start."""
    images_per_second: float | None
    """All agents together, training calls only, compilation left out; rows of training."""
    seconds: dict[str, float]
    """By part, since the row before: compile, train, match, assign, mix, statistics, evaluate."""
    agents_measured: NotRequired[int]
    """How many agents are there and finite, and were measured; this and the next two only of runs
    with faults or events."""
    messages_lost: NotRequired[int]
    """Since the method began."""
    messages_left_out: NotRequired[int]
    """Those that were not finite, and not averaged: of merges, since the method began."""
    diverged: NotRequired[str]
    """Only of a method whose loss did not stay finite: where and how. It has no further row of this
    seed, and this one no measurement."""


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Adds a line to a file and flushes it; numbers that are not finite are written as null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite(row), allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Replaces NaN and infinities by None, which is all that JSON knows of them."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: pathlib.Path) -> list[Row]:
    """Reads a file of rows; a last line that a kill cut short is left out.

    Raises:
      ValueError: if a complete line is no JSON object; names the file and the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True), 1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not a row of metrics: {error}.") from error
    return rows


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows that hold measurements: all but those of methods that diverged."""
    return [row for row in rows if "diverged" not in row]


class Stage(NamedTuple):
    """A point of a run at which methods are compared: after a phase of a round."""

    round: int
    phase: str

    def __str__(self) -> str:
        return "pretraining" if self.phase == "pretrain" else f"{self.phase} {self.round}"


PHASES = ("pretrain", "merge", "train")


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods in order of appearance; the shared pretraining only if there is nothing else."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    return [name for name in names if name != PRETRAINING] or names


def stages_of(rows: Iterable[Row]) -> list[Stage]:
    """The stages in order of time."""
    found = {Stage(row["round"], row["phase"]) for row in rows}
    return sorted(found, key=lambda stage: (stage.round, PHASES.index(stage.phase)))


def last_rows(rows: Iterable[Row], method: str) -> dict[Stage, dict[int, Row]]:
    """A method's last row of each stage and seed, the shared pretraining included."""
    found: dict[Stage, dict[int, Row]] = {}
    for row in rows:
        if row["method"] in (method, PRETRAINING):
            found.setdefault(Stage(row["round"], row["phase"]), {})[row["seed"]] = row
    return {stage: found[stage] for stage in stages_of(rows) if stage in found}


class Measure(NamedTuple):
    """What methods are compared by: a metric of the rows, and how it is written.

    Attributes:
      name: of the metric.
      title: in words, with its unit.
      better: 1 if more is better, else -1.
      scale: what is multiplied by it where it is written.
      digits: after the decimal point.
      unit: of what one is ahead by.
      sign: after a number.
    """

    name: str
    title: str
    better: int
    scale: float
    digits: int
    unit: str
    sign: str = ""


ACCURACY = Measure("accuracy", "test accuracy in %", 1, 100.0, 1, "points", " %")
LOSS = Measure("loss", "test loss", -1, 1.0, 3, "of loss")


def measure_of(rows: Iterable[Row]) -> Measure:
    """What the methods of a run are compared by: accuracy, but loss of language and of numbers."""
    measured = [row for row in rows if "test_loss" in row]
    lossy = any("test_accuracy" not in row or "test_perplexity" in row for row in measured)
    return LOSS if lossy else ACCURACY


def values_of(
    by_seed: Mapping[int, Row], measure: Measure = ACCURACY
) -> Float[np.ndarray, " agents_of_all_seeds"]:
    """What is measured of every agent of every seed; accuracies from 0 to 1."""
    name = f"test_{measure.name}_agents"
    values = (np.asarray(row.get(name), float) for row in by_seed.values())
    return np.concatenate([np.zeros(0), *values])


def spread(values: Float[np.ndarray, " values"]) -> float | None:
    """The standard deviation of a sample (n − 1); None of a single value, which has no spread."""
    return float(values.std(ddof=1)) if len(values) > 1 else None
