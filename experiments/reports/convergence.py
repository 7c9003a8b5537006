"""The page of `experiments.convergence`: fitted exponents, the table, and its picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dimat_jax.report.figures import COLORS, MARKERS
from dimat_jax.report.leads import CONFIDENCE
from dimat_jax.report.tables import Table, to_markdown
from experiments import studies
from experiments.convergence import INPUTS, LABEL_NOISE, METHODS, UNITS

if TYPE_CHECKING:
    from experiments.convergence import Study

Row = Mapping[str, Any]


class Fit(NamedTuple):
    """An exponent, and the interval of Student's t in which it lies."""

    exponent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.exponent:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def report(study: "Study", rows: Sequence[Row]) -> str:
    """What stands below the picture.

    Args:
      study: what was run.
      rows: one for each method of each cell.
    """
    return "\n\n".join(
        [
            f"The mean of {UNITS} tanh units of {INPUTS} inputs of norm 1 against labels of another"
            f" such committee with noise of ± {LABEL_NOISE:g} (synthetic); smoothness at most 1; "
            f"exponential graph, one example a step, none seen twice but by chance, equal initial "
            f"weights, rate √(N/K); DIMAT aligns and merges every {study.every} steps, each agent "
            f"in its own frame; {study.seeds} seeds. {studies.provenance(rows)}",
            "## Exponents",
            "Of the least squares fit log G = a + b log N + c log K to all runs, a for each seed, "
            f"G the mean over a run of ‖∇f(x̄)‖², with {CONFIDENCE:.0%} intervals. Theory: −0.50 "
            "for both.",
            to_markdown(exponents(rows)),
            "## The mean squared norm of the gradient",
            to_markdown(table(rows)),
        ]
    )


def fits(rows: Sequence[Row], name: str = "gradient") -> tuple[Fit, Fit]:
    """The exponents of N and of K, each seed with a level of its own."""
    from scipy.stats import t

    logs = np.log([[row["agents"], row["steps"], row[name]] for row in rows])
    seeds = np.array([row["seed"] for row in rows])
    design = np.column_stack([logs[:, :2], seeds[:, None] == np.unique(seeds)])
    found, *_ = np.linalg.lstsq(design, logs[:, 2])
    free = len(logs) - design.shape[1]
    variance = np.square(logs[:, 2] - design @ found).sum() / free
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    half = t.ppf((1 + CONFIDENCE) / 2, free) * errors
    return Fit(*interval(found[0], half[0])), Fit(*interval(found[1], half[1]))


def interval(value: float, half: float) -> tuple[float, float, float]:
    """A value and its bounds."""
    return float(value), float(value - half), float(value + half)


def exponents(rows: Sequence[Row]) -> Table:
    """Of each method, over the run and of its last gradient."""
    body = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        body.append([method, *map(str, fits(own)), *map(str, fits(own, "last"))])
    columns = ["method", "N", "K", "N, last gradient", "K, last gradient"]
    return Table("", columns, body)


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds: a line for each number of agents, a column for each method and K."""
    agents = sorted({row["agents"] for row in rows})
    steps = sorted({row["steps"] for row in rows})
    columns = ["agents", *(f"{method}, K = {k:,}" for method in METHODS for k in steps)]
    body = [
        [str(n), *(f"{mean(rows, m, n, k):.2e}" for m in METHODS for k in steps)] for n in agents
    ]
    return Table("", columns, body)


def mean(rows: Sequence[Row], method: str, agents: int, steps: int) -> float:
    """Over seeds."""
    key = method, agents, steps
    found = [r["gradient"] for r in rows if (r["method"], r["agents"], r["steps"]) == key]
    return float(np.mean(found))


def picture(rows: Sequence[Row]) -> Figure:
    """The gradient against NK, and the line that theory has."""
    figure = Figure(figsize=(6, 4.3), layout="constrained", dpi=120)
    axes = figure.subplots()
    for i, method in enumerate(METHODS):
        own = [row for row in rows if row["method"] == method]
        products = [row["agents"] * row["steps"] for row in own]
        style = {"color": COLORS[i], "marker": MARKERS[i], "alpha": 0.6}
        axes.scatter(products, [row["gradient"] for row in own], 24, label=method, **style)
    ends = np.array([min(products), max(products)], float)
    level = np.exp(
        np.mean([np.log(r["gradient"] * (r["agents"] * r["steps"]) ** 0.5) for r in rows])
    )
    axes.plot(ends, level / ends**0.5, "--", color="grey", label="1/√(NK)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("agents × steps, NK")
    axes.set_ylabel("mean of ‖∇f(x̄)‖² over the run")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
