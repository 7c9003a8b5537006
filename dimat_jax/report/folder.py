"""The report of a run, written into its folder."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import Row, finite
from dimat_jax.report.figures import accuracy_figure
from dimat_jax.report.summary import summarize
from dimat_jax.report.tables import accuracy_table, cost_table, to_markdown


def write_report(
    folder: pathlib.Path,
    rows: Sequence[Row],
    dataset: str,
    config: Mapping[str, Any],
    all_tests: Mapping[str, Float[np.ndarray, "seeds agents"]],
    subtitle: str = "",
) -> dict[str, Any]:
    """Writes ``summary.json``, ``tables.md`` and ``accuracy.png``.

    Args:
      folder: must exist.
      rows: all rows of the run, at least one.
      dataset: the display name of the data set actually used.
      config: the configuration as plain values.
      all_tests: for each method the agents' accuracies at the end, on all test images.
      subtitle: what was run, under the title of the picture.

    Returns:
      The summary, as `dimat_jax.report.summary.summarize` describes it.
    """
    summary = summarize(rows, dataset, config, all_tests)
    text = json.dumps(finite(summary), indent=2, allow_nan=False, default=str)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    tables = [accuracy_table(rows), cost_table(rows)]
    sections = [f"# {dataset}", *(f"{table.title}\n\n{to_markdown(table)}" for table in tables)]
    (folder / "tables.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    accuracy_figure(rows, dataset, subtitle).savefig(folder / "accuracy.png")
    return summary
