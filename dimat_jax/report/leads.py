"""Who is ahead of whom: differences of mean accuracies, paired by seed, and how sure they are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import PRETRAINING, Row, Stage, last_rows, measure_of, methods_of, spread

ALONE = "local_only"
"""Agents that train by themselves: what is not ahead of them has not earned its bytes."""

CONFIDENCE = 0.95

POINTS = {
    "first_merge": "after the first merge",
    "last_merge": "after the last merge",
    "final": "at the end",
    "all_tests": "at the end, on all tests",
}
"""At which methods are compared: name → words."""


class Lead(NamedTuple):
    """By how much one method's mean accuracy is higher at one point, or its mean loss lower.

    Attributes:
      mean: over the seeds that both have run.
      interval: of Student's t, in which the mean of all seeds that there could be lies with a
        probability of `CONFIDENCE`; None of one seed, which says nothing of others.
      seeds: how many there are.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int


class Comparison(NamedTuple):
    """By how much one method is ahead of another.

    Attributes:
      of: the one.
      over: the other.
      points: name of `POINTS` → lead, where the two can be compared.
    """

    of: str
    over: str
    points: dict[str, Lead]


def comparisons(
    rows: Sequence[Row],
    all_tests: Mapping[str, Mapping[int, Float[np.ndarray, " agents"]]],
) -> list[Comparison]:
    """Compares each method with agents alone, and then the first one with each of the others.

    Args:
      rows: of any number of seeds.
      all_tests: for each method and seed the agents' accuracies at the end, on all test images.
    """
    methods = [name for name in methods_of(rows) if name != PRETRAINING]
    others = [name for name in methods if name != ALONE]
    pairs = [(name, ALONE) for name in others if ALONE in methods]
    pairs += [(others[0], name) for name in others[1:]]
    return [Comparison(a, b, points_of(rows, all_tests, a, b)) for a, b in pairs]


def points_of(
    rows: Sequence[Row],
    all_tests: Mapping[str, Mapping[int, Float[np.ndarray, " agents"]]],
    of: str,
    over: str,
) -> dict[str, Lead]:
    """The leads of one method over another, at each point that both have reached."""
    measure = measure_of(rows)
    name = f"test_{measure.name}"
    stages = [last_rows(rows, method) for method in (of, over)]
    merges = sorted({stage for found in stages for stage in found if stage.phase == "merge"})
    ours, theirs = (last_of_each_seed(rows, method) for method in (of, over))
    # What a run that was interrupted has not trained to its end is not compared with what is.
    ended = [s for s in ours.keys() & theirs.keys() if ours[s]["epoch"] == theirs[s]["epoch"]]
    means = {
        "first_merge": [means_of(at(found, merges[0]), name) for found in stages if merges],
        "last_merge": [means_of(at(found, merges[-1]), name) for found in stages if merges],
        "final": [means_of({s: found[s] for s in ended}, name) for found in (ours, theirs)],
        "all_tests": [
            {seed: float(values.mean()) for seed, values in all_tests.get(method, {}).items()}
            for method in (of, over)
        ],
    }
    # Of losses the lower one is ahead.
    paired = {p: both if measure.better > 0 else both[::-1] for p, both in means.items() if both}
    leads = {point: lead(*both) for point, both in paired.items()}
    return {point: found for point, found in leads.items() if found is not None}


def at(stages: Mapping[Stage, Mapping[int, Row]], merge: Stage) -> Mapping[int, Row]:
    """A method's rows by seed after a merge; of one that does not merge then, those before it."""
    before = Stage(merge.round - 1, "train" if merge.round > 1 else "pretrain")
    return stages.get(merge) or stages.get(before, {})


def last_of_each_seed(rows: Sequence[Row], method: str) -> dict[int, Row]:
    """A method's last row of each seed."""
    return {row["seed"]: row for row in rows if row["method"] == method}


def means_of(by_seed: Mapping[int, Row], name: str) -> dict[int, float]:
    """An entry of each seed's row: a mean over agents."""
    return {seed: cast(dict[str, float], row)[name] for seed, row in by_seed.items()}


def lead(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Lead | None:
    """The difference of mean accuracies, paired by seed; None where there is no seed of both."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    mean, std, number = float(differences.mean()), spread(differences), len(seeds)
    if std is None:
        return Lead(mean, None, number)
    # The quantile of Student's t: `scipy.stats.t` has it, too, and takes a second to import. Here,
    # so that progress, which needs no intervals, is shown at once.
    from scipy.special import stdtrit

    half = float(stdtrit(number - 1, (1 + CONFIDENCE) / 2)) * std / number**0.5
    return Lead(mean, (mean - half, mean + half), number)
