"""The page of `experiments.matching_data`: accuracies, bytes and alignments by source of images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.report.figures import COLORS, MARKERS
from dimat_jax.report.leads import CONFIDENCE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table, to_markdown
from experiments import studies
from experiments.reports.values import ahead, mean_std

if TYPE_CHECKING:
    from experiments.matching_data import Study

Row = Mapping[str, Any]
What = tuple[str, str | None, int | None]
"""Method, whose images, how many; the last two None of methods that take none."""

ALONE: What = ("local_only", None, None)
LABELS = {"wm": "weight matching", "wa": "averaging", "local_only": "alone"}


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: one for each partition, seed, method, source of images and round.
    """
    base = study.base
    reference = reference_of(rows)
    sections = [
        f"{data}; {base.agents} agents of {base.examples_per_agent} images on a {base.topology}, "
        f"{base.model} × {base.width:g}, {base.pretrain_epochs} epochs apart, then {base.rounds} "
        f"rounds of a merge, each agent in its own frame, and an epoch; {study.seeds} seeds; "
        f"Dirichlet with α = {base.alpha:g}. {studies.provenance(rows)}",
        "Accuracies in %, means over agents and seeds: after the first merge, after the last one, "
        "and after the training that follows it. Differences in points are paired by seed, with a "
        f"{CONFIDENCE:.0%} interval of Student's t; bold where it has no 0 in it. MB: sent by an "
        "agent in all rounds; a shared batch is sent by those who hold its images, anew in each "
        f"round. Of the first merge: the share of units placed as on {label(reference)} "
        "(agreement), the share that alignments move around the ring, and there and back, and the "
        "dimensions of the fixed space for each unit (1: agents can agree on all).",
    ]
    for (partition,) in dict.fromkeys((row["partition"],) for row in rows):
        found = [row for row in rows if row["partition"] == partition]
        sections += [f"## {partition}", to_markdown(table(found))]
    return "\n\n".join(sections)


def what_of(row: Row) -> What:
    """What a row is of."""
    return row["method"], row["data"], row["images"]


def label(what: What) -> str:
    """As tables name it."""
    method, data, images = what
    return LABELS.get(method, method) if data is None else f"{images:,} {data} images"


def reference_of(rows: Sequence[Row]) -> What:
    """The most shared images."""
    shared = [row for row in rows if row["data"] == "shared"]
    return what_of(max(shared, key=lambda row: row["images"]))


def outcome(rows: Sequence[Row], what: What, name: str, round: int) -> dict[int, float]:
    """A measurement by seed, in one round; of who does not merge, what there was before."""
    found = [row for row in rows if what_of(row) == what and row["round"] == round]
    if name == "after":
        return {r["seed"]: r["before"] if r["after"] is None else r["after"] for r in found}
    return {row["seed"]: row[name] for row in found if row.get(name) is not None}


def difference(rows: Sequence[Row], of: What, over: What, name: str, round: int) -> Lead | None:
    """By how much one is ahead of another; None of itself."""
    if of == over:
        return None
    return lead(outcome(rows, of, name, round), outcome(rows, over, name, round))


def table(rows: Sequence[Row]) -> Table:
    """One partition's sources of images and methods."""
    last = max(row["round"] for row in rows)
    reference = reference_of(rows)
    body = []
    for what in dict.fromkeys(map(what_of, rows)):

        def shown(
            name: str, round: int, digits: int = 1, scale: float = 1, what: What = what
        ) -> str:
            values = outcome(rows, what, name, round).values()
            return mean_std([scale * value for value in values], digits)

        merged = [shown("after", round, scale=100) for round in (1, last)]
        if what == ALONE:
            merged = [EMPTY, EMPTY]
        megabytes = np.mean([*outcome(rows, what, "bytes_sent", last).values()]) / 1e6
        body.append(
            [
                label(what),
                *merged,
                shown("trained", last, scale=100),
                ahead(difference(rows, what, reference, "after", 1)) if what != ALONE else EMPTY,
                ahead(difference(rows, what, reference, "trained", last)),
                ahead(difference(rows, what, ALONE, "trained", last)),
                f"{megabytes:.2f}",
                shown("agreement", 1, scale=100),
                *(shown(name, 1, scale=100) for name in ("cycles", "there_and_back")),
                shown("fixed", 1, digits=2),
            ]
        )
    columns = ["units compared on", "first merge", "last merge", "trained"]
    columns += [f"first merge, over {label(reference)}", f"trained, over {label(reference)}"]
    columns += ["trained, over alone", "MB", "agreement, %", "cycles, %", "there and back, %"]
    return Table("", [*columns, "fixed"], body)


def picture(rows: Sequence[Row]) -> Figure:
    """Accuracy after the first merge, and agreement, by number of images; a column a partition."""
    partitions = list(dict.fromkeys(row["partition"] for row in rows))
    size = max(3.6 * len(partitions), 5), 6
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    panels = figure.subplots(2, len(partitions), sharex=True, sharey="row", squeeze=False)
    for (above, below), partition in zip(panels.T, partitions, strict=True):
        found = [row for row in rows if row["partition"] == partition]
        for i, data in enumerate(("shared", "own")):
            whats = [what for what in dict.fromkeys(map(what_of, found)) if what[1] == data]
            x = [images for _, _, images in whats]
            look = {"color": COLORS[i], "marker": MARKERS[i], "label": f"DIMAT, {data} images"}
            for axes, name in ((above, "after"), (below, "agreement")):
                y = [100 * np.mean([*outcome(found, w, name, 1).values()]) for w in whats]
                axes.plot(x, y, **look)
        for i, (method, style) in enumerate((("wm", "--"), ("wa", ":"), ("local_only", "-."))):
            y = 100 * np.mean([*outcome(found, (method, None, None), "after", 1).values()])
            above.axhline(y, color=COLORS[i + 2], linestyle=style, label=LABELS[method])
        above.set_title(partition, fontsize="medium")
        below.set_xlabel("images")
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("accuracy after the first merge, %")
    panels[1, 0].set_ylabel("units placed alike, %")
    panels[0, 0].legend(frameon=False, fontsize="x-small")
    return figure
