"""The page of `experiments.scaling_agents`: where merging stops working, its tables and picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.report.figures import COLORS, MARKERS
from dimat_jax.report.leads import CONFIDENCE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table, to_markdown
from experiments import studies
from experiments.reports.values import ahead, sure
from experiments.scaling_agents import (
    AT_ONCE,
    CORRECTIONS,
    EACH,
    RUNNING,
    TOTAL,
    Setting,
    images_of,
    seeds_of,
)

if TYPE_CHECKING:
    from experiments.scaling_agents import Study

Row = Mapping[str, Any]
VERDICTS = "ahead", "level", "behind"
"""Of agents alone: where the interval of the difference lies above 0, holds it, lies below."""
HALF = "keeps half"
CHANCE = 0.1
"""Accuracy of a guess; of ten classes."""


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: of all cells.
    """
    base = study.base
    texts = [
        f"{data}; {base.model} × {base.width:g}, each agent trained apart from initial weights of "
        f"its own for {base.pretrain_epochs} epochs ({base.optimizer}, {base.schedule}, batches of "
        f"{base.batch_size}); {of_seeds(study)}. All agents are then averaged once. Units are "
        f"compared on up to {base.matching_images} images of each agent's own; REPAIR takes "
        f"{base.statistics_images} images of all agents together, on which variances are measured, "
        f"too. One universe for up to {study.most_universe} agents: it is found on the host, one "
        f"network after the other, and takes too long for more. {studies.provenance(rows)}",
        "## Where merging stops working",
        "The merged network against its own parents, as they are alone: ahead, level or behind by "
        f"the {CONFIDENCE:.0%} interval of the difference in accuracy, paired by seed; by numbers "
        "of agents. Keeps half: those at which it has at least half of what its parents have above "
        f"chance ({CHANCE:.0%}).",
        to_markdown(verdicts(rows)),
    ]
    for way in (TOTAL, EACH):
        images = f"{study.total:,} of all agents" if way == TOTAL else f"{study.each:,} of each"
        texts += [
            f"## Images {way}: {images}",
            "Test accuracies in %, means over seeds; loss barrier: the merged network's loss above "
            "the mean of its parents' (below 0 where these are surer of what is wrong); variance "
            "kept: of the hidden units of each layer, the merged network's over its parents' in "
            "the mean, with nothing corrected.",
            to_markdown(table(study, way, rows)),
        ]
    texts += [
        "## Does the order matter?",
        f"As many random orders as agents, images {EACH}, units compared on the same images of all "
        "agents: each network aligned to the average of those before it, or all to the first one. "
        "Mean over orders, standard deviation over orders, and the best less the worst, means over "
        f"seeds; how far “{RUNNING}” is ahead, paired by seed.",
        to_markdown(table_of_orders(rows)),
    ]
    return "\n\n".join(texts)


def of_seeds(study: "Study") -> str:
    """How many seeds there are, in words."""
    if study.seeds == study.seeds_of_many or max(study.agents) <= study.many:
        return f"{study.seeds} seeds"
    return f"{study.seeds} seeds of up to {study.many} agents, {study.seeds_of_many} of more"


