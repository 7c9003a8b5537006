"""What helps a merge last: one factor at a time, for DIMAT and for plain averaging alike.

    python -m experiments.factors --preset cpu

From the same pretrained agents, IID and by class, every factor is changed by itself: the frame in
which agents align, how often, the learning rate after a merge and over the rounds, the optimizer's
state, a pull back to the merged network, an outer optimizer over merges, a correction of drift.
Agents that never communicate stand beside each learning rate, and gossip in every so many steps at
the bytes of the merges. Leaves a table (``factors.md``) and what was measured (a file a seed).
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dimat_jax.config import Config
from experiments import common, grid, studies

if TYPE_CHECKING:
    from dimat_jax.algorithms import Algorithm, Merge
    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

MERGING = ("dimat", "wa")


class Factor(NamedTuple):
    """What is other than in the base.

    Attributes:
      label: in the table.
      source: paper.
      options: fields of `Config`.
      outer: what becomes of a method's merge: a name of `wrappers`; None: nothing.
      methods: that it is tried with.
    """

    label: str
    source: str = ""
    options: Mapping[str, Any] = {}
    outer: str | None = None
    methods: tuple[str, ...] = MERGING


ALL = (*MERGING, "local_only")
FASTER_AND_KEPT = {"round_rate": 0.5, "optimizer_after_merge": "kept"}
FACTORS = (
    Factor("base", methods=ALL),
    Factor(
        "each in its own frame",
        "arXiv 2404.08079",
        {"merge_frame": "own", "align_every": 1},
        methods=("dimat",),
    ),
    Factor("aligned in every round", options={"align_every": 1}, methods=("dimat",)),
    Factor("composed along a tree", options={"merge_frame": "tree"}, methods=("dimat",)),
    Factor("rate × 0.4", options={"round_rate": 0.08}, methods=ALL),
    Factor("rate × 2.5", options={"round_rate": 0.5}, methods=ALL),
    Factor("rate × 5, as in pretraining", options={"round_rate": 1.0}, methods=ALL),
    Factor("rate falls over the rounds", options={"round_schedule": "cosine"}, methods=ALL),
    Factor(
        "rate rises in each round", options={"round_schedule": "warmup_each"}, methods=("dimat",)
    ),
    Factor("optimizer kept", options={"optimizer_after_merge": "kept"}),
    Factor("optimizer averaged", options={"optimizer_after_merge": "averaged"}, methods=("dimat",)),
    Factor("statistics not recomputed", options={"recompute_statistics": False}),
    Factor("pull to the merged, μ = 1", "arXiv 1812.06127", {"proximal": 1.0}, methods=("dimat",)),
    Factor("outer Nesterov, 0.7, 0.9", "arXiv 2311.08105", outer="nesterov"),
    Factor("outer momentum, 1, 0.5", "arXiv 1910.00643", outer="momentum", methods=("dimat",)),
    Factor("drift corrected", "arXiv 1702.05122", outer="drift"),
    Factor("DSGD-N once a round, aligned once", "arXiv 2102.04761", methods=("gossip",)),
    Factor("rate × 2.5, optimizer kept", options=FASTER_AND_KEPT, methods=ALL),
    Factor(
        "rate × 2.5, optimizer averaged",
        options={**FASTER_AND_KEPT, "optimizer_after_merge": "averaged"},
        methods=("dimat",),
    ),
    Factor(
        "rate × 2.5, falling, optimizer kept",
        options={**FASTER_AND_KEPT, "round_schedule": "cosine"},
        methods=ALL,
    ),
    Factor("rate × 2.5, DSGD-N", "arXiv 2102.04761", {"round_rate": 0.5}, methods=("gossip",)),
)
"""All that is tried, the base first."""


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all runs share.
      partitions: name → what is other with it.
      seeds: how many.
      most_tests: of the test images that the final accuracy is of.
    """

    base: Config
    partitions: Mapping[str, Mapping[str, Any]]
    seeds: int
    most_tests: int


CPU = Config(
    dataset="cifar10",
    examples_per_agent=500,
    batch_size=50,
    optimizer_after_merge="fresh",
    round_rate=0.2,
    rounds=6,
    evaluate_every=6,
    test_examples=500,
)
APART = {"partition": "by_class", "agents": 5, "examples_per_agent": 1600}
STUDIES = {
    "cpu": Study(CPU, {"IID": {}, "by class": APART}, seeds=3, most_tests=2000),
    "smoke": Study(
        dataclasses.replace(
            CPU,
            dataset="digits",
            model="mlp",
            width=0.1,
            agents=4,
            examples_per_agent=100,
            batch_size=20,
            pretrain_epochs=2,
            rounds=2,
            matching_images=32,
            statistics_images=32,
            test_examples=100,
        ),
        {"IID": {}, "by class": {"partition": "by_class"}},
        seeds=2,
        most_tests=100,
    ),
}
"""``cpu``: about an hour on two slow cores; ``smoke``: a check that all parts work."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    preset: Literal["cpu", "smoke"] = "cpu"
    """cpu: about an hour on two slow cores. smoke: a minute, to see that it works."""
    out: pathlib.Path | None = None
    """Folder of what is measured; None: runs/factors-PRESET."""
    table: pathlib.Path | None = None
    """Where the table goes; None: factors.md in that folder."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return common.exit_code(
        lambda: measure(common.command_line(Options, "factors", __doc__, given))
    )


