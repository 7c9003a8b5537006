"""A run in one dictionary: what was run, with which versions, and who led by how much."""

import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import PRETRAINING, Row, accuracies, last_rows, methods_of

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
LIBRARIES = ("dimat_jax", "dimat_jax_cpu", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def summarize(
    rows: Sequence[Row],
    dataset: str,
    config: Mapping[str, Any],
    all_tests: Mapping[str, Float[np.ndarray, "seeds agents"]],
) -> dict[str, Any]:
    """Sums up a run for ``summary.json``.

    Args:
      rows: all rows, at least one.
      dataset: the display name of the data set actually used.
      config: the configuration as plain values.
      all_tests: for each method the agents' accuracies at the end, on all test images.

    Returns:
      ``dataset``, ``config``, ``versions``, ``commit``. ``pretrained``: ``mean`` and ``std`` of the
      accuracy over all agents of all seeds, 0 to 1. ``accuracy``: for each method the same after
      the ``first_merge`` and at the end, ``final``. ``lead``: by how much the method ``of``, the
      first, is ahead of each other one at these two points: difference of the mean accuracies,
      mean and std over seeds. ``bytes_sent``: by an agent, for each method.
    """
    methods = methods_of(rows)
    milestones = {method: milestones_of(rows, method) for method in methods}
    pretrained = [row for row in rows if row["method"] == PRETRAINING]
    return {
        "dataset": dataset,
        "config": dict(config),
        "versions": versions(),
        "commit": commit(),
        "pretrained": spread(last_by_seed(pretrained)) if pretrained else None,
        "accuracy": {
            method: {name: spread(by_seed) for name, by_seed in found.items()}
            for method, found in milestones.items()
        },
        "all_tests": {
            method: {"mean": float(values.mean()), "std": float(values.std())}
            for method, values in all_tests.items()
        },
        "lead": leads(milestones),
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


def spread(by_seed: Mapping[int, Row]) -> dict[str, float]:
    """Mean and standard deviation of the accuracy over all agents of all seeds."""
    values = accuracies(by_seed)
    return {"mean": float(values.mean()), "std": float(values.std())}


def leads(milestones: Mapping[str, Mapping[str, Mapping[int, Row]]]) -> dict[str, Any] | None:
    """How far the first method is ahead of each other, on the seeds that both have run."""
    if len(milestones) < 2:
        return None
    first, *others = milestones
    over = {
        other: {
            name: lead(milestones[first][name], milestones[other][name])
            for name in ("first_merge", "final")
            if name in milestones[first] and name in milestones[other]
        }
        for other in others
    }
    return {"of": first, "over": over}


def lead(ours: Mapping[int, Row], theirs: Mapping[int, Row]) -> dict[str, float]:
    """The difference of mean accuracies, paired by seed: mean and std over seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[s]["test_accuracy"] - theirs[s]["test_accuracy"] for s in seeds]
    return {"mean": float(np.mean(differences)), "std": float(np.std(differences))}


def headline(summary: Mapping[str, Any]) -> str:
    """Who leads and by how much, a sentence for each other method; empty for a single method."""
    if summary["lead"] is None:
        return ""
    first = summary["lead"]["of"]
    names = {"first_merge": "after the first merge", "final": "at the end"}
    return " ".join(
        f"{first} against {other}: "
        + ", ".join(f"{100 * found[name]['mean']:+.1f} points {names[name]}" for name in found)
        + "."
        for other, found in summary["lead"]["over"].items()
    )


def final_line(summary: Mapping[str, Any]) -> str:
    """Each method's accuracy at the end, on all test images."""
    parts = (
        f"{method} {100 * found['mean']:.1f} ± {100 * found['std']:.1f} %"
        for method, found in summary["all_tests"].items()
    )
    return f"On all test images at the end: {', '.join(parts)}."


def versions() -> dict[str, str | None]:
    """Python's version and those of the libraries that the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


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
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
