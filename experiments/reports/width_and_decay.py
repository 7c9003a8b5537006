"""The page of `experiments.width_and_decay`: barriers, what alignment adds, and a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.report.figures import COLORS, MARKERS
from dimat_jax.report.leads import CONFIDENCE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table, to_markdown
from experiments import studies
from experiments.reports.values import ahead, mean_std, sure

if TYPE_CHECKING:
    from experiments.width_and_decay import Study

Row = Mapping[str, Any]

PLAIN = "averaging"
ALIGNED = ("activation matching", "weight matching")

PUBLISHED = {
    ("vgg11", 3e-3): "× 16: plain 1.3, weight matching 7.0",
    ("resnet20", 3e-3): "× 32: plain 2.7, weight matching 5.1",
    ("vgg11", 1e-4): "× 16: plain averaging fails",
    ("resnet20", 1e-4): "× 32: plain averaging fails",
}
"""Accuracy barriers in points of arXiv 2510.08023 on CIFAR-10, by model and decay."""


def accuracy_barrier(row: Row) -> float:
    """By how much accuracy falls half way between two networks below the mean of theirs, 0 to 1."""
    return row["ends_accuracy"] - row["midpoint_accuracy"]


def loss_barrier(row: Row, calibrated: bool = False) -> float:
    """By how much the loss rises there; calibrated: everyone's at its best temperature."""
    name = "calibrated_loss" if calibrated else "loss"
    return row[f"midpoint_{name}"] - row[f"ends_{name}"]


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: one for each setting, seed and technique.
    """
    return "\n\n".join(
        [
            f"{data}; two networks with BatchNorm, trained apart on the same images by SGD with "
            "momentum, rate 0.1 (cosine), batches of 50; "
            f"{study.seeds} seeds; {study.images} images for matching and for recomputing "
            f"statistics; {study.tests:,} test images. {studies.provenance(rows)}",
            verdict(rows),
            "## The network half way",
            "Accuracy of the two networks in %, mean ± standard deviation over seeds; by how many "
            "points the network half way is below them (the barrier), and how much alignment "
            f"takes off it: paired by seed, {CONFIDENCE:.0%} interval of Student's t, bold where "
            "it has no 0 in it. Published: arXiv 2510.08023, full training, much wider.",
            to_markdown(table(rows)),
            "## What width and decay do",
            "Change of the barrier in points, paired by seed: from the narrowest network to the "
            "widest at the same decay, and from the weakest decay to the strongest at the same "
            "width. Below 0: it falls.",
            to_markdown(changes(rows)),
            "## Losses and weights",
            "Barrier of the test loss as it is, and with logits divided by the temperature that "
            "suits each network best (fitted on the test images: one number each); norm of a "
            "network's weights, and the distance of the two over it (√2: at right angles).",
            to_markdown(table_of_losses(rows)),
        ]
    )


def chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def settings_in(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each model, width and decay, in the order of the rows."""
    names = ("model", "width", "decay")
    return [
        dict(zip(names, values, strict=True))
        for values in dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    ]


def by_seed(rows: Sequence[Row], **wanted: Any) -> dict[int, float]:
    """Accuracy barriers of a setting's technique by seed."""
    return {row["seed"]: accuracy_barrier(row) for row in chosen(rows, **wanted)}


def taken_off(rows: Sequence[Row], technique: str, **setting: Any) -> Lead | None:
    """By how much a technique's barrier is lower than that of plain averaging."""
    plain = by_seed(rows, technique=PLAIN, **setting)
    return lead(plain, by_seed(rows, technique=technique, **setting))


def verdict(rows: Sequence[Row]) -> str:
    """In how many settings alignment is ahead, and how near to no barrier plain averaging comes."""
    settings = settings_in(rows)
    said = []
    for technique in ALIGNED:
        found = [taken_off(rows, technique, **setting) for setting in settings]
        certain = [x for x in found if x is not None and sure(x)]
        better, worse = sum(x.mean > 0 for x in certain), sum(x.mean < 0 for x in certain)
        said.append(
            f"{technique} has a lower barrier than plain averaging in {better} of {len(settings)} "
            f"settings, a higher one in {worse}, and none that is certain in "
            f"{len(settings) - better - worse}"
        )
    means = [np.mean([*by_seed(rows, technique=PLAIN, **s).values()]) for s in settings]
    best = settings[int(np.argmin(means))]
    text, where = "; ".join(said), f"{best['model']} × {best['width']:g}"
    return (
        f"{text[0].upper()}{text[1:]}. The lowest barrier of plain averaging, "
        f"{100 * min(means):.1f} points, is that of {where} at a decay of {best['decay']:g}."
    )


