"""A run read again from its folder. Nothing in it is executed: it is JSON and safetensors."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from dimat_jax.checkpoints.weights import WEIGHTS, load_final
from dimat_jax.config import Config
from dimat_jax.metrics import Row, read_rows
from dimat_jax.registry import expect, shown
from dimat_jax.types import Variables

POINT = ("method", "seed", "round", "epoch", "phase")
"""What says where a row was measured."""


class Run(NamedTuple):
    """A run that was read from its folder.

    Attributes:
      rows: in long form, one number a line: ``method``, ``seed``, ``round``, ``epoch``, ``phase``,
        ``metric``, ``agent`` (missing where a number is of all agents), ``value``. Accuracies by
        class have the metric ``test_accuracy_class_3``, seconds ``seconds_train``.
      config: of the run.
      variables: (method, seed) → the agents' networks at its end, nested dictionaries by path,
        stacked ``[agents, ...]``.
      dataset: the display name of its data.
      summary: what ``summary.json`` says; None of a run that has not ended.
    """

    rows: pd.DataFrame
    config: Config
    variables: dict[tuple[str, int], Variables]
    dataset: str
    summary: dict[str, Any] | None


def load_run(path: str | pathlib.Path) -> Run:
    """Reads what a run has left in its folder; one that is still under way, too.

    Args:
      path: the folder, `Config.out`.

    Raises:
      ValueError: if it holds no run, or one that is damaged; names the file.
    """
    expect("path", path, str | pathlib.Path, "a path")
    folder = pathlib.Path(path)
    described = read_json(folder / "config.json")
    summary = folder / "summary.json"
    try:
        config = config_of(described["config"])
        dataset = str(described["dataset"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a run: {error}.") from error
    return Run(
        rows=long_form(rows_of(folder / "metrics.jsonl")),
        config=config,
        variables=dict(variables_in(folder / WEIGHTS)),
        dataset=dataset,
        summary=read_json(summary) if summary.exists() else None,
    )


def rows_of(path: pathlib.Path) -> list[Row]:
    """Reads a file of rows.

    Raises:
      ValueError: if it is not there, or a line is no row; names it.
    """
    try:
        rows = read_rows(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "method" not in row:
            raise ValueError(f"{path}, line {number}, is not a row of metrics: {shown(row)}.")
    return rows


def read_json(path: pathlib.Path) -> Any:
    """Reads a file of JSON.

    Raises:
      ValueError: if it is not there, or something else; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def config_of(plain: dict[str, Any]) -> Config:
    """A configuration from the plain values of ``config.json``."""
    return Config(**{name: as_option(name, value) for name, value in plain.items()})


def as_option(name: str, value: Any) -> Any:
    """JSON has neither tuples nor paths."""
    if isinstance(value, list):
        return tuple(as_option(name, item) for item in value)
    is_path = name in ("out", "data_dir") and value is not None
    return pathlib.Path(value) if is_path else value


def variables_in(folder: pathlib.Path) -> Iterable[tuple[tuple[str, int], Variables]]:
    """The final networks in a folder, by method and seed."""
    for path in sorted(folder.glob("*-seed*")):
        method, _, seed = path.name.rpartition("-seed")
        if seed.isdigit():
            yield (method, int(seed)), load_final(path).variables


def long_form(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows of metrics as a table of one number a line, see `Run`."""
    found = [
        [*(row.get(name) for name in POINT), metric, agent, value]
        for row in rows
        for metric, agent, value in numbers_of(row)
    ]
    table = pd.DataFrame(found, columns=[*POINT, "metric", "agent", "value"])
    whole = dict.fromkeys(("seed", "round", "epoch", "agent"), "Int64")
    return table.astype({**whole, "value": "float64"})


def numbers_of(row: Row) -> Iterable[tuple[str, int | None, float]]:
    """Every number of a row: its metric, its agent, if it is one agent's, and its value."""
    for name, value in row.items():
        if name in POINT or name == "diverged" or value is None:
            continue
        if isinstance(value, dict):
            yield from ((f"{name}_{part}", None, number) for part, number in value.items())
        elif not isinstance(value, list):
            yield name, None, value  # pyrefly: ignore[invalid-yield]
        elif name.endswith("_classes"):
            metric = name.removesuffix("es")  # test_accuracy_class
            for agent, of_agent in enumerate(value):
                yield from ((f"{metric}_{c}", agent, number) for c, number in enumerate(of_agent))
        else:
            metric = name.removesuffix("_agents")
            yield from ((metric, agent, number) for agent, number in enumerate(value))
