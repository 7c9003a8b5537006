"""The factors as a table: what `experiments.factors` has found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dimat_jax.registry import METHODS
from dimat_jax.report.leads import lead
from dimat_jax.report.tables import EMPTY, Table, megabytes, to_markdown
from experiments.factors import FACTORS, Study
from experiments.paper_report import ahead

POINTS = {"last_merge": "after the last merge", "trained": "after the training", "end": "the end"}
Stored = Mapping[str, Any]


def report(preset: str, study: Study, found: Mapping[str, Sequence[Stored]]) -> str:
    """The page.

    Args:
      preset: its name.
      study: what was run.
      found: partition → what was measured, a file for each seed.
    """
    files = [stored for seeds in found.values() for stored in seeds]
    commits = ", ".join(sorted({str(stored["commit"]) for stored in files}))
    libraries = ", ".join(f"{k} {v}" for k, v in files[0]["versions"].items() if v)
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


def table(seeds: Sequence[Stored]) -> Table:
    """Of one partition: accuracy at each point, and differences from the base and from Alone."""
    values = {(row["factor"], row["method"]): [] for stored in seeds for row in stored["rows"]}
    for number, stored in enumerate(seeds):
        for row in stored["rows"]:
            values[row["factor"], row["method"]].append((number, row))
    columns = ["factor", "method", *POINTS.values(), "the end, over the base", "over Alone", "MB"]
    body = []
    for factor in FACTORS:
        for method in factor.methods:
            found = dict(values.get((factor.label, method), []))
            if not found:
                body.append([factor.label, label(method), *["diverged"] * 3, *[EMPTY] * 3])
                continue
            base = dict(values.get(("base", method), []))
            alone = dict(values.get((factor.label, "local_only"), [])) or dict(
                values["base", "local_only"]
            )
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
