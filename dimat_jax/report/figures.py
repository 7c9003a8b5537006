"""The picture of a run: accuracy over rounds and over bytes sent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dimat_jax.metrics import Row, Stage, accuracies, last_rows, methods_of
from dimat_jax.report.tables import NO_LABELS

# Okabe & Ito: told apart with any kind of colour vision; line styles tell on paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
MADE_UP = "#B00020"


class Curve(NamedTuple):
    """A method's accuracy over a run, in per cent."""

    stages: list[Stage]
    rounds: Float[np.ndarray, " stages"]
    megabytes: Float[np.ndarray, " stages"]
    mean: Float[np.ndarray, " stages"]
    std: Float[np.ndarray, " stages"]


class Look(NamedTuple):
    """How a method is drawn."""

    label: str
    color: str
    style: str


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
        np.array([v.std() for v in values]),
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
    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, method in enumerate(methods_of(rows)):
        found = curve(rows, method)
        look = Look(
            labels.get(method, method), COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
        )
        draw(left, found.rounds, found, look)
        draw(right, found.megabytes, found, look)
    left.set_xlabel("round  (open: just after the merge, filled: after training)")
    right.set_xlabel("megabytes sent by an agent")
    left.set_ylabel("test accuracy in % (± std over agents, seeds)")
    left.legend(frameon=False)
    left.xaxis.get_major_locator().set_params(integer=True)
    red = {"color": MADE_UP} if made_up else {}
    figure.suptitle("\n".join(filter(None, [dataset, subtitle])), fontweight="bold", **red)
    return figure


def draw(axes: Axes, x: Float[np.ndarray, " stages"], found: Curve, look: Look) -> None:
    """A line with its band of one standard deviation, open marks right after merges."""
    axes.plot(x, found.mean, label=look.label, color=look.color, linestyle=look.style)
    lower, upper = found.mean - found.std, found.mean + found.std
    axes.fill_between(x, lower, upper, color=look.color, alpha=0.15, linewidth=0)
    merged = np.array([stage.phase == "merge" for stage in found.stages])
    for chosen, face in ((merged, "white"), (~merged, look.color)):
        axes.scatter(x[chosen], found.mean[chosen], 22, face, edgecolors=look.color, zorder=3)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
