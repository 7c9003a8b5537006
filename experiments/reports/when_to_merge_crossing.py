"""The crossing of `experiments.when_to_merge`: its tables, rank correlations and picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import SubFigure

from dimat_jax.report.figures import COLORS, GREY, STYLES
from dimat_jax.report.leads import CONFIDENCE, Lead, lead
from dimat_jax.report.tables import EMPTY, Table
from experiments.reports.values import ahead, rank_correlation, sure
from experiments.reports.when_to_merge_budget import Row, mean, percent
from experiments.when_to_merge_crossing import ALONE
from experiments.when_to_merge_spend import ALIGNED, PLAIN

OUTCOMES = {"after": "agents, after the merge", "merged": "mean of all networks, after the round"}
MEASURES = {
    "distance": "distance from consensus",
    "distance_aligned": "distance modulo permutation",
    "norm": "length of the parameters",
    "disagreement": "disagreement of predictions",
    "train_loss": "training loss",
    "accuracy": "accuracy before the merge",
}
"""What is measured before a merge: name → words."""
RESAMPLES = 1_000


def values(rows: Sequence[Row], epochs: int, units: str, round: int, name: str) -> dict[int, float]:
    """Seed → an entry after so many epochs of pretraining; of those seeds that have it."""
    where = epochs, units, round
    chosen = [r for r in rows if (r["epochs"], r["units"], r["round"]) == where]
    return {r["seed"]: r[name] for r in chosen if r.get(name) is not None}


def epochs_of(rows: Sequence[Row]) -> list[int]:
    """The lengths of pretraining."""
    return sorted({row["epochs"] for row in rows})


def rounds_of(rows: Sequence[Row]) -> list[int]:
    """The measured rounds."""
    return sorted({row["round"] for row in rows})


def overtaken(aligned: Mapping[int, float], plain: Mapping[int, float]) -> int | None:
    """The first round from which on plain averaging is at least level, to the last one.

    Args:
      aligned: measured round → accuracy.
      plain: likewise.

    Returns:
      None if alignment is ahead in the last round that both have.
    """
    found = None
    for round in sorted(aligned.keys() & plain.keys(), reverse=True):
        if plain[round] < aligned[round]:
            break
        found = round
    return found


def plain_leads(rows: Sequence[Row], epochs: int, name: str) -> dict[int, Lead]:
    """Measured round → plain averaging's lead over alignment."""
    found = {
        round: lead(*(values(rows, epochs, units, round, name) for units in (PLAIN, ALIGNED)))
        for round in rounds_of(rows)
    }
    return {round: of_round for round, of_round in found.items() if of_round is not None}


def crossing_table(rows: Sequence[Row]) -> Table:
    """Where plain averaging overtakes, for each length of pretraining and each outcome."""
    columns = ["epochs apart", "accuracy of", "level from round", "of each seed"]
    columns += ["surely ahead in round", "plain − aligned in the first round", "in the last round"]
    body = []
    for epochs in epochs_of(rows):
        for name, words in OUTCOMES.items():
            leads = plain_leads(rows, epochs, name)
            if not leads:
                continue
            means = {round: found.mean for round, found in leads.items()}
            each = [crossing_of_seed(rows, epochs, seed, name) for seed in seeds_of(rows)]
            surely = [r for r, found in leads.items() if sure(found) and found.mean > 0]
            ends = [ahead(leads[of(leads)]) for of in (min, max)]
            level = shown(overtaken(dict.fromkeys(means, 0.0), means))
            told = ", ".join(map(shown, each)), shown(min(surely, default=None))
            body.append([str(epochs), words, level, *told, *ends])
    return Table("", columns, body)


def seeds_of(rows: Sequence[Row]) -> list[int]:
    """The seeds."""
    return sorted({row["seed"] for row in rows})


def crossing_of_seed(rows: Sequence[Row], epochs: int, seed: int, name: str) -> int | None:
    """Where plain averaging overtakes in one seed, see `overtaken`."""
    of = [
        {r: values(rows, epochs, units, r, name).get(seed) for r in rounds_of(rows)}
        for units in (ALIGNED, PLAIN)
    ]
    return overtaken(*({r: x for r, x in found.items() if x is not None} for found in of))


def shown(round: int | None) -> str:
    """A round, or that there is none."""
    return "never" if round is None else str(round)


