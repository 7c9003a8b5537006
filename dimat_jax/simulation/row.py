"""The entries of a row of metrics that are measured of all agents."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dimat_jax.training.evaluation import Score, Tests


def metric_entries(
    measured: Mapping[str, Any], merged: Mapping[str, Any] | None, missing: bool = False
) -> dict[str, Any]:
    """The entries of a row for each metric: of the agents, and of the mean of their networks.

    Args:
      measured: metric → value of each agent.
      merged: metric → value of their mean; None: it was not asked for.
      missing: whether NaN stands for agents that are not there, and not counted.
    """
    row: dict[str, Any] = {}
    for name, values in measured.items():
        known = values[~np.isnan(values)] if missing else values
        row[f"test_{name}"] = float(known.mean()) if len(known) else None
        row[f"test_{name}_std"] = float(known.std(ddof=1)) if len(known) > 1 else 0.0
        row[f"test_{name}_agents"] = values.tolist()
        row[f"merged_{name}"] = None if merged is None else float(merged[name])
    return row


def class_entries(classes: int | None, tests: Tests, score: Score) -> dict[str, Any]:
    """The entry of a row for the accuracy of each agent on each class, if there are classes."""
    if classes is None:
        return {}
    labels = tests.examples["labels"][tests.weights > 0]
    of_class = np.bincount(labels, minlength=classes)
    by_class = np.round(score.classes / np.maximum(of_class, 1), 4)
    return {"test_accuracy_classes": by_class.tolist()}