def measure(options: Options) -> None:
    """Measures what is not measured yet, and writes the table."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.factors import report

    study = STUDIES[options.preset]
    out = options.out or pathlib.Path("runs") / f"factors-{options.preset}"
    table = options.table or out / "factors.md"
    grid.make_folders(out, table.parent)
    prepare_devices(study.base.agents)
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.most_tests)
    found: dict[str, list[list[dict[str, Any]]]] = {partition: [] for partition in study.partitions}
    for seed, partition in itertools.product(range(study.seeds), study.partitions):
        config = dataclasses.replace(study.base, **study.partitions[partition])
        file = out / f"{partition.replace(' ', '-')}-{seed}.json"
        rows = read(file, config)
        if missing := [f for f in FACTORS if f.label not in {row["factor"] for row in rows}]:
            rows += trials(config, dataset, seed, partition, missing)
            write(file, config, rows)
        found[partition].append(rows)
        if all(found.values()):
            table.write_text(report(options.preset, study, found), encoding="utf-8")
    print(f"Written to {table}")


def read(file: pathlib.Path, config: Config) -> list[dict[str, Any]]:
    """The rows that a file holds, if they are of this configuration."""
    if not file.exists():
        return []
    stored = json.loads(file.read_text(encoding="utf-8"))
    return stored["rows"] if stored["config"] == grid.plain_of(config) else []


def write(file: pathlib.Path, config: Config, rows: list[dict[str, Any]]) -> None:
    """Writes what was measured, and of which configuration."""
    from dimat_jax.report.folder import write_json

    write_json(file, {"config": grid.plain_of(config), "rows": rows})


def trials(
    config: Config, dataset: "Dataset", seed: int, partition: str, factors: Sequence[Factor]
) -> Iterator[dict[str, Any]]:
    """Pretrains the agents of a seed once, and tries factors from them.

    Yields:
      For each factor and method: accuracies of the agents, 0 to 1, after the first and the last
      merge within the rounds, after the last training, and at the end on all test images; bytes
      sent by an agent; for each merge the share of units that it moved; commit and versions.
    """
    import dimat_jax as dj
    from dimat_jax.report.summary import commit, versions

    whence = {"commit": commit(), "versions": versions()}
    config = dataclasses.replace(config, seeds=(seed,))
    pretrained = studies.pretrain(dj.make_session(config, dataset=dataset))
    for factor in factors:
        changed = dataclasses.replace(config, **factor.options, methods=("local_only",))
        own = methods_of(factor, config)
        if factor.methods == ("gossip",):
            changed = dataclasses.replace(changed, gossip_every=steps_of_a_round(config))
        session = dj.make_session(changed, dataset=dataset, methods=own)
        for method, row in tried(session, pretrained, own).items():
            print(
                f"{partition}, seed {seed}, {factor.label}, {method}: "
                f"{100 * row['trained']:.1f} %, at the end {100 * row['end']:.1f} %",
                flush=True,
            )
            yield {"factor": factor.label, "method": method, **row, **whence}


def steps_of_a_round(config: Config) -> int:
    """How many there are."""
    assert isinstance(config.examples_per_agent, int) and config.batch_size
    return config.epochs_per_round * (config.examples_per_agent // config.batch_size)


def wrappers() -> "dict[str, Callable[[Merge], Merge]]":
    """What stands over a merge, by name."""
    import optax

    from dimat_jax.algorithms import with_drift_correction, with_outer_optimizer

    nesterov = optax.sgd(0.7, momentum=0.9, nesterov=True)
    momentum = optax.sgd(1.0, momentum=0.5)
    return {
        "nesterov": lambda merge: with_outer_optimizer(merge, nesterov),
        "momentum": lambda merge: with_outer_optimizer(merge, momentum),
        "drift": with_drift_correction,
    }


def methods_of(factor: Factor, config: Config) -> "dict[str, Algorithm]":
    """The methods of a factor by name, ready to be handed to a run."""
    from dimat_jax.algorithms import METHODS, common_frame
    from dimat_jax.algorithms.merging import by_activations

    gossip = METHODS["dsgd_nesterov"]._replace(initial=common_frame(by_activations))
    known = {**METHODS, "gossip": gossip}
    found = {name: known[name] for name in factor.methods}
    if factor.outer:
        wrap = wrappers()[factor.outer]
        found = {name: m._replace(merge=wrap(m.merge)) for name, m in found.items() if m.merge}
    # Under names of their own, for those of the registry are taken.
    return {f"{name}_tried": method for name, method in found.items()}


def tried(
    session: "Session", pretrained: "RunState", methods: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Runs the methods from pretrained agents; what is kept of each, see `trials`."""
    from dimat_jax.simulation.measure import Diverged

    state = session.take_over(pretrained)
    rows: dict[str, list] = {}
    ends: dict[str, float] = {}
    while event := session.next_event(state):
        if event.method not in methods:
            state = session.skip_method(state)
            continue
        try:
            state, row = session.advance(state)
        except Diverged:
            state = session.skip_method(state)
            continue
        if row is not None:
            rows.setdefault(event.method, []).append(row)
        if event.ends and state.final is not None:
            ends[event.method] = float(state.final["accuracy"].mean())
    return {
        name.removesuffix("_tried"): kept(rows[name], end, session.setup.config.rounds)
        for name, end in ends.items()
    }


def kept(rows: Sequence[Mapping[str, Any]], end: float, rounds: int) -> dict[str, Any]:
    """What the table needs of a method's rows."""
    accuracy = {(row["round"], row["phase"]): row["test_accuracy"] for row in rows}
    return {
        "first_merge": accuracy.get((1, "merge")),
        "last_merge": accuracy.get((rounds, "merge")),
        "trained": accuracy[rounds, "train"],
        "end": end,
        "merged": rows[-1]["merged_accuracy"],
        "bytes_sent": rows[-1]["bytes_sent"],
        "units_moved": [row["units_moved"] for row in rows if row["units_moved"] is not None],
    }


if __name__ == "__main__":
    sys.exit(main())