# Merged networks ----------------------------------------------------------------------------------


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The techniques, in their order."""
    return list(dict.fromkeys(row["method"] for row in rows if row["kind"] == "merged"))


def by_seed(rows: Sequence[Row], name: str, **wanted: Any) -> dict[int, float]:
    """Seed → a value of the rows that have what is wanted."""
    return {
        row["seed"]: row[name]
        for row in rows
        if all(row.get(key) == value for key, value in wanted.items())
    }


def over_alone(
    rows: Sequence[Row], setting: Setting, method: str, correction: str, name: str = "accuracy"
) -> Lead | None:
    """By how much a merged network is ahead of the mean of its parents; of losses: above it."""
    merged = {"kind": "merged", "method": method, "correction": correction}
    ours = by_seed(rows, name, **merged, **setting._asdict())
    return lead(ours, by_seed(rows, name, kind="alone", **setting._asdict()))


def verdict(found: Lead) -> str:
    """One of `VERDICTS`; of one seed, which has no interval, always level."""
    if not sure(found):
        return "level"
    return "ahead" if found.mean > 0 else "behind"


def keeps_half(rows: Sequence[Row], setting: Setting, method: str, correction: str) -> bool:
    """Whether a merged network has half of what its parents have above chance, in the mean."""
    merged = {"kind": "merged", "method": method, "correction": correction}
    ours = mean_of(by_seed(rows, "accuracy", **merged, **setting._asdict()))
    theirs = mean_of(by_seed(rows, "accuracy", kind="alone", **setting._asdict()))
    return ours - CHANCE >= 0.5 * (theirs - CHANCE)


def verdicts(rows: Sequence[Row]) -> Table:
    """For each method and correction the numbers of agents with each verdict."""
    body = []
    numbers = sorted({row["agents"] for row in rows})
    for data in (TOTAL, EACH):
        for method in methods_of(rows):
            for correction in CORRECTIONS:
                said: dict[str, list[int]] = {name: [] for name in (*VERDICTS, HALF)}
                for agents in numbers:
                    way = Setting(agents, data), method, correction
                    found = over_alone(rows, *way)
                    if found is None:
                        continue
                    said[verdict(found)].append(agents)
                    if keeps_half(rows, *way):
                        said[HALF].append(agents)
                cells = [", ".join(map(str, values)) or EMPTY for values in said.values()]
                body.append([data, method, correction, *cells])
    return Table("", ["images", "method", "correction", *VERDICTS, HALF], body)


def table(study: "Study", data: str, rows: Sequence[Row]) -> Table:
    """A line for each number of agents and method."""
    columns = ["agents", "images of each", "seeds", "alone", "method", "merged", "over alone"]
    columns += ["with REPAIR", "over alone", "loss barrier", "with REPAIR"]
    columns += ["variance kept by layer"]
    body = []
    for agents in study.agents:
        setting = Setting(agents, data)
        alone = by_seed(rows, "accuracy", kind="alone", **setting._asdict())
        names = f"{agents}", f"{images_of(study, setting):,}", f"{seeds_of(study, setting)}"
        for method in methods_of(rows):
            line = line_of(rows, setting, method)
            if line:
                body.append([*names, f"{100 * mean_of(alone):.1f}", method, *line])
    return Table("", columns, body)


def line_of(rows: Sequence[Row], setting: Setting, method: str) -> list[str]:
    """What a line says of a method; nothing where it was not tried."""
    accuracies, barriers = [], []
    for correction in CORRECTIONS:
        wanted = {"kind": "merged", "method": method, "correction": correction}
        merged = by_seed(rows, "accuracy", **wanted, **setting._asdict())
        if not merged:
            return []
        higher = over_alone(rows, setting, method, correction, "loss")
        accuracies += [
            f"{100 * mean_of(merged):.1f}",
            ahead(over_alone(rows, setting, method, correction)),
        ]
        barriers.append(EMPTY if higher is None else f"{higher.mean:+.2f}")
    kept = variance_kept(rows, setting, method, "none")
    return [*accuracies, *barriers, " / ".join(f"{share:.2f}" for share in kept)]


def variance_kept(
    rows: Sequence[Row], setting: Setting, method: str, correction: str
) -> np.ndarray:
    """Of each layer, in the mean over seeds."""
    wanted = {"kind": "merged", "method": method, "correction": correction}
    found: Any = by_seed(rows, "variance", **wanted, **setting._asdict())
    return np.mean(list(found.values()), axis=0) if found else np.array([])


def mean_of(values: Mapping[int, float]) -> float:
    """Over seeds."""
    return float(np.mean(list(values.values())))


# The order of merging -----------------------------------------------------------------------------


def table_of_orders(rows: Sequence[Row]) -> Table:
    """A line for each number of agents, method, correction and way."""
    ordered = [row for row in rows if row["kind"] == "order"]
    names = "agents", "method", "correction"
    body = []
    for key in sorted({tuple(row[name] for name in names) for row in ordered}):
        agents, method, correction = key
        wanted = {"agents": agents, "method": method, "correction": correction}
        means = {}
        for way in (RUNNING, AT_ONCE):
            found = by_seed(ordered, "accuracies", **wanted, way=way)
            means[way] = {seed: float(np.mean(values)) for seed, values in found.items()}
            spreads = [float(np.std(values, ddof=1)) for values in found.values()]
            ranges = [float(np.ptp(values)) for values in found.values()]
            measured = mean_of(means[way]), np.mean(spreads), np.mean(ranges)
            cells = [f"{100 * value:.1f}" for value in measured]
            body.append([f"{agents}", method, correction, way, *cells, EMPTY])
        body[-2][-1] = ahead(lead(means[RUNNING], means[AT_ONCE]))
    columns = ["agents", "method", "correction", "way", "accuracy", "std over orders"]
    return Table("", [*columns, "best − worst", f"over “{AT_ONCE}”"], body)


# The picture --------------------------------------------------------------------------------------


def picture(rows: Sequence[Row]) -> Figure:
    """What merging gains, the loss barrier and the variance kept, by the number of agents."""
    figure = Figure(figsize=(11, 6.4), layout="constrained", dpi=120)
    grid = figure.subplots(2, 3, sharex=True)
    for line, data in zip(grid, (TOTAL, EACH), strict=True):
        for number, method in enumerate(methods_of(rows)):
            for correction, style in zip(CORRECTIONS, ("-", "--"), strict=True):
                look = {"color": COLORS[number], "linestyle": style, "marker": MARKERS[number]}
                label = method if correction == "none" else f"{method}, {correction}"
                for axes, (x, y) in zip(line, curves(rows, data, method, correction), strict=True):
                    axes.plot(x, y, label=label, markersize=4, **look)
        line[0].set_ylabel(f"images {data}")
    titles = "accuracy over agents alone, points", "loss barrier", "variance kept, last layer"
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="medium")
    for axes in grid.flat:
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("agents")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def curves(
    rows: Sequence[Row], data: str, method: str, correction: str
) -> list[tuple[list[int], list[float]]]:
    """Numbers of agents with what is drawn over them: accuracy gained, barrier, variance kept."""
    found = []
    for agents in sorted({row["agents"] for row in rows}):
        setting = Setting(agents, data)
        gained = over_alone(rows, setting, method, correction)
        higher = over_alone(rows, setting, method, correction, "loss")
        if gained is not None and higher is not None:
            kept = variance_kept(rows, setting, method, correction)
            found.append((agents, 100 * gained.mean, higher.mean, kept[-1]))
    numbers = [each[0] for each in found]
    return [(numbers, [each[i] for each in found]) for i in (1, 2, 3)]
