"""Start-up: imports, --help, time to the first step, compilation of the main job, peak memory.

    python -m benchmarks.startup --agents 16

Everything starts in a new process each time. The main job is the default run (a convnet on a ring,
dimat and wa) with little data; its compilation is measured with an empty compilation cache, and
again with what that left in it. The opponent is PyTorch: its import, and its first step.
"""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.harness import (
    Reading,
    contestant,
    figure,
    interleave,
    peak_memory,
    ratios,
    spread,
    timed,
)
from benchmarks.work import NUM_CLASSES, Work, noise

COMMANDS = {
    "import jax": ["-c", "import jax"],
    "import dimat_jax, and use it": ["-c", "import dimat_jax; dimat_jax.simulate"],
    "import torch": ["-c", "import torch"],
    "experiments.cifar --help": ["-m", "experiments.cifar", "--help"],
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    agents: tuple[int, ...] = (4, 16, 64)
    """Numbers of agents for which the main job is compiled and the first step made."""
    repetitions: int = 3
    """How often each is measured, after one time to warm up the system's file cache."""
    out: pathlib.Path | None = None
    """Folder in which startup.json and startup.md are left."""


def main() -> None:
    """Runs the command."""
    options = report.parse(Options, __doc__)
    commands = {name: timed(lambda a=a: run_python(a)) for name, a in COMMANDS.items()}
    measured: dict[str, Any] = {"commands": interleave(commands, options.repetitions)}
    report.progress("commands: done")
    for agents in options.agents:
        work = Work("convnet", agents=agents, batch=50, steps=1)
        measured[str(agents)] = measure(work, options.repetitions)
        report.progress(f"{agents} agents: done")
    jobs = {name: row for name, row in measured.items() if name != "commands"}
    tables = [commands_table(measured["commands"]), table(jobs)]
    report.publish("startup", options, tables, measured)


def run_python(arguments: list[str]) -> None:
    """Runs Python in a process of its own."""
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)


def measure(work: Work, repetitions: int) -> dict[str, Any]:
    """Measures one number of agents.

    Returns:
      Seconds and peak of memory from the start of a process to its first step, of ours and of
      PyTorch; and what `main_job` returns, with an empty cache and with a full one; each one a
      repetition.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = iter(f"{folder}/{number}" for number in range(repetitions + 1))
        latest = ""

        def empty() -> dict[str, Any]:
            nonlocal latest
            latest = next(caches)
            return fresh(main_job, work, latest)

        blocks = {
            "first step": lambda: fresh(first_step, work),
            "torch, first step": lambda: fresh(torch_first_step, work),
            "main job": empty,
        }
        found: dict[str, Any] = interleave(blocks, repetitions)
        found["main job, cached"] = [fresh(main_job, work, latest) for _ in range(repetitions)]
    return found


def fresh(make: Callable[..., Callable[[], Any]], *arguments: Any) -> dict[str, Any]:
    """Makes and runs a block in a new process; the seconds are those of the whole process."""

    def run() -> Reading:
        with contestant(make, *arguments) as block:
            return block()

    readings: list[Reading] = []
    seconds = timed(lambda: readings.append(run()))()
    return {"seconds": seconds, "peak_bytes": readings[0].peak_bytes, "value": readings[0].value}


def first_step(work: Work) -> Callable[[], None]:
    """The first training step of all agents of ours."""
    from benchmarks import ours

    ours.start(work)
    return ours.epochs(ours.make_population(work))


def torch_first_step(work: Work) -> Callable[[], None]:
    """The first training step of all agents in PyTorch."""
    from benchmarks.opponents import torch_loop

    return torch_loop.epochs(work)


def main_job(work: Work, cache: str) -> Callable[[], dict[str, float]]:
    """The main job with little data: what it compiles is the same.

    Args:
      work: the number of agents and their batch.
      cache: a folder for compiled programs.

    Returns:
      A block that returns the seconds of compilation, and of the whole run.
    """
    os.environ["XDG_CACHE_HOME"] = cache  # in it dimat_jax keeps what it compiles
    import dimat_jax as dj

    examples = 2 * work.batch
    dataset = dj.Dataset(*noise(examples * work.agents), *noise(128, seed=1), NUM_CLASSES, "noise")
    config = dj.Config(
        agents=work.agents,
        model=work.model,
        batch_size=work.batch,
        augmentation="flip_and_crop",
        pretrain_epochs=1,
        rounds=1,
    )

    def block() -> dict[str, float]:
        history: list[Any] = []
        run = functools.partial(dj.simulate, config, dataset=dataset, observer=None)
        seconds = timed(lambda: history.extend(run().history))()
        compiled = sum(row["seconds"].get("compile", 0.0) for row in history)
        return {"compile": compiled, "run": seconds, "peak_bytes": float(peak_memory())}

    return block


def commands_table(measured: dict[str, list[float]]) -> report.Table:
    """Seconds of each command."""
    lines = [[name, str(spread(seconds))] for name, seconds in measured.items()]
    title = "Seconds of a whole process, median (least to most)"
    return report.Table(title, ["python", "seconds"], lines)


def table(measured: dict[str, dict[str, Any]]) -> report.Table:
    """Seconds to the first step and of compilation, and peak memory, by number of agents."""
    lines = []
    for agents, row in measured.items():
        steps = row["first step"], row["torch, first step"]
        jobs = row["main job"], row["main job, cached"]
        ours, torch = ([one["seconds"] for one in found] for found in steps)
        compiled = [[one["value"]["compile"] for one in found] for found in jobs]
        peaks = (row[name][-1]["peak_bytes"] / 1e6 for name in ("main job", "torch, first step"))
        cells = [spread(ours), spread(torch), ratios(ours, torch), *map(spread, compiled)]
        lines.append([agents, *map(str, cells), *map(figure, peaks)])
    title = (
        "From the start of a process to the first step of all agents, seconds, and how many times "
        "as long PyTorch takes; compilation of the main job with an empty cache and with a full "
        "one; peak of memory. Median (least to most)."
    )
    columns = ["agents", "first step, s", "PyTorch, s", "ratio", "compile, s", "compile, cached, s"]
    return report.Table(title, [*columns, "main job, peak MB", "PyTorch, peak MB"], lines)


if __name__ == "__main__":
    report.run(main)
