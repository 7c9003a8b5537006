"""One run of a large population: accuracy, time and memory, round by round.

    python -m benchmarks.population --rounds 100

1,024 agents with 48 images of CIFAR-10 each, on the one-peer exponential graph, which takes powers
of two, with the run's default methods. Memory is what the process holds, of which nothing may grow
from round to round.
"""

import dataclasses
import os
import pathlib
import time
from typing import Any, Literal

from benchmarks import report
from benchmarks.harness import peak_memory

SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 101, 200, 500, 1000)
"""Rounds that the table shows, and the last."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    agents: int = 1024
    """Number of agents."""
    examples: int = 48
    """Training images of an agent."""
    rounds: int = 100
    """Rounds of a merge and an epoch."""
    pretrain_epochs: int = 40
    """Epochs that every agent trains alone before."""
    topology: str = "one_peer_exponential"
    """The graph."""
    dataset: str = "auto"
    """The images."""
    model: str = "mlp"
    """The network."""
    width: float = 0.25
    """Multiplies its units: 64 a layer. Of 256 a thousand agents need more than 23 GB."""
    evaluate_every: int = 10
    """Rounds between two measurements."""
    methods: tuple[str, ...] = ("dimat", "wa", "local_only")
    """What is compared."""
    backend: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; None: what JAX finds."""
    out: pathlib.Path | None = None
    """Folder in which population.json and population.md are left."""


def main() -> None:
    """Runs the command."""
    options = report.parse(Options, __doc__)
    measured = measure(options)
    report.publish("population", options, [table(measured)], measured)


def measure(options: Options) -> dict[str, Any]:
    """Runs, and says after every round where it stands.

    Returns:
      ``dataset``; ``peak`` bytes; ``rows``: method, round, phase, accuracy, seconds since the start
      and bytes held.
    """
    from benchmarks.harness import select_backend

    select_backend(options.backend)
    import dimat_jax as dj

    config = dj.Config(
        agents=options.agents,
        examples_per_agent=options.examples,
        rounds=options.rounds,
        pretrain_epochs=options.pretrain_epochs,
        topology=options.topology,
        dataset=options.dataset,
        model=options.model,
        width=options.width,
        evaluate_every=options.evaluate_every,
        methods=options.methods,
        matching_images=options.examples,
    )
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()

    def on_row(row: Any) -> None:
        rows.append(
            {
                **{name: row[name] for name in ("method", "round", "phase")},
                "accuracy": row["test_accuracy"],
                "seconds": time.monotonic() - begun,
                "held": held(),
            }
        )
        last = rows[-1]
        report.progress(
            f"{last['seconds']:7.1f} s  {last['method']} {last['round']} {last['phase']}: "
            f"{100 * last['accuracy']:.1f} %, {last['held'] / 1e9:.2f} GB"
        )

    result = dj.simulate(config, observer=dj.Observer(on_row=on_row))
    return {"dataset": result.setup.data.name, "peak": float(peak_memory()), "rows": rows}


def held() -> int:
    """The bytes that this process holds now, where Linux says so; else the most so far."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def table(measured: dict[str, Any]) -> report.Table:
    """Some rounds of every method."""
    rows = measured["rows"]
    last = max(row["round"] for row in rows)
    lines = [
        [
            f"{row['method']}, round {row['round']}, after {row['phase']}",
            f"{100 * row['accuracy']:.1f}",
            f"{row['seconds']:,.0f}",
            f"{row['held'] / 1e9:.2f}",
        ]
        for row in rows
        if row["round"] in (*SHOWN, last)
    ]
    title = (
        f"{measured['dataset']}: mean test accuracy of the agents in per cent, seconds since the "
        f"start, GB that the process holds (at most {measured['peak'] / 1e9:.2f})"
    )
    return report.Table(title, ["", "accuracy", "seconds", "GB"], lines)


if __name__ == "__main__":
    report.run(main)