def shown_rounds(rows: Sequence[Row]) -> list[int]:
    """A few of the measured rounds: the first two, the middle and the last."""
    rounds = rounds_of(rows)
    return sorted({*rounds[:2], rounds[len(rounds) // 2], rounds[-1]})


def stages_table(rows: Sequence[Row]) -> Table:
    """What agents are like before and after some of the merges; means over seeds."""
    columns = ["epochs apart", "merge", "units", "accuracy", "distance", "modulo permutation"]
    columns += ["length", "training loss", "disagreement", "after the merge"]
    columns += ["mean of all networks"]
    body = []
    for epochs in epochs_of(rows):
        for round in shown_rounds(rows):
            for units in (ALIGNED, PLAIN, ALONE):

                def of(name: str, epochs=epochs, units=units, round=round) -> dict[int, float]:
                    return values(rows, epochs, units, round, name)

                lengths = ("distance", "distance_aligned", "norm")
                measured = percent(of("accuracy")), *(mean(of(name), 2) for name in lengths)
                after = EMPTY if units == ALONE else percent(of("after"))
                learned = mean(of("train_loss"), 3), percent(of("disagreement"))
                outcome = after, percent(of("merged"))
                body.append([str(epochs), str(round), units, *measured, *learned, *outcome])
    return Table("", columns, body)


def differences(rows: Sequence[Row], name: str, outcome: str) -> list[np.ndarray]:
    """Plain less aligned, of a measure and of an outcome: ``[rounds, 2]`` for each run."""
    by: dict[tuple[int, int], dict[tuple[int, str], Row]] = {}
    for row in rows:
        by.setdefault((row["epochs"], row["seed"]), {})[row["round"], row["units"]] = row
    found = []
    for of_run in by.values():
        pairs = []
        for round in rounds_of(rows):
            both = of_run.get((round, PLAIN)), of_run.get((round, ALIGNED))
            if None in both or any(r.get(n) is None for r in both if r for n in (name, outcome)):
                continue
            plain, aligned = both
            assert plain is not None and aligned is not None
            pairs.append([plain[n] - aligned[n] for n in (name, outcome)])
        if pairs:
            found.append(np.array(pairs))
    return found


def reasons_table(rows: Sequence[Row]) -> Table:
    """Rank correlations of plain averaging's lead with its lead in what is measured before."""
    body = [
        [words, *(correlation(differences(rows, name, outcome)) for outcome in OUTCOMES)]
        for name, words in MEASURES.items()
    ]
    return Table("", ["plain − aligned", *OUTCOMES.values()], body)


def correlation(runs: Sequence[np.ndarray]) -> str:
    """Spearman's over all runs, and its interval; runs are drawn whole."""
    if not runs:
        return EMPTY
    whole = rank_correlation(np.concatenate(runs))
    if not np.isfinite(whole):
        return EMPTY
    draws = np.random.default_rng(0).integers(len(runs), size=(RESAMPLES, len(runs)))
    drawn = [rank_correlation(np.concatenate([runs[i] for i in draw])) for draw in draws]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    said = f"{whole:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"**{said}**" if low > 0 or high < 0 else said


def draw_crossing(figure: SubFigure, rows: Sequence[Row]) -> None:
    """Accuracy and what is measured before merges over rounds, by the length of pretraining."""
    figure.suptitle("Many rounds, after so many epochs apart; mean over seeds", fontsize="medium")
    lines = {"after": "agents after the merge, %", "distance": "distance before it"}
    lines |= {"disagreement": "disagreement before it, %", "train_loss": "training loss before it"}
    epochs = epochs_of(rows)
    grid = figure.subplots(len(lines), len(epochs), sharex=True, sharey="row", squeeze=False)
    looks: dict[str, Any] = {PLAIN: COLORS[0], ALIGNED: COLORS[1], ALONE: GREY}
    for line, (name, words) in zip(grid, lines.items(), strict=True):
        for axes, length in zip(line, epochs, strict=True):
            for units, color in looks.items():
                draw_line(axes, rows, (length, units, name), color)
                if name == "distance":
                    draw_line(axes, rows, (length, units, "distance_aligned"), color, STYLES[1])
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if name == "distance":
                axes.set_yscale("log")
        line[0].set_ylabel(words, fontsize="small")
    for axes, length in zip(grid[0], epochs, strict=True):
        axes.set_title(f"{length} epochs", fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("merge", fontsize="small")
    grid[0, 0].legend(frameon=False, fontsize="x-small")
    grid[1, 0].plot([], [], STYLES[1], color="black", label="modulo permutation")
    grid[1, 0].legend(frameon=False, fontsize="x-small")


def draw_line(
    axes: Any, rows: Sequence[Row], what: tuple[int, str, str], color: str, style: str = "-"
) -> None:
    """One measure over the rounds.

    Args:
      axes: on which it is drawn.
      rows: of the crossing.
      what: epochs of pretraining, units, and the name of the measure.
      color: of the line.
      style: of the line.
    """
    epochs, units, name = what
    by_round = {r: list(values(rows, epochs, units, r, name).values()) for r in rounds_of(rows)}
    by_round = {r: np.array(found) for r, found in by_round.items() if found}
    if not by_round:
        return
    scale = 100 if name in ("after", "disagreement") else 1
    label = units if style == "-" else None
    x, means = list(by_round), [scale * found.mean() for found in by_round.values()]
    axes.plot(x, means, style, color=color, label=label, linewidth=1.2)
    if style == "-":
        low, high = ([scale * f(v) for v in by_round.values()] for f in (np.min, np.max))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
