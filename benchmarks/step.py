"""Training step of all agents: images per second, against PyTorch and against plain JAX.

    python -m benchmarks.step --rows centre agents_8 agents_64

Each row changes one thing about the centre: resnet20 of width 1, 16 agents, batches of 32. Ours
and each opponent, every one in a process of its own, train the same number of images in turn.
Opponents: torch, one agent after the other in PyTorch, channels-last, fused optimizer;
torch_compiled, the same through torch.compile; xla, ours without dimat_jax_cpu; independent, a
jitted JAX step of one agent, called for each; vmap, scan, unrolled and matmul, all agents in one
plain JAX program.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import limits, report
from benchmarks.harness import (
    Spread,
    apart,
    contestants,
    figure,
    interleave,
    ratios,
    select_backend,
    spread,
    timed,
)
from benchmarks.work import Work

CENTRE = Work()
MLP, CONVNET = (dataclasses.replace(CENTRE, model=model) for model in ("mlp", "convnet"))
ROWS: dict[str, Work] = {
    "centre": CENTRE,
    "mlp": MLP,
    "convnet": CONVNET,
    "vgg16": dataclasses.replace(CENTRE, model="vgg16", width=0.25),
    "width_2": dataclasses.replace(CENTRE, width=2.0),
    "width_4": dataclasses.replace(CENTRE, width=4.0),
    **{f"agents_{n}": dataclasses.replace(CENTRE, agents=n) for n in (1, 2, 4, 8, 32, 64)},
    "batch_100": dataclasses.replace(CENTRE, batch=100),
    "mlp_batch_50": dataclasses.replace(MLP, batch=50),
    "convnet_batch_50": dataclasses.replace(CONVNET, batch=50),
}
QUICK = ("centre", "mlp_batch_50", "convnet_batch_50", "agents_8", "agents_64")
MORE_IMAGES = {"mlp": 32, "convnet": 4}
"""Models so fast that they train so many times as many images for a block of about equal length."""

Opponent = Literal[
    "torch", "torch_compiled", "xla", "independent", "vmap", "scan", "unrolled", "matmul"
]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    rows: tuple[str, ...] = ()
    """Rows of the table, by name; none: all of them (centre, mlp, convnet, vgg16, width_2, width_4,
    agents_1 to agents_64, batch_100, mlp_batch_50, convnet_batch_50)."""
    opponents: tuple[Opponent, ...] = ("torch", "xla", "independent", "vmap")
    """Whom ours is measured against."""
    repetitions: int = 5
    """How often each is measured, after one time to warm up."""
    images: int = 1024
    """Images in one measured block, all agents together, but at least one step of each (convnet
    takes 4 times as many, mlp 32 times)."""
    limit: float = 20.0
    """An opponent whose block takes more than so many seconds is measured only once."""
    quick: bool = False
    """Only five rows, three repetitions and half the images."""
    backend: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; None: what JAX finds."""
    out: pathlib.Path | None = None
    """Folder in which step.json and step.md are left."""


