"""The page of `experiments.spectral_gap`: its table, rank correlations and picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.report.figures import COLORS, MARKERS
from dimat_jax.report.leads import CONFIDENCE
from dimat_jax.report.tables import EMPTY, Table, to_markdown
from experiments import studies
from experiments.reports.values import rank_correlation

if TYPE_CHECKING:
    from experiments.spectral_gap import Study

Row = Mapping[str, Any]

MEASURES = {
    "gap": "gap of W",
    "eigenvalue": "largest eigenvalue modulus of W",
    "fixed": "fixed space, per unit",
    "cycles": "units that cycles move",
    "neighbors": "effective neighbours",
    "gap_of_graph": "gap of Π",
}
"""What a merge's operator is described by: name → words."""

OUTCOMES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "gain": ("accuracy gained by the merge", lambda row: row["merged"] - row["before"]),
    "merged": ("accuracy after the merge", lambda row: row["merged"]),
    "trained": ("accuracy after the training that follows", lambda row: row["trained"]),
    "ahead": ("the same, less that of agents alone", lambda row: row["trained"] - row["alone"]),
}
RESAMPLES = 2_000
START = ("model", "width", "partition", "seed")
"""What agents trained apart are of: merges on every graph begin from the same."""
SETTING = ("model", "width", "partition", "topology")
PAIRS = (
    ("own frames", "averaging"),
    ("one frame", "averaging"),
    ("own frames", "one frame"),
    ("own frames", "local_only"),
    ("one frame", "local_only"),
    ("averaging", "local_only"),
)


