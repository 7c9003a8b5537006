"""The merge alone, as agents and units grow, against what the arithmetic allows.

    python -m benchmarks.merge --rows agents_64 agents_256 fully_connected_64

The limit is counted, not fitted: the operations of the forward passes and correlations at the
machine's matrix product, the bytes that mixing has to move at its copy, and the assignments at what
SciPy takes for one. All are measured in the same run, in turn with the merge, each in a process of
its own. The merge is that of a run: activations of 512 images per agent are matched with those of
each neighbour, hidden units assigned, permuted and averaged, BatchNorm statistics recomputed. With
``--method wa`` networks are averaged as they are: mixing alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import limits, report
from benchmarks.harness import apart, contestants, figure, interleave, spread
from benchmarks.work import Work

UNITS = {f"units_{n}": ("one_peer_exponential", Work("mlp", n / 256)) for n in (64, 128, 512)}
ROWS: dict[str, tuple[str, Work]] = {
    **{f"agents_{n}": ("one_peer_exponential", Work("mlp", agents=n)) for n in (4, 16, 64, 256)},
    "fully_connected_64": ("fully_connected", Work("mlp", agents=64)),
    **UNITS,
    "resnet20": ("ring", Work("resnet20")),
}
PARTS = ("match", "assign", "mix", "statistics")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rows: tuple[str, ...] = ()
    """Rows of the table: agents_4 to agents_256 (mlp of 256 units, one-peer exponential graph),
    fully_connected_64, units_64 to units_512 (16 agents), resnet20 (16 agents on a ring);
    none: all."""
    repetitions: int = 5
    """How often each is measured, after one time to warm up."""
    images: int = 512
    """Images of an agent, on which units are matched and statistics recomputed."""
    method: Literal["dimat", "wa"] = "dimat"
    """What merges: DIMAT, or plain averaging."""
    backend: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; None: what JAX finds."""
    out: pathlib.Path | None = None
    """Folder in which merge.json and merge.md are left."""


def main() -> None:
    """Runs the command."""
    options = report.parse(Options, __doc__)
    measured = {}
    for name, (topology, work) in report.chosen(options.rows, ROWS).items():
        work = dataclasses.replace(work, batch=options.images, steps=1, backend=options.backend)
        measured[name] = measure(topology, work, options.repetitions, options.method)
        report.progress(f"{name}: {summary(measured[name])}")
    report.publish("merge", options, [table(measured), parts(measured)], measured)


def measure(topology: str, work: Work, repetitions: int, method: str) -> dict[str, Any]:
    """Measures one row.

    Returns:
      Seconds by part, one dict a repetition; what had to be done, counted; its limit in seconds by
      part; how many bytes the process grew by, and those of all agents' networks.
    """
    demand = apart(count, topology, work)
    if method == "wa":
        demand |= {"match_operations": 0.0, "assignments": {}}
    bounds = {name: (make, work.backend) for name, make in limits.makers(work.backend).items()}
    makers = {
        "ours": (merge_block, work, topology, method),
        "assignments": (assignment_block, demand["assignments"]),
    }
    with contestants(makers | bounds) as blocks:
        found = interleave(blocks, repetitions)
    reached = {name: [r.value._asdict() for r in found[name]] for name in bounds}
    product, copy = report.best(reached, "product"), report.best(reached, "copy")
    limit = {
        "match": demand["match_operations"] / product,
        "assign": spread([reading.value for reading in found["assignments"]]).median,
        "mix": demand["mix_bytes"] / copy,
        "statistics": demand["statistics_operations"] / product,
    }
    return {
        "work": dataclasses.asdict(work),
        "topology": topology,
        "seconds": [reading.value["seconds"] for reading in found["ours"]],
        "demand": demand,
        "limit": limit,
        "limits": reached,
        "peak_bytes": found["ours"][-1].peak_bytes,
        "grown_bytes": found["ours"][-1].peak_bytes - found["ours"][-1].value["before"],
    }


def merge_block(work: Work, topology: str, method: str) -> Callable[[], dict[str, Any]]:
    """Merges of a run of ours: seconds by part, and the bytes held before there were agents."""
    from benchmarks import ours

    ours.start(work)
    return ours.merges(work, topology, method)


def assignment_block(assignments: dict[int, int]) -> Callable[[], float]:
    """Seconds that SciPy takes for so many assignments of each size, by its time for a few."""
    import time

    import numpy as np
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    few = 5
    pairs = {n: rng.standard_normal((few, 2, 512, n)) for n in assignments}
    tables = {n: [a.T @ b for a, b in pair] for n, pair in pairs.items()}

    def block() -> float:
        total = 0.0
        for units, times in assignments.items():
            start = time.perf_counter()
            for one in tables[units]:
                linear_sum_assignment(one, maximize=True)
            total += times * (time.perf_counter() - start) / few
        return total

    return block


def count(topology: str, work: Work) -> dict[str, Any]:
    """What a merge has to do, see `benchmarks.ours.count_merge`."""
    from benchmarks import ours

    # The CPU's is the only backend that counts operations before it compiles.
    work = dataclasses.replace(work, backend="cpu")
    ours.start(work)
    return ours.count_merge(work, topology)


def table(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Seconds of a merge, its limit, and memory."""
    lines = []
    for name, row in measured.items():
        seconds = spread([sum(one.values()) for one in row["seconds"]])
        limit, networks = sum(row["limit"].values()), row["demand"]["network_bytes"]
        networks *= row["work"]["agents"]
        cells = str(seconds), figure(limit), f"{limit / seconds.median:.0%}"
        memory = figure(row["peak_bytes"] / 1e6), figure(row["grown_bytes"] / networks)
        lines.append([name, *cells, *memory])
    title = (
        "One merge: seconds, median (least to most); the limit that arithmetic sets, and how much "
        "of the time it explains; peak of memory, and how many times all agents' parameters the "
        f"process grew by. {report.limit_sentence(row['limits'] for row in measured.values())}"
    )
    columns = ["row", "seconds", "limit, s", "limit / measured", "peak MB", "grown / parameters"]
    return report.Table(title, columns, lines)


def parts(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Seconds by part and, after a slash, the limit of each."""
    lines = []
    for name, row in measured.items():
        found = [spread([one.get(part, 0.0) for one in row["seconds"]]).median for part in PARTS]
        pairs = zip(found, [row["limit"][part] for part in PARTS], strict=True)
        lines.append([name, *(f"{figure(a)} / {figure(b)}" for a, b in pairs)])
    return report.Table("Seconds by part / limit", ["row", *PARTS], lines)


def summary(row: dict[str, Any]) -> str:
    """One line on a row as soon as it is measured."""
    seconds = spread([sum(one.values()) for one in row["seconds"]]).median
    return f"{figure(seconds)} s, limit {figure(sum(row['limit'].values()))} s"


if __name__ == "__main__":
    report.run(main)
