"""Rows of metrics as tables: accuracy by stage, who is ahead of whom, and what each method cost."""

import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table as RichTable

from dimat_jax.metrics import (
    ACCURACY,
    Measure,
    Row,
    Stage,
    last_rows,
    measure_of,
    methods_of,
    spread,
    stages_of,
    values_of,
)
from dimat_jax.report.leads import POINTS, Comparison

PARTS = ("compile", "train", "match", "assign", "mix", "statistics", "evaluate")  # in this order
EMPTY = "-"
NO_LABELS: Mapping[str, str] = types.MappingProxyType({})
"""Methods are called by their names."""


class Table(NamedTuple):
    """A table of strings.

    Attributes:
      title: what it shows, and what the numbers are.
      columns: headings; the first column names the row.
      rows: as many strings a row as there are columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def accuracy_table(
    rows: Sequence[Row],
    most_rounds: int | None = None,
    labels: Mapping[str, str] = NO_LABELS,
) -> Table:
    """Test accuracy, or loss, after pretraining, each merge and each training, by method.

    Args:
      rows: of any number of seeds.
      most_rounds: with more rounds than this, those in the middle are left out.
      labels: what methods are called, by name; those that are absent by their name.

    Returns:
      Mean ± standard deviation of the sample, over all agents of all seeds together.
    """
    methods, measure = methods_of(rows), measure_of(rows)
    seeds = len({row["seed"] for row in rows})
    cells = {method: last_rows(rows, method) for method in methods}

    def cell(stage: Stage, method: str) -> str:
        return shown(values_of(cells[method].get(stage, {}), measure), measure)

    lines = [[str(stage), *(cell(stage, m) for m in methods)] for stage in stages_of(rows)]
    rounds = sorted({stage.round for stage in stages_of(rows)} - {0})
    if most_rounds is not None and len(rounds) > most_rounds:
        lines = leave_out(lines, stages_of(rows), rounds, most_rounds)
    title = f"{sentence(measure.title)}, mean ± std over all agents of {counted(seeds, 'seed')}"
    return Table(title, ["after", *(labels.get(m, m) for m in methods)], lines)


def merged_table(rows: Sequence[Row], labels: Mapping[str, str] = NO_LABELS) -> Table | None:
    """Accuracy, or loss, of the merged model, the mean of all agents' networks, by stage.

    Args:
      rows: of any number of seeds.
      labels: as in `accuracy_table`.

    Returns:
      Mean ± standard deviation over seeds; None where nobody has measured it.
    """
    measure = measure_of(rows)
    measured = [row for row in rows if row.get(f"merged_{measure.name}") is not None]
    if not measured:
        return None
    methods = methods_of(rows)
    cells = {method: last_rows(measured, method) for method in methods}

    def cell(stage: Stage, method: str) -> str:
        return shown(merged_values(cells[method].get(stage, {}), measure), measure)

    lines = [[str(stage), *(cell(stage, m) for m in methods)] for stage in stages_of(measured)]
    seeds = counted(len({row["seed"] for row in rows}), "seed")
    of = "of the merged model, the mean of all agents' networks"
    title = f"{sentence(measure.title)} {of}, {seeds}"
    return Table(title, ["after", *(labels.get(m, m) for m in methods)], lines)


def merged_values(by_seed: Mapping[int, Row], measure: Measure) -> Float[np.ndarray, " seeds"]:
    """What is measured of each seed's merged model."""
    return np.array([row.get(f"merged_{measure.name}") for row in by_seed.values()], float)


