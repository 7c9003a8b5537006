"""The map of `experiments.when_to_merge`: what alignment gains, by gossip and width."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import SubFigure

from dimat_jax.report.leads import Lead, lead
from dimat_jax.report.tables import EMPTY, Table
from experiments.reports.values import ahead, sure
from experiments.reports.when_to_merge_budget import Row, gain, in_words, mean, of_setting, percent
from experiments.when_to_merge_spend import ALIGNED, PLAIN, gossip, spent_by

if TYPE_CHECKING:
    from experiments.when_to_merge import Study

MARK = "●"
"""Stands in the picture where the interval has no 0 in it."""


def chances_of(study: "Study") -> tuple[float, ...]:
    """The probabilities of gossip, that of nobody first."""
    return (0.0, *study.budget.chances)


def table_of(
    title: str, study: "Study", rows: Sequence[Row], cell: Callable[[list[Row], str], str]
) -> Table:
    """A line for each width, a column for each probability."""
    body = []
    for width in study.widths:
        found = [row for row in rows if row["width"] == width]
        body.append([f"{width:g}", *(cell(found, gossip(p)) for p in chances_of(study))])
    return Table("", [title, *(f"p = {p:g}" for p in chances_of(study))], body)


def gains_table(study: "Study", rows: Sequence[Row]) -> Table:
    """Aligned − plain at the same probability; arguments as of `table_of`."""
    return table_of("width; aligned − plain", study, rows, lambda r, way: ahead(gain(r, way)))


def worth_table(study: "Study", rows: Sequence[Row]) -> Table:
    """Aligned over what plain gossip makes of the same bytes."""
    ways = [gossip(p) for p in chances_of(study)]

    def cell(found: list[Row], way: str) -> str:
        return ahead(over_best_plain(found, way, ways))

    return table_of("width; aligned over plain at no more bytes", study, rows, cell)


def over_best_plain(rows: Sequence[Row], way: str, ways: Sequence[str]) -> Lead | None:
    """Aligned in one way over plain in the best of those that send no more bytes than it.

    Args:
      rows: of one setting.
      way: of the aligned.
      ways: among which plain ones are looked for.
    """

    def average(way: str, units: str, name: str) -> float:
        values = list(spent_by(rows, way, units, name).values())
        return float(np.mean(values)) if values else np.inf

    most = average(way, ALIGNED, "bytes_sent")
    affordable = [w for w in ways if average(w, PLAIN, "bytes_sent") <= most < np.inf]
    if not affordable:
        return None
    best = max(affordable, key=lambda w: average(w, PLAIN, "merged"))
    return lead(spent_by(rows, way, ALIGNED, "merged"), spent_by(rows, best, PLAIN, "merged"))


def accuracies_table(study: "Study", rows: Sequence[Row]) -> Table:
    """The merged models' accuracies, and what was sent for them."""

    def cell(found: list[Row], way: str) -> str:
        both = [spent_by(found, way, units, "merged") for units in (PLAIN, ALIGNED)]
        if not all(both):
            return EMPTY
        sent = [mean(spent_by(found, way, units, "networks")) for units in (PLAIN, ALIGNED)]
        return f"{' / '.join(map(percent, both))} ({' / '.join(sent)})"

    return table_of("width; plain / aligned (networks)", study, rows, cell)


def draw_map(figure: SubFigure, study: "Study", rows: Sequence[Row]) -> None:
    """What alignment gains, as colours with numbers, and a mark where that is sure."""
    figure.suptitle(
        f"Merged model, aligned − plain, points; {MARK}: the interval has no 0 in it",
        fontsize="medium",
    )
    chances, widths = chances_of(study), study.widths
    every_axes = figure.subplots(1, len(study.mapped), squeeze=False)[0]
    leads = {
        setting: [
            [gain(of_setting(rows, setting._replace(width=w)), gossip(p)) for p in chances]
            for w in widths
        ]
        for setting in study.mapped
    }
    means = {
        setting: np.array([[100 * x.mean if x else np.nan for x in line] for line in found])
        for setting, found in leads.items()
    }
    known = [abs(x) for of in means.values() for x in of.ravel() if np.isfinite(x)]
    most = max([1.0, *known])
    image = None
    for axes, setting in zip(every_axes, study.mapped, strict=True):
        image = axes.imshow(means[setting], cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        for i, line in enumerate(leads[setting]):
            for j, found in enumerate(line):
                dark = found is not None and abs(100 * found.mean) > 0.6 * most
                look = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
                axes.text(j, i, in_cell(found), fontsize="x-small", **look)
        axes.set_xticks(range(len(chances)), [f"{p:g}" for p in chances])
        axes.set_yticks(range(len(widths)), [f"{w:g}" for w in widths])
        axes.set_xlabel("probability of gossip in a round")
        axes.set_title(in_words(setting), fontsize="small")
    every_axes[0].set_ylabel("width")
    if image is not None:
        figure.colorbar(image, ax=list(every_axes), shrink=0.8)


def in_cell(found: Lead | None) -> str:
    """A difference with its interval, and the mark."""
    if found is None:
        return EMPTY
    text = f"{100 * found.mean:+.1f}" + (f" {MARK}" if sure(found) else "")
    if found.interval is None:
        return text
    low, high = (100 * bound for bound in found.interval)
    return f"{text}\n({low:+.1f} to {high:+.1f})"
