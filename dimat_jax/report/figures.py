"""The picture of a run: accuracy over rounds and over bytes sent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dimat_jax.metrics import Row, Stage, accuracies, last_rows, methods_of, spread
from dimat_jax.report.leads import ALONE
from dimat_jax.report.tables import NO_LABELS

# Okabe & Ito: told apart with any kind of colour vision; line styles and marks tell on paper. Their
# numbers have no common divisor: of 28 methods no two share a colour and a style, a colour and a
# mark, or a style and a mark.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREY = "#8C8C8C"
MADE_UP = "#B00020"
LEGEND_COLUMNS = 5
CRUSHED = 10
"""From so many times as much sent as by another method on, the axis of bytes is logarithmic."""


class Curve(NamedTuple):
    """A method's accuracy over a run, in per cent; of a single agent ``std`` is 0."""

    stages: list[Stage]
    rounds: Float[np.ndarray, " stages"]
    megabytes: Float[np.ndarray, " stages"]
    mean: Float[np.ndarray, " stages"]
    std: Float[np.ndarray, " stages"]


class Look(NamedTuple):
    """How a method is drawn."""

    label: str
    color: str
    style: str = "-"
    marker: str = ""


def looks(methods: Sequence[str], labels: Mapping[str, str] = NO_LABELS) -> dict[str, Look]:
    """How each method is drawn; agents alone, with whom all are compared, in plain grey."""
    numbers = {method: i for i, method in enumerate(m for m in methods if m != ALONE)}
    return {
        method: Look(labels.get(method, method), GREY)
        if method == ALONE
        else Look(
            labels.get(method, method),
            COLORS[numbers[method] % len(COLORS)],
            STYLES[numbers[method] % len(STYLES)],
            MARKERS[numbers[method] % len(MARKERS)],
        )
        for method in methods
    }


def curve(rows: Sequence[Row], method: str) -> Curve:
    """A method's mean and standard deviation over all agents of all seeds, by stage.

    Args:
      rows: of any number of seeds.
      method: its name; the shared pretraining is its first stage.

    Returns:
      The curve; a merge stands half a round before the training that follows it.
    """
    stages = last_rows(rows, method)
    values = [100 * accuracies(by_seed) for by_seed in stages.values()]
    sent = [np.mean([row["bytes_sent"] for row in by_seed.values()]) for by_seed in stages.values()]
    return Curve(
        list(stages),
        np.array([stage.round - 0.5 * (stage.phase == "merge") for stage in stages]),
        np.array(sent, float) / 1e6,
        np.array([v.mean() for v in values]),
        np.array([spread(v) or 0.0 for v in values]),
    )


def accuracy_figure(
    rows: Sequence[Row],
    dataset: str,
    subtitle: str = "",
    made_up: bool = False,
    labels: Mapping[str, str] = NO_LABELS,
) -> Figure:
    """Accuracy over rounds (left) and over megabytes that an agent has sent (right).

    Args:
      rows: of any number of seeds.
      dataset: the display name of the data set actually used.
      subtitle: what was run.
      made_up: whether that is synthetic or a stand-in: the title is set in red.
      labels: what methods are called, by name; those that are absent by their name.

    Returns:
      A figure that belongs to no global state; save it with ``figure.savefig(path)``.
    """
    curves = {method: curve(rows, method) for method in methods_of(rows)}
    lines_below = -(-len(curves) // LEGEND_COLUMNS)
    figure = Figure(figsize=(10, 4.3 + 0.2 * lines_below), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    for method, look in looks(list(curves), labels).items():
        found = curves[method]
        draw(left, found.rounds, found, look)
        if found.megabytes.any():
            draw(right, found.megabytes, found, look)
        else:  # A method that sends nothing has come that far at any number of bytes.
            right.axhline(found.mean[-1], label=look.label, color=look.color, linestyle=look.style)
    left.set_xlabel("round  (open: just after the merge, filled: after training)")
    right.set_xlabel("megabytes sent by an agent")
    left.set_ylabel("test accuracy in % (± std of agents, seeds)")
    left.xaxis.get_major_locator().set_params(integer=True)
    scale_bytes(right, [found.megabytes[-1] for found in curves.values()])
    legend = figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(LEGEND_COLUMNS, len(curves)),
        frameon=False,
        handlelength=3.5,
    )
    red = {"color": MADE_UP} if made_up else {}
    title = "\n".join(filter(None, [dataset, subtitle]))
    heading = figure.suptitle(title, fontweight="bold", **red)
    for text in (heading, *legend.get_texts()):
        text.set_parse_math(False)  # a dollar in a name begins no formula
    return figure


def scale_bytes(axes: Axes, sent: Sequence[float]) -> None:
    """Makes room for methods that send little beside others that send a hundred times as much.

    Linear from 0 to what the one that sends least sends in all, then logarithmic.
    """
    ends = [megabytes for megabytes in sent if megabytes > 0]
    if ends and max(ends) > CRUSHED * min(ends):
        axes.set_xscale("symlog", linthresh=min(ends), linscale=1.5)
        axes.set_xlim(-0.1 * min(ends), 1.5 * max(ends))


def draw(axes: Axes, x: Float[np.ndarray, " stages"], found: Curve, look: Look) -> None:
    """A line with its band of one standard deviation, open marks right after merges."""
    style = {"color": look.color, "linestyle": look.style, "marker": look.marker}
    axes.plot(x, found.mean, label=look.label, markersize=5, **style)
    lower, upper = found.mean - found.std, found.mean + found.std
    axes.fill_between(x, lower, upper, color=look.color, alpha=0.15, linewidth=0)
    merged = np.array([stage.phase == "merge" for stage in found.stages])
    if look.marker:
        open_mark = {"facecolors": "white", "edgecolors": look.color, "marker": look.marker}
        axes.scatter(x[merged], found.mean[merged], 25, zorder=3, **open_mark)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
