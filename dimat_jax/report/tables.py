"""Rows of metrics as tables: accuracy by stage, who is ahead of whom, and what each method cost."""

import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table as RichTable

from dimat_jax.metrics import Row, Stage, accuracies, last_rows, methods_of, spread, stages_of
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
    """Test accuracy after pretraining, after each merge and after each training, by method.

    Args:
      rows: of any number of seeds.
      most_rounds: with more rounds than this, those in the middle are left out.
      labels: what methods are called, by name; those that are absent by their name.

    Returns:
      Per cent, mean ± standard deviation of the sample, over all agents of all seeds together.
    """
    methods = methods_of(rows)
    seeds = len({row["seed"] for row in rows})
    cells = {method: last_rows(rows, method) for method in methods}
    lines = [
        [str(stage), *(percent(accuracies(cells[m].get(stage, {}))) for m in methods)]
        for stage in stages_of(rows)
    ]
    rounds = sorted({stage.round for stage in stages_of(rows)} - {0})
    if most_rounds is not None and len(rounds) > most_rounds:
        lines = leave_out(lines, stages_of(rows), rounds, most_rounds)
    title = f"Test accuracy in %, mean ± std over all agents of {counted(seeds, 'seed')}"
    return Table(title, ["after", *(labels.get(m, m) for m in methods)], lines)


def merged_table(rows: Sequence[Row], labels: Mapping[str, str] = NO_LABELS) -> Table | None:
    """Accuracy of the merged model, the mean of all agents' networks, by stage and method.

    Args:
      rows: of any number of seeds.
      labels: as in `accuracy_table`.

    Returns:
      Per cent, mean ± standard deviation over seeds; None where nobody has measured it.
    """
    measured = [row for row in rows if row.get("merged_accuracy") is not None]
    if not measured:
        return None
    methods = methods_of(rows)
    cells = {method: last_rows(measured, method) for method in methods}
    lines = [
        [str(stage), *(percent(merged_accuracies(cells[m].get(stage, {}))) for m in methods)]
        for stage in stages_of(measured)
    ]
    seeds = counted(len({row["seed"] for row in rows}), "seed")
    title = f"Test accuracy in % of the merged model, the mean of all agents' networks, {seeds}"
    return Table(title, ["after", *(labels.get(m, m) for m in methods)], lines)


def merged_accuracies(by_seed: Mapping[int, Row]) -> Float[np.ndarray, " seeds"]:
    """The accuracy of each seed's merged model, 0 to 1."""
    return np.array([row.get("merged_accuracy") for row in by_seed.values()], float)


def lead_table(found: Sequence[Comparison], labels: Mapping[str, str] = NO_LABELS) -> Table | None:
    """By how much methods are ahead of others, in points; None where there are none to compare.

    Args:
      found: as `comparisons` finds them.
      labels: as in `accuracy_table`.
    """
    seeds = max((lead.seeds for pair in found for lead in pair.points.values()), default=0)
    if not seeds:
        return None
    lines = [
        [
            f"{labels.get(pair.of, pair.of)} over {labels.get(pair.over, pair.over)}",
            *(
                points_ahead(*pair.points[name], of=seeds) if name in pair.points else EMPTY
                for name in POINTS
            ),
        ]
        for pair in found
    ]
    sure = "of one seed" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    return Table(f"Ahead by so many points, {sure}", ["ahead", *POINTS.values()], lines)


def points_ahead(
    mean: float, interval: Sequence[float] | None, seeds: int, of: int | None = None
) -> str:
    """A lead in points with its interval; with its seeds, if they are fewer than ``of``."""
    text = f"{100 * mean:+.1f}"
    if interval is not None:
        text += " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in interval))
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
    names = ["MB sent", *(f"{part}, s" for part in parts), "images/s"]
    lines = [list(line) for line in zip(names, *columns, strict=True)]
    title = "What it cost per seed: MB sent by an agent, seconds by part, images trained per second"
    return Table(title, ["cost", *(labels.get(m, m) for m in methods)], lines)


def costs(rows: Sequence[Row], parts: Sequence[str]) -> list[str]:
    """One method's column of the `cost_table`."""
    seeds = len({row["seed"] for row in rows})
    sent = sum({row["seed"]: row["bytes_sent"] for row in rows}.values()) / seeds
    spent = [sum(row["seconds"].get(part, 0.0) for row in rows) / seeds for part in parts]
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]
    speed = f"{sum(speeds) / len(speeds):,.0f}" if speeds else EMPTY
    return [megabytes(sent), *map(seconds, spent), speed]


def percent(values: Float[np.ndarray, " values"]) -> str:
    """Mean ± spread of shares, in per cent; a dash for none."""
    return mean_and_spread(float(values.mean()), spread(values)) if len(values) else EMPTY


def mean_and_spread(mean: float, std: float | None) -> str:
    """Shares in per cent; a single value has no spread."""
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


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