def sentence(words: str) -> str:
    """Words as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def lead_table(
    found: Sequence[Comparison],
    labels: Mapping[str, str] = NO_LABELS,
    measure: Measure = ACCURACY,
) -> Table | None:
    """By how much methods are ahead of others; None where there are none to compare.

    Args:
      found: as `comparisons` finds them.
      labels: as in `accuracy_table`.
      measure: in which.
    """
    seeds = max((lead.seeds for pair in found for lead in pair.points.values()), default=0)
    if not seeds:
        return None
    lines = [
        [
            f"{labels.get(pair.of, pair.of)} over {labels.get(pair.over, pair.over)}",
            *(
                points_ahead(*pair.points[name], of=seeds, measure=measure)
                if name in pair.points
                else EMPTY
                for name in POINTS
            ),
        ]
        for pair in found
    ]
    sure = "of one seed" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    much = "so many points" if measure is ACCURACY else f"so much {measure.unit}"
    return Table(f"Ahead by {much}, {sure}", ["ahead", *POINTS.values()], lines)


def points_ahead(
    mean: float,
    interval: Sequence[float] | None,
    seeds: int,
    of: int | None = None,
    measure: Measure = ACCURACY,
) -> str:
    """A lead with its interval; with its seeds, if they are fewer than ``of``."""

    def signed(value: float) -> str:
        return f"{measure.scale * value:+.{measure.digits}f}"

    text = signed(mean)
    if interval is not None:
        text += " [{}, {}]".format(*map(signed, interval))
    return text if of is None or seeds == of else f"{text} ({counted(seeds, 'seed')})"


def leave_out(
    lines: list[list[str]], stages: list[Stage], rounds: list[int], most: int
) -> list[list[str]]:
    """Keeps the first and the last rounds, ``most`` in all, with a line of dots between them."""
    head, tail = rounds[: most - most // 2], rounds[len(rounds) - most // 2 :]
    before = [line for line, stage in zip(lines, stages, strict=True) if stage.round <= head[-1]]
    after = [line for line, stage in zip(lines, stages, strict=True) if stage.round in tail]
    return [*before, ["…"] * len(lines[0]), *after]


def cost_table(rows: Sequence[Row], labels: Mapping[str, str] = NO_LABELS) -> Table:
    """Bytes that an agent sends, and the wall time of each part; a column for each method.

    Args:
      rows: of any number of seeds.
      labels: as in `accuracy_table`.

    Returns:
      Means over seeds.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    spent_on = {part for row in rows for part in row["seconds"]}
    parts = [*PARTS, *sorted(spent_on - set(PARTS))]
    columns = [costs([row for row in rows if row["method"] == method], parts) for method in methods]
    names = ["MB sent", *(f"{part}, s" for part in parts), "examples/s"]
    lines = [list(line) for line in zip(names, *columns, strict=True)]
    title = "What it cost per seed: MB sent by an agent, seconds by part, examples a second"
    return Table(title, ["cost", *(labels.get(m, m) for m in methods)], lines)


def costs(rows: Sequence[Row], parts: Sequence[str]) -> list[str]:
    """One method's column of the `cost_table`."""
    seeds = len({row["seed"] for row in rows})
    sent = sum({row["seed"]: row["bytes_sent"] for row in rows}.values()) / seeds
    spent = [sum(row["seconds"].get(part, 0.0) for row in rows) / seeds for part in parts]
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]
    speed = f"{sum(speeds) / len(speeds):,.0f}" if speeds else EMPTY
    return [megabytes(sent), *map(seconds, spent), speed]


def shown(values: Float[np.ndarray, " values"], measure: Measure = ACCURACY) -> str:
    """Mean ± spread, accuracies in per cent; a dash for none."""
    if not len(values):
        return EMPTY
    return mean_and_spread(float(values.mean()), spread(values), measure)


def mean_and_spread(mean: float, std: float | None, measure: Measure = ACCURACY) -> str:
    """Accuracies in per cent; a single value has no spread."""
    both = (mean,) if std is None else (mean, std)
    return " ± ".join(f"{measure.scale * x:.{measure.digits}f}" for x in both)


def megabytes(count: float) -> str:
    """Millions of bytes; less than one with three significant digits."""
    if 0 < count < 1e6:
        return np.format_float_positional(count / 1e6, 3, fractional=False, trim="-")
    return f"{count / 1e6:,.1f}"


def seconds(value: float) -> str:
    """Seconds with two decimals; a dash for nothing."""
    return f"{value:.2f}" if value else EMPTY


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number} {noun}" + "s" * (number != 1)


def to_markdown(table: Table) -> str:
    """A Markdown table with aligned columns, which reads as plain text too; no title."""
    grid = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])

    rule = "|-".join(["-" * (widths[0] + 1), *("-" * w + ":" for w in widths[1:])])
    body = [f"| {line(row)} |" for row in table.rows]
    return "\n".join([f"| {line(table.columns)} |", f"|-{rule}|", *body])


def to_rich(table: Table) -> RichTable:
    """The same for a terminal."""
    rich = RichTable(title=table.title, title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        # A number that is cut is wrong: what has no room goes on in the next line.
        rich.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        rich.add_row(*row)
    return rich


def show(table: Table, console: Console) -> str:
    """Prints a table, with borders on a terminal and as Markdown elsewhere.

    Returns:
      Title and Markdown, whatever was printed.
    """
    text = f"{table.title}\n\n{to_markdown(table)}\n"
    if console.is_terminal:
        console.print(to_rich(table))
    else:
        console.file.write(text)
    return text