def table(rows: Sequence[Row]) -> Table:
    """A line for each network and decay."""
    body = []
    for setting in settings_in(rows):
        plain = chosen(rows, technique=PLAIN, **setting)
        barriers = [
            mean_std([100 * x for x in by_seed(rows, technique=technique, **setting).values()])
            for technique in (PLAIN, *ALIGNED)
        ]
        body.append(
            [
                f"{setting['model']} × {setting['width']:g}",
                f"{setting['decay']:g}",
                mean_std([100 * row["ends_accuracy"] for row in plain]),
                *barriers,
                *(ahead(taken_off(rows, technique, **setting)) for technique in ALIGNED),
                PUBLISHED.get((setting["model"], setting["decay"]), EMPTY),
            ]
        )
    columns = ["network", "decay", "the two", *(f"barrier, {t}" for t in (PLAIN, *ALIGNED))]
    columns += [*(f"{technique} takes off" for technique in ALIGNED), "published"]
    return Table("", columns, body)


def changes(rows: Sequence[Row]) -> Table:
    """From narrow to wide, and from weak decay to strong."""
    body = []
    settings = settings_in(rows)
    for model in dict.fromkeys(row["model"] for row in rows):
        widths = sorted({s["width"] for s in settings if s["model"] == model})
        decays = sorted({s["decay"] for s in settings if s["model"] == model})
        steps = [({"decay": d}, "width", widths, f"at a decay of {d:g}") for d in decays]
        steps += [({"width": w}, "decay", decays, f"at × {w:g}") for w in widths]
        for fixed, name, values, where in steps:
            if len(values) < 2:
                continue
            found = []
            for technique in (PLAIN, *ALIGNED):
                of = {"model": model, "technique": technique, **fixed}
                start, end = (by_seed(rows, **of, **{name: v}) for v in (values[0], values[-1]))
                found.append(ahead(lead(end, start)))
            body.append([model, f"{name} {values[0]:g} to {values[-1]:g}, {where}", *found])
    return Table("", ["network", "change", PLAIN, *ALIGNED], body)


def table_of_losses(rows: Sequence[Row]) -> Table:
    """A line for each network, decay and technique."""
    body = []
    for setting in settings_in(rows):
        for technique in (PLAIN, *ALIGNED):
            found = chosen(rows, technique=technique, **setting)
            body.append(
                [
                    f"{setting['model']} × {setting['width']:g}",
                    f"{setting['decay']:g}",
                    technique,
                    mean_std([row["ends_loss"] for row in found], 2),
                    mean_std([loss_barrier(row) for row in found], 2),
                    mean_std([loss_barrier(row, calibrated=True) for row in found], 2),
                    mean_std([row["norm"] for row in found]),
                    mean_std([row["distance"] for row in found], 2),
                ]
            )
    columns = ["network", "decay", "technique", "loss of the two", "loss barrier"]
    return Table("", [*columns, "at best temperatures", "norm", "distance"], body)


def picture(rows: Sequence[Row]) -> Figure:
    """Barriers by width: a panel for each model, a colour for each decay, lines by technique."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    decays = sorted({row["decay"] for row in rows})
    styles = dict(zip((PLAIN, *ALIGNED), ("-", ":", "--"), strict=True))
    figure = Figure(figsize=(max(4.0 * len(models), 5), 4), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for (i, decay), (technique, style) in [
            (d, s) for d in enumerate(decays) for s in styles.items()
        ]:
            of = {"model": model, "decay": decay, "technique": technique}
            widths = sorted({row["width"] for row in chosen(rows, **of)})
            means = [100 * np.mean([*by_seed(rows, **of, width=w).values()]) for w in widths]
            look = {"color": COLORS[i], "marker": MARKERS[i], "linestyle": style}
            axes.plot(widths, means, label=f"{technique}, decay {decay:g}", **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [f"{w:g}" for w in widths])
        axes.minorticks_off()
        axes.set_title(model, fontsize="medium")
        axes.set_xlabel("width")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy barrier half way, points")
    panels[-1].legend(frameon=False, fontsize="x-small")
    return figure
