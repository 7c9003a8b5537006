"""The page of `experiments.merge_frequency`: its tables, the fit of the drift, and its picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.registry import METHODS
from dimat_jax.report.figures import COLORS, GREY
from dimat_jax.report.leads import CONFIDENCE, lead
from dimat_jax.report.tables import EMPTY, Table, megabytes, to_markdown
from experiments import studies
from experiments.reports.values import ahead

if TYPE_CHECKING:
    from experiments.merge_frequency import Study

Row = Mapping[str, Any]
LABELS = {"dimat": "aligned", "wa": "plain", "local_only": "alone"}


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: one for each measurement.
    """
    base = study.base
    sections = [
        f"{data}; {base.model} × {base.width:g}, {base.agents} agents of "
        f"{base.examples_per_agent} images, {base.topology} graph, {base.pretrain_epochs} epochs "
        f"apart, then {study.epochs} epochs whatever the period, at {base.round_rate:g} of the "
        f"learning rate, and one more merge; {study.seeds} seeds; accuracy in % on "
        f"{study.tests:,} test images, along the way on {base.test_examples:,} of them. Aligned: "
        f"once, {METHODS['dimat'].label} in one frame of all. {studies.provenance(rows)}",
    ]
    for partition in study.partitions:
        found = [row for row in rows if row["partition"] == partition]
        sections += [f"## {partition}", to_markdown(table(study, found))]
    return "\n\n".join([*sections, drift_text(study, rows)])


def ends_of(rows: Sequence[Row], method: str, period: float | None = None) -> dict[int, float]:
    """Accuracy at the end, on all test images, by seed; of agents alone whatever the period."""
    return {
        row["seed"]: row["all_tests"]
        for row in rows
        if row["method"] == method and period in (None, row["period"]) and "all_tests" in row
    }


def table(study: "Study", rows: Sequence[Row]) -> Table:
    """Of one partition: a line for each period, and agents alone."""
    columns = ["epochs between merges", "aligned", "plain", "aligned − plain", "aligned − alone"]
    columns += ["plain − alone", "MB aligned", "MB plain", "apart before a merge: aligned", "plain"]
    alone, body = ends_of(rows, "local_only"), []
    for period in study.periods:
        ends = {method: ends_of(rows, method, period) for method in ("dimat", "wa")}
        aligned, plain = ends.values()
        leads = (lead(aligned, plain), lead(aligned, alone), lead(plain, alone))
        sent = [
            np.mean([r["bytes_sent"] for r in rows if matches(r, m, period) and "all_tests" in r])
            for m in ends
        ]
        apart = [np.mean(list(drifts(rows, m, period).values())) for m in ends]
        body.append(
            [
                f"{period:g}",
                *(f"{100 * np.mean(list(of.values())):.1f}" for of in ends.values()),
                *map(ahead, leads),
                *map(megabytes, sent),
                *(f"{x:.2f}" for x in apart),
            ]
        )
    mean = f"{100 * np.mean(list(alone.values())):.1f}"
    body.append(["alone: never", mean, *[EMPTY] * 8])
    return Table("", columns, body)


def matches(row: Row, method: str, period: float) -> bool:
    """Whether a row is of this method and period."""
    return row["method"] == method and row["period"] == period


