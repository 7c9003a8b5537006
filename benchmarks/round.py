"""A whole round of DIMAT: merge, evaluate, train an epoch, evaluate; against the published way.

    python -m benchmarks.round --rows ring_5 fully_connected_5

Ours is a run's own round on ResNet-20, its merge in full: matching on 512 images, statistics from
1,024 an agent. The opponent makes the passes of the published code in PyTorch: on a ring of five
agents with 10,000 images in all, 350,000 forward passes of an image for one merge. Both are in
processes of their own and run in turn. Two ratios: what either takes for its round; and at the same
number of passes, as if ours, at its own speed, had to make those of the published code.

Training, evaluation and the published passes are measured over a share of their images and
multiplied by how many there are; --share 1 measures all of them, which takes many minutes.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import report
from benchmarks.harness import contestants, figure, interleave, ratios, spread
from benchmarks.opponents.passes import passes_of
from benchmarks.work import Work

ROWS = {
    f"{topology}_{agents}": (topology, agents)
    for topology in ("ring", "fully_connected")
    for agents in (5, 16)
}
MATCHING, STATISTICS, MEASURED_TESTS = 512, 1024, 250


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rows: tuple[str, ...] = ()
    """Rows of the table: ring_5, ring_16, fully_connected_5, fully_connected_16; none: all."""
    repetitions: int = 3
    """How often each is measured, after one time to warm up."""
    examples: int = 2000
    """Training images of an agent."""
    tests: int = 1000
    """Test images of each evaluation."""
    share: float = 0.05
    """Share of the images of training and of the published passes that are measured."""
    batch: int = 100
    """Images in a training batch."""
    backend: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; None: what JAX finds."""
    out: pathlib.Path | None = None
    """Folder in which round.json and round.md are left."""


def main() -> None:
    """Runs the command."""
    options = report.parse(Options, __doc__)
    if not 0 < options.share <= 1:
        raise ValueError(f"share must be more than 0 and at most 1, not {options.share}.")
    measured = {}
    for name, (topology, agents) in report.chosen(options.rows, ROWS).items():
        measured[name] = measure(topology, agents, options)
        report.progress(f"{name}: {summary(measured[name])}")
    report.publish("round", options, [table(measured), parts(measured)], measured)


def measure(topology: str, agents: int, options: Options) -> dict[str, Any]:
    """Measures one row.

    Returns:
      Seconds by part of one round, one dict a repetition, of ours, of the published way, and of
      ours at the same number of passes.
    """
    steps = max(1, options.examples // options.batch)
    work = Work(agents=agents, batch=options.batch, steps=steps, backend=options.backend)
    makers = {
        "ours": (ours_block, work, topology, options),
        "published": (published_block, work, topology, options),
    }
    with contestants(makers) as blocks:
        found = interleave(blocks, options.repetitions)
    seconds = {name: [reading.value for reading in readings] for name, readings in found.items()}
    same = [at_the_same_passes(one, work, topology) for one in seconds["ours"]]
    return {
        "work": dataclasses.asdict(work),
        "topology": topology,
        "seconds": {**seconds, "ours, same passes": same},
        "peak_bytes": {name: readings[-1].peak_bytes for name, readings in found.items()},
    }


def ours_block(work: Work, topology: str, options: Options) -> Callable[[], dict[str, float]]:
    """A round as a run of ours goes through it; training is scaled up from a share of its steps."""
    from benchmarks import ours

    ours.start(work)
    return ours.rounds(work, topology, options.share, options.tests, MEASURED_TESTS)


def published_block(work: Work, topology: str, options: Options) -> Callable[[], dict[str, float]]:
    """A round with the passes of the published code, scaled up from a share of them."""
    from benchmarks.opponents import published

    return published.round_block(work, topology, options.share, options.tests, MEASURED_TESTS)


def at_the_same_passes(seconds: dict[str, float], work: Work, topology: str) -> dict[str, float]:
    """What ours would take if, at its own speed, it made as many passes as the published code."""
    passes, examples = passes_of(topology, work.agents), work.steps * work.batch
    networks = 3 if topology == "ring" else 2
    made = work.agents * networks * min(MATCHING, examples)
    matched = passes.groups * passes.networks * work.images / made
    counted = passes.resets * work.images / (work.agents * min(STATISTICS, examples))
    scales = {"match": matched, "statistics": counted}
    return {part: scales.get(part, 1.0) * value for part, value in seconds.items()}


def totals(row: dict[str, Any], contestant: str, merge: bool = False) -> list[float]:
    """Seconds of a whole round, or of its merge alone, one per repetition."""
    left_out = ("train", "evaluate") if merge else ()
    return [
        sum(value for part, value in one.items() if part not in left_out)
        for one in row["seconds"][contestant]
    ]


def table(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Seconds of a round, and how many times as long the published way takes."""
    lines = []
    for name, row in measured.items():
        ours, published = totals(row, "ours"), totals(row, "published")
        same = ratios(totals(row, "ours, same passes"), published)
        merges = ratios(totals(row, "ours", True), totals(row, "published", True))
        cells = spread(ours), spread(published), ratios(ours, published), same, merges
        lines.append([name, *map(str, cells)])
    title = (
        "A whole round (merge, evaluate, train an epoch, evaluate) of ResNet-20: seconds, and how "
        "many times as long the published way takes; median (least to most) of paired repetitions."
    )
    columns = ["row", "ours, s", "published, s", "ratio", "same passes", "merge alone"]
    return report.Table(title, columns, lines)


def parts(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Seconds by part, medians."""
    names = ("match", "assign", "mix", "statistics", "train", "evaluate")
    lines = [
        [
            f"{row}, {who}",
            *(figure(spread([one.get(n, 0.0) for one in found]).median) for n in names),
        ]
        for row, result in measured.items()
        for who, found in result["seconds"].items()
    ]
    return report.Table("Seconds of a round by part, medians", ["row", *names], lines)


def summary(row: dict[str, Any]) -> str:
    """One line on a row as soon as it is measured."""
    found = {name: spread(totals(row, name)).median for name in ("ours", "published")}
    return ", ".join(f"{name} {figure(value)} s" for name, value in found.items())


if __name__ == "__main__":
    report.run(main)
