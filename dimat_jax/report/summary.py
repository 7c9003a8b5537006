"""A run in one dictionary: what was run, with which versions, and who led by how much."""

import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import (
    ACCURACY,
    LOSS,
    PRETRAINING,
    Row,
    last_rows,
    measure_of,
    methods_of,
    spread,
    values_of,
)
from dimat_jax.report.leads import POINTS, comparisons
from dimat_jax.report.tables import NO_LABELS, mean_and_spread, points_ahead

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
MEASURES = {measure.name: measure for measure in (ACCURACY, LOSS)}
LIBRARIES = ("dimat_jax", "dimat_jax_cpu", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def summarize(
    rows: Sequence[Row],
    dataset: str,
    config: Mapping[str, Any],
    all_tests: Mapping[str, Mapping[int, Float[np.ndarray, " agents"]]],
    labels: Mapping[str, str] = NO_LABELS,
    stopped: str | None = None,
) -> dict[str, Any]:
    """Sums up a run for ``summary.json``.

    Args:
      rows: all rows that there are.
      dataset: the display name of the data set actually used.
      config: the configuration as plain values.
      all_tests: for each method and seed the agents' accuracies at the end, on all test images.
      labels: what methods are called, by name.
      stopped: why and where the run ended before its end; None: it did not.

    Returns:
      ``dataset``, ``complete``, ``stopped``, ``config``, ``versions``, ``commit``, ``labels``.
      ``measure``: accuracy, or loss. ``pretrained``: its ``mean`` and ``std`` (of the sample; None
      of a single value) over all agents of all seeds, accuracies from 0 to 1. ``accuracy``, or
      ``loss``: for each method the same after the ``first_merge`` and at the end, ``final``.
      ``leads``: what `dimat_jax.report.leads.comparisons` finds, agents alone first.
      ``bytes_sent``: by an agent, for each method.
    """
    milestones = {method: milestones_of(rows, method) for method in methods_of(rows)}
    pretrained = [row for row in rows if row["method"] == PRETRAINING]
    measure = measure_of(rows) if rows else ACCURACY
    return {
        "dataset": dataset,
        "complete": stopped is None,
        "stopped": stopped,
        "config": dict(config),
        "versions": versions(),
        "commit": commit(),
        "labels": dict(labels),
        "measure": measure.name,
        "pretrained": mean_and_std(values_of(last_by_seed(pretrained), measure))
        if pretrained
        else None,
        measure.name: {
            method: {name: mean_and_std(values_of(rows, measure)) for name, rows in found.items()}
            for method, found in milestones.items()
        },
        "all_tests": {
            method: mean_and_std(np.concatenate(list(by_seed.values())))
            for method, by_seed in all_tests.items()
        },
        "leads": [
            {"of": found.of, "over": found.over}
            | {name: lead._asdict() for name, lead in found.points.items()}
            for found in comparisons(rows, all_tests)
        ],
        "bytes_sent": {
            method: float(np.mean([row["bytes_sent"] for row in found["final"].values()]))
            for method, found in milestones.items()
        },
    }


def last_by_seed(rows: Sequence[Row]) -> dict[int, Row]:
    """The last row of each seed."""
    return {row["seed"]: row for row in rows}


def milestones_of(rows: Sequence[Row], method: str) -> dict[str, dict[int, Row]]:
    """A method's rows by seed after its first merge (if it merged) and at its end."""
    stages = last_rows(rows, method)
    merges = [by_seed for stage, by_seed in stages.items() if stage.phase == "merge"]
    own = [row for row in rows if row["method"] == method]
    final = {"final": last_by_seed(own)}
    return {"first_merge": merges[0], **final} if merges else final


def mean_and_std(values: Float[np.ndarray, " values"]) -> dict[str, float | None]:
    """Mean and spread."""
    return {"mean": float(values.mean()), "std": spread(values)}


def headline(summary: Mapping[str, Any]) -> str:
    """Who leads and by how much, a line for each pair of methods; empty for a single method."""
    return "\n".join(filter(None, (lead_line(x, summary) for x in summary["leads"])))


def lead_line(found: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """By how much one method is ahead of another; empty where they cannot be compared."""
    labels, measure = summary["labels"], MEASURES[summary["measure"]]
    leads = {name: found[name] for name in ("first_merge", "final") if name in found}
    if not leads:
        return ""
    seeds = max(lead["seeds"] for lead in leads.values())
    of, over = (labels.get(found[role], found[role]) for role in ("of", "over"))
    said = [
        f"{points_ahead(**lead, measure=measure)} {measure.unit} {POINTS[name]}"
        for name, lead in leads.items()
    ]
    shown = "of one seed" if seeds == 1 else f"95% intervals over {seeds} seeds"
    return f"{of} against {over}: {', '.join(said)}; {shown}."


def final_line(summary: Mapping[str, Any]) -> str:
    """What each method comes to on all test examples; empty where none has ended."""
    measure = MEASURES[summary["measure"]]
    parts = (
        f"{summary['labels'].get(method, method)} "
        f"{mean_and_spread(**found, measure=measure)}{measure.sign}"
        for method, found in summary["all_tests"].items()
    )
    said = ", ".join(parts)
    return f"On all test examples at the end: {said}." if said else ""


def versions() -> dict[str, str | None]:
    """Python's version and those of the libraries that the numbers depend on.

    None of one that is not there, or not used: kernels that are switched off.
    """
    # Here, so that benchmarks answer --help without JAX.
    from dimat_jax.execution.kernels import switched_on

    found = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    return found if switched_on() else found | {"dimat_jax_cpu": None}


def version(library: str) -> str | None:
    """The installed version; None for a package that runs from its folder, not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the checkout that this package runs from, with ``+`` if it was changed.

    None where the package is installed without a repository of its own, or there is no git.
    """
    top = git("rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != PACKAGE.parent:
        return None
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", PACKAGE.name)
    return head + "+" * bool(changed) if head else None


def git(*arguments: str) -> str | None:
    """The output of a git command in the package's parent folder; None if it fails."""
    # Without locks: who is ended while it looks must leave none in somebody's repository.
    command = ["git", "--no-optional-locks", "-C", str(PACKAGE.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
