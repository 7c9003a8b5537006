"""What `experiments.techniques` has found, as Markdown and CSV."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dimat_jax.report.summary import commit, versions
from dimat_jax.report.tables import Table, to_markdown
from experiments.reports.values import mean_std

TABLE_FILE, CSV_FILE = "techniques.md", "techniques.csv"
CORRECTIONS = ("none", "RESET", "REPAIR")
Row = dict[str, Any]

PUBLISHED = {
    "mlp": "MLP of 6 layers of 128 on MNIST: 71.7 → 83.0",
    "vgg11": "VGG11 67.3 → 84.9 (end points 89.6)",
    "resnet20 × 1,": "ResNet-20 12.5 → 67.0",
    "resnet20 × 4,": "ResNet-20 of width 4 11.7 → 90.3",
}
"""Figures of REPAIR (arXiv 2211.08403), CIFAR-10 but for the MLP, by the start of our label."""


def write_report(folder: pathlib.Path, rows: Sequence[Row], dataset: str, command: str) -> str:
    """Writes the table in both forms; returns the Markdown."""
    text = report(rows, dataset, command)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE_FILE).write_text(text + "\n", encoding="utf-8")
    with (folder / CSV_FILE).open("w", newline="", encoding="utf-8") as file:
        flat = [row | barriers(row) for row in rows]
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    return text


def barriers(row: Row) -> dict[str, float]:
    """How much worse than between the ends it is at worst on the way from one to the other.

    The largest drop of accuracy below, and rise of loss above, the straight line between the end
    points (Frankle et al. 2020, arXiv 1912.05671; with the linear form of Entezari et al. 2022).
    """
    share = np.linspace(0, 1, len(row["losses"]))

    def above(values: Sequence[float]) -> float:
        line = (1 - share) * values[0] + share * values[-1]
        return float(np.max(np.asarray(values) - line))

    drop = above([-value for value in row["accuracies"]])
    return {"accuracy_barrier": drop, "loss_barrier": above(row["losses"])}


def report(rows: Sequence[Row], dataset: str, command: str) -> str:
    """The Markdown: what was done, and a table for each network."""
    seeds = sorted({row["seed"] for row in rows})
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    sections = [
        "# Merging techniques",
        f"Data: {dataset}. Seeds: {', '.join(map(str, seeds))}; mean ± standard deviation (n − 1) "
        "over them (of one seed, differences of a few points say nothing). Commit "
        f"{commit()}; {used}.",
        f"```\npython -m experiments.techniques {command}\n```",
        f"Test accuracy in % on {rows[0]['tests']:,} test examples right after merging, by what is "
        "done to the merged network: nothing (BatchNorm statistics averaged with the rest), RESET "
        "(BatchNorm statistics recomputed), REPAIR (RESET, and each unit's mean and deviation set "
        "to the average of its parents'); its loss with nothing done. Barriers are the largest "
        "drop of accuracy, in points, and rise of loss between the first two aligned networks, "
        "without correction and with REPAIR.",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        ends = mean_std([100 * row["ends_accuracy"] for row in of_network if first(row)])
        loss = mean_std([row["ends_loss"] for row in of_network if first(row)], 2)
        sections += [
            f"## {network}",
            f"{of_network[0]['training']}. The networks themselves: {ends}, loss {loss}.",
        ]
        sections.append(to_markdown(table(network, of_network)))
        if len(of_network[0].get("losses_of_first", ())) > 2:
            sections += [
                "Loss of the mean of so many of them, with nothing done to it:",
                to_markdown(table_of_first(network, of_network)),
            ]
        figures = [text for start, text in PUBLISHED.items() if network.startswith(start)]
        sections += [
            "Midpoint of the first two networks after activation matching, before → after REPAIR: "
            f"{' → '.join(midpoint(of_network, c) for c in ('none', 'REPAIR'))} "
            f"(end points {ends}). Published (arXiv 2211.08403): {text}."
            for text in figures
        ]
    return "\n\n".join(sections)


def midpoint(rows: Sequence[Row], correction: str) -> str:
    """Accuracy in % half way between the first two networks, by activation matching."""
    chosen = ("activation matching", correction)
    found = [r["accuracies"] for r in rows if (r["technique"], r["correction"]) == chosen]
    return mean_std([100 * accuracies[len(accuracies) // 2] for accuracies in found])


def first(row: Row) -> bool:
    """Whether it is its seed's first row."""
    return row["technique"] == "averaging" and row["correction"] == "none"


def table(network: str, rows: Sequence[Row]) -> Table:
    """One network's techniques."""
    columns = [
        "technique",
        *CORRECTIONS,
        "loss",
        "accuracy barrier",
        "REPAIR's",
        "loss barrier",
        "REPAIR's",
    ]
    body = []
    for technique in dict.fromkeys(row["technique"] for row in rows):
        by = {
            c: [r for r in rows if (r["technique"], r["correction"]) == (technique, c)]
            for c in CORRECTIONS
        }
        accuracies = [mean_std([100 * row["accuracy"] for row in by[c]]) for c in CORRECTIONS]
        drops, rises = (
            [
                mean_std([scale * barriers(row)[name] for row in by[c]], digits)
                for c in ("none", "REPAIR")
            ]
            for name, scale, digits in (("accuracy_barrier", 100, 1), ("loss_barrier", 1, 2))
        )
        loss = mean_std([row["loss"] for row in by["none"]], 2)
        body.append([technique, *accuracies, loss, *drops, *rises])
    return Table(network, columns, body)


def table_of_first(network: str, rows: Sequence[Row]) -> Table:
    """One network's losses of the mean of the first 1, 2, 4, 8 ... networks."""
    most = len(rows[0]["losses_of_first"])
    numbers = [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
    body = []
    for technique in dict.fromkeys(row["technique"] for row in rows):
        found = [r for r in rows if (r["technique"], r["correction"]) == (technique, "none")]
        losses = ([row["losses_of_first"][n - 1] for row in found] for n in numbers)
        body.append([technique, *(mean_std(values, 2) for values in losses)])
    return Table(network, ["technique", *map(str, numbers)], body)
