"""The factors as a table: what `experiments.factors` has found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dimat_jax.registry import METHODS
from dimat_jax.report.leads import lead
from dimat_jax.report.tables import EMPTY, Table, megabytes, to_markdown
from experiments.factors import FACTORS, Factor, Study
from experiments.reports.values import ahead

POINTS = {"last_merge": "after the last merge", "trained": "after the training", "end": "the end"}
Rows = Sequence[Mapping[str, Any]]
"""What was measured of a seed: for each factor and method, see `experiments.factors.trials`."""


def report(preset: str, study: Study, found: Mapping[str, Sequence[Rows]]) -> str:
    """The page.

    Args:
      preset: its name.
      study: what was run.
      found: partition → what was measured, of each seed.
    """
    rows = [row for seeds in found.values() for rows in seeds for row in rows]
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    libraries = ", ".join(
        sorted({f"{k} {v}" for row in rows for k, v in row["versions"].items() if v})
    )
    base = study.base
    sections = [
        "# What helps a merge last",
        f"`python -m experiments.factors --preset {preset}`: {base.dataset}, {base.model} × "
        f"{base.width:g}, {base.topology} graph, {base.pretrain_epochs} epochs of pretraining "
        f"apart, then {base.rounds} rounds of a merge and {base.epochs_per_round} epoch, at "
        f"{base.round_rate:g} of the learning rate, and one merge at the end; seeds as counted "
        f"below; accuracy in % at the end on {study.most_tests:,} test images, before it on "
        f"{base.test_examples:,} of them. In the base all agents align once to "
        "agent 0's network; WA never does. One factor at a time is other. Differences are paired "
        "by seed, with a 95% interval of Student's t; those whose interval has no 0 in it are in "
        f"bold. Commit {commits}; {libraries}.",
    ]
    for partition, seeds in found.items():
        options = {**vars(base), **study.partitions[partition]}
        sections += [
            f"## {partition}: {options['agents']} agents of {options['examples_per_agent']} "
            f"images, {len(seeds)} seeds",
            to_markdown(table(seeds)),
        ]
    return "\n\n".join(sections) + "\n"


def table(seeds: Sequence[Rows]) -> Table:
    """Of one partition: accuracy at each point, and differences from the base and from Alone."""
    values: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for number, rows in enumerate(seeds):
        for row in rows:
            values.setdefault((row["factor"], row["method"]), {})[number] = row
    columns = ["factor", "method", *POINTS.values(), "the end, over the base", "over Alone", "MB"]
    body = []
    for factor in FACTORS:
        for method in factor.methods:
            found = values.get((factor.label, method))
            if not found:
                body.append([factor.label, label(method), *["diverged"] * 3, *[EMPTY] * 3])
                continue
            base = values.get(("base", method), {})
            alone = values.get((alike(factor), "local_only"), {})
            sent = float(np.mean([row["bytes_sent"] for row in found.values()]))
            body.append(
                [
                    factor.label,
                    label(method),
                    *(mean_of(found, point) for point in POINTS),
                    difference(found, base) if factor.label != "base" else EMPTY,
                    difference(found, alone) if method != "local_only" else EMPTY,
                    megabytes(sent),
                ]
            )
    return Table("", columns, body)


def alike(factor: Factor) -> str:
    """The factor with the same learning rates with which agents alone were run, else the base."""
    rates = ("round_rate", "round_schedule")
    own = {name: factor.options.get(name) for name in rates}
    same = (f for f in FACTORS if {name: f.options.get(name) for name in rates} == own)
    return next((f.label for f in same if "local_only" in f.methods), "base")


def label(method: str) -> str:
    """What a method is called."""
    return METHODS[method].label if method in METHODS else "aligned, DSGD-N"


def mean_of(found: Mapping[int, Mapping[str, Any]], point: str) -> str:
    """Mean over seeds, in %."""
    values = [row[point] for row in found.values() if row[point] is not None]
    return f"{100 * np.mean(values):.1f}" if values else EMPTY


def difference(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> str:
    """Of the accuracies at the end, in points, with its interval."""
    return ahead(lead(*({seed: row["end"] for seed, row in of.items()} for of in (ours, theirs))))