def drifts(rows: Sequence[Row], method: str, period: float) -> dict[int, float]:
    """How far apart agents are before a merge, by seed: mean over the second half of the epochs."""
    trained = [r for r in rows if matches(r, method, period) and r["phase"] == "train"]
    last = max(row["epoch"] for row in trained)
    found: dict[int, list[float]] = {}
    for row in trained:
        if row["epoch"] >= last / 2:
            found.setdefault(row["seed"], []).append(row["distance"])
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def drift_text(study: "Study", rows: Sequence[Row]) -> str:
    """What theory says of the distance between agents, and what it is."""
    lines = []
    for partition in study.partitions:
        for method in ("dimat", "wa"):
            of_partition = [row for row in rows if row["partition"] == partition]
            by_seed: dict[int, list[tuple[float, float]]] = {}
            for period in study.periods:
                for seed, distance in drifts(of_partition, method, period).items():
                    by_seed.setdefault(seed, []).append((period, distance))
            slopes = {seed: exponent(pairs) for seed, pairs in by_seed.items()}
            found = lead(slopes, dict.fromkeys(slopes, 0.0))
            assert found is not None
            interval = ""
            if found.interval:
                interval = f" ({found.interval[0]:.2f} to {found.interval[1]:.2f})"
            lines.append(f"- {partition}, {LABELS[method]}: {found.mean:.2f}{interval}")
    return "\n".join(
        [
            "## Against theory\n",
            "With τ epochs between two merges agents drift apart as τ^(1/2) where their gradients "
            "differ by noise alone, and as τ where they differ in the mean; a merge with the gap "
            "1 − ρ leaves at most ρ of it (Koloskova et al. 2020, arXiv 2003.10422). Fitted "
            "exponent of the consensus distance before merges, with a "
            f"{CONFIDENCE:.0%} interval over seeds:\n",
            *lines,
        ]
    )


def exponent(pairs: Sequence[tuple[float, float]]) -> float:
    """The slope of log distance over log period."""
    period, distance = np.log(np.array(pairs)).T
    return float(np.polyfit(period, distance, 1)[0])


def picture(study: "Study", rows: Sequence[Row]) -> Figure:
    """Accuracy by epoch, and at the end by bytes; aligned solid, plain dashed."""
    figure = Figure(figsize=(10, 3.8 * len(study.partitions)), layout="constrained", dpi=120)
    axes = figure.subplots(len(study.partitions), 2, squeeze=False, sharey="row")
    for (by_epoch, by_bytes), partition in zip(axes, study.partitions, strict=True):
        found = [row for row in rows if row["partition"] == partition]
        alone = 100 * np.mean(list(ends_of(found, "local_only").values()))
        draw_epochs(by_epoch, study, found)
        for method, style in (("dimat", "-"), ("wa", "--")):
            ends = [ends_of(found, method, period) for period in study.periods]
            sent = [
                max(row["bytes_sent"] for row in found if matches(row, method, period)) / 1e6
                for period in study.periods
            ]
            means = [100 * np.mean(list(of.values())) for of in ends]
            by_bytes.plot(sent, means, style, color="black", label=LABELS[method], zorder=1)
            by_bytes.scatter(sent, means, 30, color=COLORS[: len(sent)], zorder=2)
        by_bytes.axhline(alone, color=GREY, label="alone")
        by_bytes.set_xscale("log")
        by_bytes.set_xlabel("megabytes sent by an agent")
        by_epoch.set_xlabel("epochs since the pretraining")
        by_epoch.set_ylabel(f"{partition}: accuracy in %")
        for ax in (by_epoch, by_bytes):
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize="small", title="epochs between merges")
    axes[0, 1].legend(frameon=False, fontsize="small", title="at the end, on all test images")
    return figure


def draw_epochs(axes: Any, study: "Study", rows: Sequence[Row]) -> None:
    """Accuracy after training by epoch: a colour for each period, agents alone in grey."""
    curves = [(m, p, COLORS[i]) for i, p in enumerate(study.periods) for m in ("dimat", "wa")]
    curves.append(("local_only", study.periods[-1], GREY))
    for method, period, color in curves:
        by_epoch: dict[float, list[float]] = {0.0: []}
        for row in rows:
            if matches(row, method, period):
                by_epoch[0.0].append(row["before"])
                if row["phase"] == "train":
                    by_epoch.setdefault(row["epoch"], []).append(row["accuracy"])
        label = f"{period:g}" if method == "dimat" else "alone" if method == "local_only" else None
        x, y = zip(*((e, 100 * np.mean(v)) for e, v in sorted(by_epoch.items())), strict=True)
        axes.plot(x, y, "--" if method == "wa" else "-", color=color, label=label)