def report(study: "Study", data: str, rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      data: the data set's display name.
      rows: one for each round of each method.
    """
    base, merges = study.base, merges_of(rows)
    aligned = [row for row in merges if row["method"] != "averaging"]
    worst = max(np.finfo(float).eps, *(row["stochasticity_error"] for row in merges))
    return "\n\n".join(
        [
            f"{data}; {base.agents} agents of {base.examples_per_agent} images, "
            f"{base.pretrain_epochs} epochs apart, then {base.rounds} rounds of a merge and an "
            f"epoch; {study.seeds} seeds; units compared on {base.matching_images} images of each "
            f"agent's own; Dirichlet with α = {base.alpha:g}. {studies.provenance(rows)}",
            "## Every setting",
            "Of W = [π_ij P_ij] on a permutation group, and the mean over all hidden units: the "
            "gap, `1 − the largest singular value` outside of the fixed space, in each round; the "
            "largest eigenvalue modulus there; the dimensions of the fixed space for each unit (1: "
            "agents can agree on all); the share of units that alignments move around a cycle of "
            "the graph, and there and back; effective neighbours at a decay of 0.9. Accuracies in "
            "%, means over agents, rounds and seeds. Rows and columns of every W sum to 1 within "
            f"{worst:.0e}.",
            to_markdown(table(rows)),
            "## One beside the other",
            "Accuracies of one less those of the other, in points: means over settings, and in "
            "parentheses the least and the most of a setting's means over seeds.",
            to_markdown(differences("All graphs", rows)),
            to_markdown(
                differences(
                    "Fully connected", [row for row in rows if row["topology"] == "fully_connected"]
                )
            ),
            "## The operator on whole networks",
            "The same of all parameters and statistics at once, in the first seed's last round.",
            to_markdown(table_of_wholes(rows)),
            "## What goes with accuracy",
            f"Spearman's rank correlation over merges, with a {CONFIDENCE:.0%} interval "
            f"(bootstrap: {RESAMPLES:,} draws of networks on a partition with their seeds, whose "
            "merges, on all graphs, start from the same agents and stay together); bold where 0 "
            "lies outside. Accuracy as such goes with the network and the partition, too; what a "
            "merge gains, and what is left over agents alone, do so less.",
            to_markdown(correlations("All merges", merges)),
            to_markdown(correlations("Aligned merges", aligned)),
        ]
    )


def merges_of(rows: Sequence[Row]) -> list[Row]:
    """The rounds with merges, each with the accuracy ``alone`` of agents that had none."""
    names = (*SETTING, "seed", "round")
    alone = {tuple(row[name] for name in names): row["trained"] for row in rows if "gap" not in row}
    return [
        {**row, "alone": alone[tuple(row[name] for name in names)]} for row in rows if "gap" in row
    ]


def groups_of(rows: Sequence[Row], *names: str) -> dict[tuple, list[Row]]:
    """Rows by what they have under these names."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def table(rows: Sequence[Row]) -> Table:
    """A line for each setting and method."""
    columns = ["network", "partition", "graph", "units", "gap of Π", "gap of W by round"]
    columns += ["eigenvalue", "fixed", "cycles", "there and back", "neighbours"]
    columns += ["before", "merged", "trained"]
    body = []
    for key, found in groups_of(rows, *SETTING, "method").items():
        model, width, partition, topology, method = key

        def mean(name: str, digits: int = 2, scale: float = 1, of: Sequence[Row] = found) -> str:
            values = [row[name] for row in of if name in row]
            return f"{scale * np.mean(values):.{digits}f}" if values else EMPTY

        gaps = [
            mean("gap", 3, of=of_round) for _, of_round in sorted(groups_of(found, "round").items())
        ]
        network = f"{model} × {width:g}", partition, topology, label(method)
        measured = mean("eigenvalue"), mean("fixed"), mean("cycles"), mean("there_and_back")
        accuracies = (mean(name, 1, 100) for name in ("before", "merged", "trained"))
        operator = mean("gap_of_graph", 3), " / ".join(gaps), *measured, mean("neighbors", 1)
        body.append([*network, *operator, *accuracies])
    return Table("", columns, body)


def label(method: str) -> str:
    """As tables name it."""
    return "agents alone" if method == "local_only" else method


def differences(title: str, rows: Sequence[Row]) -> Table:
    """Between the methods, right after the first and the last merge and at the end."""
    rounds = max((row["round"] for row in rows), default=0)
    columns = {
        "after the first merge": ("merged", 1),
        "after the last merge": ("merged", rounds),
        "after the training that follows": ("trained", rounds),
    }

    def shown(pair: tuple[str, str], name: str, round: int) -> str:
        found = []
        for of_setting in groups_of(rows, *SETTING).values():
            means = [
                [
                    row[name]
                    for row in of_setting
                    if (row["method"], row["round"]) == (method, round) and name in row
                ]
                for method in pair
            ]
            if all(means):
                found.append(100 * (np.mean(means[0]) - np.mean(means[1])))
        return f"{np.mean(found):+.1f} ({min(found):+.1f} to {max(found):+.1f})" if found else EMPTY

    body = [
        [
            f"{label(one)} over {label(other)}",
            *(shown((one, other), *at) for at in columns.values()),
        ]
        for one, other in PAIRS
    ]
    return Table("", [title, *columns], body)


def table_of_wholes(rows: Sequence[Row]) -> Table:
    """The operator on all parameters, where it was taken apart."""
    body = []
    for row in rows:
        if "whole" not in row:
            continue
        whole, network = row["whole"], f"{row['model']} × {row['width']:g}"
        share = whole["fixed_dimension"] / whole["parameters"]
        values = f"{1 - whole['singular_value']:.3f}", f"{whole['eigenvalue']:.3f}", f"{share:.2f}"
        body.append([network, row["partition"], row["topology"], row["method"], *values])
    columns = ["network", "partition", "graph", "units", "gap", "eigenvalue", "fixed"]
    return Table("", columns, body)


def correlations(title: str, rows: Sequence[Row]) -> Table:
    """Of each measure with each outcome."""
    body = [
        [words, *(shown(rows, name, outcome) for _, outcome in OUTCOMES.values())]
        for name, words in MEASURES.items()
    ]
    return Table("", [title, *(words for words, _ in OUTCOMES.values())], body)


def shown(rows: Sequence[Row], name: str, outcome: Callable[[Row], float]) -> str:
    """A rank correlation and its interval; nothing where one of the two never varies."""
    clusters = [
        np.array([[row[name], outcome(row)] for row in found])
        for found in groups_of(rows, *START).values()
    ]
    both = np.concatenate(clusters)
    if (both == both[0]).all(0).any() or np.ptp(both[:, 0]) < 1e-9:
        return EMPTY
    rng = np.random.default_rng(0)
    draws = rng.integers(len(clusters), size=(RESAMPLES, len(clusters)))
    drawn = [rank_correlation(np.concatenate([clusters[i] for i in draw])) for draw in draws]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    said = f"{rank_correlation(both):+.2f} ({low:+.2f} to {high:+.2f})"
    return f"**{said}**" if low > 0 or high < 0 else said


def picture(rows: Sequence[Row]) -> Figure:
    """What a merge gained against the gap, and against what agents can agree on."""
    figure = Figure(figsize=(10, 4.3), layout="constrained", dpi=120)
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("gap", "fixed"), strict=True):
        for i, ((method,), found) in enumerate(groups_of(merges_of(rows), "method").items()):
            y = [100 * (row["merged"] - row["before"]) for row in found]
            x = [row[name] for row in found]
            style = {"color": COLORS[i], "marker": MARKERS[i], "alpha": 0.6}
            axes.scatter(x, y, 22, label=method, linewidths=0, **style)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xlabel(f"{MEASURES[name]} (mean over hidden units)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy gained by the merge, points")
    figure.axes[0].legend(frameon=False, title="units aligned in")
    figure.suptitle("A dot is one merge of all agents", fontsize="medium")
    return figure