def main() -> None:
    """Runs the command."""
    options = report.parse(Options, __doc__)
    if options.quick:
        rows = options.rows or QUICK
        options = dataclasses.replace(options, rows=rows, repetitions=3, images=options.images // 2)
    measured = {}
    for name, work in report.chosen(options.rows, ROWS).items():
        steps = max(
            1, MORE_IMAGES.get(work.model, 1) * options.images // (work.agents * work.batch)
        )
        work = dataclasses.replace(work, steps=steps, backend=options.backend)
        measured[name] = measure(work, options)
        report.progress(f"{name}: {ours_and_theirs(measured[name])}")
    report.publish("step", options, [table(measured), contestants_table(measured)], measured)


def measure(work: Work, options: Options) -> dict[str, Any]:
    """Measures one row: every contestant in a process of its own, all in turn.

    Returns:
      The work, operations per image, and for each contestant its images per second, one per
      repetition, and its peak of memory; for each library what it reached of the machine's limits.
    """
    makers = {"ours": (ours_block, work)}
    makers |= {name: (opponent_block, work, name) for name in options.opponents}
    bounds = {name: (make, work.backend) for name, make in limits.makers(work.backend).items()}
    with contestants(makers | bounds) as blocks:
        found = interleave(blocks, options.repetitions, options.limit)
    return {
        "work": dataclasses.asdict(work),
        "operations_an_image": apart(step_operations, work),
        "images_per_second": {k: [work.images / r.value for r in found[k]] for k in makers},
        "peak_bytes": {k: found[k][-1].peak_bytes for k in makers},
        "limits": {k: [r.value._asdict() for r in found[k]] for k in bounds},
    }


def ours_block(work: Work) -> Callable[[], float]:
    """Seconds of an epoch of all agents, as a run of ours trains them."""
    from benchmarks import ours

    ours.start(work)
    return timed(ours.epochs(ours.make_population(work)))


def opponent_block(work: Work, name: str) -> Callable[[], float]:
    """Seconds of an epoch of all agents, as an opponent trains them."""
    if name.startswith("torch"):
        from benchmarks.opponents import torch_loop

        return timed(torch_loop.epochs(work, compiled=name == "torch_compiled"))
    if name == "xla":
        from dimat_jax.execution.kernels import SWITCH

        os.environ[SWITCH] = "0"
        return ours_block(work)
    select_backend(work.backend)
    from benchmarks.opponents import jax_plain

    return timed(jax_plain.epochs(work, name))


def step_operations(work: Work) -> float:
    """Operations of one image's gradient."""
    select_backend("cpu")  # the only backend that counts them before it compiles
    from benchmarks import ours

    return ours.step_operations(work)


def table(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Images per second of ours, the fraction of the machine's product, and the ratios."""
    opponents = list(dict.fromkeys(k for row in measured.values() for k in speeds(row)))[1:]
    columns = ["row", "ours, images/s", "of the limit", "peak MB"]
    columns += [f"against {name}" for name in opponents]
    lines = []
    for name, row in measured.items():
        own = spread(row["images_per_second"]["ours"])
        cells = [str(ratio(row, opponent)) for opponent in opponents]
        peak = figure(row["peak_bytes"]["ours"] / 1e6)
        lines.append([name, str(own), f"{share_of_limit(row):.0%}", peak, *cells])
    limit = report.limit_sentence(row["limits"] for row in measured.values())
    title = (
        "Training step of all agents: images per second, and how many times as fast as each "
        f"opponent, median (least to most) of paired repetitions. {limit}"
    )
    return report.Table(title, columns, lines)


def contestants_table(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Images per second of every contestant, and its fraction of the machine's product."""
    names = list(dict.fromkeys(name for row in measured.values() for name in speeds(row)))
    lines = []
    for row, result in measured.items():
        medians = {name: spread(values).median for name, values in speeds(result).items()}
        cells = {k: f"{figure(v)} ({share_of_limit(result, k):.0%})" for k, v in medians.items()}
        lines.append([row, *(cells.get(name, "-") for name in names)])
    title = "Images per second, medians, and the share of the matrix product that they reach"
    return report.Table(title, ["row", *names], lines)


def speeds(row: dict[str, Any]) -> dict[str, list[float]]:
    """Contestant → images per second, one per repetition; ours first."""
    return row["images_per_second"]


def ratio(row: dict[str, Any], opponent: str) -> Spread:
    """How many times as fast as an opponent ours is, repetition by repetition."""
    return ratios(*([1 / s for s in speeds(row)[name]] for name in ("ours", opponent)))


def share_of_limit(row: dict[str, Any], name: str = "ours") -> float:
    """Operations per second of a contestant, over those of the machine's best matrix product."""
    best = report.best(row["limits"], "product")
    return row["operations_an_image"] * spread(speeds(row)[name]).median / best


def ours_and_theirs(row: dict[str, Any]) -> str:
    """One line on a row as soon as it is measured."""
    names = [f"{name} {figure(spread(values).median)}" for name, values in speeds(row).items()]
    return ", ".join(names) + " images/s"


if __name__ == "__main__":
    report.run(main)
