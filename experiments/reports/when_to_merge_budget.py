"""The budget of `experiments.when_to_merge`: a table for each setting, a sentence, a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import SubFigure

from dimat_jax.metrics import spread
from dimat_jax.report.figures import COLORS, GREY
from dimat_jax.report.leads import Lead, lead
from dimat_jax.report.tables import EMPTY, Table, megabytes
from experiments.reports.values import ahead, sure
from experiments.when_to_merge_spend import ALIGNED, FINAL, PLAIN, spent_by, ways

if TYPE_CHECKING:
    from experiments.when_to_merge import Setting, Study

Row = Mapping[str, Any]
ALONE = "alone, no average"
COLUMNS = [
    "spent",
    "units",
    "agents",
    "merged model",
    "not aligned again",
    "merged model over Alone",
    "aligned − plain: merged model",
    "aligned − plain: agents",
    "distance",
    "modulo permutation",
    "networks",
    "MB",
]


def of_setting(rows: Sequence[Row], setting: "Setting", any_width: bool = False) -> list[Row]:
    """The rows of a setting, or of the same at any width."""
    wanted = setting._asdict()
    if any_width:
        del wanted["width"]
    return [row for row in rows if wanted.items() <= row.items()]


def in_words(setting: "Setting") -> str:
    """The data and the initial weights of a setting."""
    data = {"iid": "IID", "dirichlet": "Dirichlet"}.get(setting.partition, setting.partition)
    return f"{data}, {setting.init} initial weights"


def gain(rows: Sequence[Row], way: str, name: str = "merged") -> Lead | None:
    """By how much more alignment has than none, in one way to spend messages."""
    return lead(spent_by(rows, way, ALIGNED, name), spent_by(rows, way, PLAIN, name))


def alone(rows: Sequence[Row]) -> dict[int, float]:
    """Seed → accuracy of agents who never merge: those of the final average only, before it."""
    return spent_by(rows, FINAL, PLAIN, "own")


def percent(values: Mapping[int, float]) -> str:
    """Mean ± standard deviation over seeds, of shares in %; a dash for none."""
    if not values:
        return EMPTY
    shares = 100 * np.array(list(values.values()))
    std = spread(shares)
    return f"{shares.mean():.1f}" + ("" if std is None else f" ± {std:.1f}")


def mean(values: Mapping[int, float], digits: int = 1) -> str:
    """Mean over seeds; a dash for none."""
    return f"{np.mean(list(values.values())):.{digits}f}" if values else EMPTY


def budget_table(study: "Study", rows: Sequence[Row]) -> Table:
    """Agents alone, and then a line for each way to spend messages, plain and aligned.

    Args:
      study: what was run.
      rows: of one setting.
    """
    first = [ALONE, EMPTY, percent(alone(rows)), *[EMPTY] * 5]
    distances = (
        mean(spent_by(rows, FINAL, PLAIN, name)) for name in ("distance", "distance_aligned")
    )
    body = [[*first, *distances, "0", "0"]]
    for way in ways(study.budget, True):
        for units in (PLAIN, ALIGNED):

            def of(name: str, way: str = way, units: str = units) -> dict[int, float]:
                return spent_by(rows, way, units, name)

            gains = [ahead(gain(rows, way, name)) for name in ("merged", "own")]
            body.append(
                [
                    way,
                    units,
                    percent(of("own")),
                    percent(of("merged")),
                    percent(of("merged_before")) if units == ALIGNED else EMPTY,
                    ahead(lead(of("merged"), alone(rows))),
                    *(gains if units == ALIGNED else [EMPTY] * 2),
                    mean(of("distance")),
                    mean(of("distance_aligned")),
                    mean(of("networks")),
                    megabytes(float(np.mean(list(of("bytes_sent").values() or [0.0])))),
                ]
            )
    return Table("", COLUMNS, body)


def verdict(setting: "Setting", rows: Sequence[Row]) -> str:
    """In which ways to spend messages alignment is surely better, or worse, in a sentence."""
    leads = {way: gain(rows, way) for way in dict.fromkeys(row["spent"] for row in rows)}
    better = [way for way, found in leads.items() if found and sure(found) and found.mean > 0]
    worse = [way for way, found in leads.items() if found and sure(found) and found.mean < 0]
    said = [f"surely better with {'; '.join(better)}" if better else "in no way surely better"]
    said += [f"surely worse with {'; '.join(worse)}"] if worse else []
    return f"{in_words(setting)}: the merged model of aligned agents is {', and '.join(said)}."


def draw_budget(figure: SubFigure, study: "Study", rows: Sequence[Row]) -> None:
    """Accuracy of the merged model, and of the agents before it, by the way to spend messages."""
    figure.suptitle("A budget of messages: accuracy by how it is spent", fontsize="medium")
    named = ways(study.budget, True)
    x = np.arange(len(named))
    all_axes = figure.subplots(1, len(study.settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(all_axes, study.settings, strict=True):
        found = of_setting(rows, setting)
        for i, units in enumerate((PLAIN, ALIGNED)):
            for name, style in (("merged", "o"), ("own", "_")):
                values = [list(spent_by(found, way, units, name).values()) for way in named]
                means = [100 * np.mean(v) if v else np.nan for v in values]
                label = f"merged model, {units}" if name == "merged" else f"agents, {units}"
                axes.plot(x + 0.2 * i - 0.1, means, style, color=COLORS[i], label=label, ms=8)
                dots = [(a, 100 * b) for a, v in zip(x, values, strict=True) for b in v]
                if name == "merged" and dots:
                    across, up = np.array(dots).T
                    axes.scatter(across + 0.2 * i - 0.1, up, 6, color=COLORS[i], alpha=0.5)
        by_itself = list(alone(found).values())
        if by_itself:
            axes.axhline(100 * np.mean(by_itself), color=GREY, linewidth=1, label="agents alone")
        axes.set_title(in_words(setting), fontsize="small")
        axes.set_xticks(x, [n.replace(FINAL, "final only") for n in named], rotation=50, ha="right")
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("test accuracy, %")
    all_axes[-1].legend(frameon=False, fontsize="x-small")
