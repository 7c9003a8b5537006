"""Does the spectral gap explain what merging brings? The operator of every merge, beside accuracy.

    python -m experiments.spectral_gap --preset cpu

Agents merge with their units aligned each in its own frame (as published), aligned in one frame of
all, and as they are. Of every merge W = [π_ij P_ij] is taken apart: its gap, what agents can agree
on, how far alignments are from cycle-consistent, how many neighbours each effectively has; for four
networks on one partition and graph, and ResNet-20 on every partition and graph.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dimat_jax.config import Config
from experiments import grid, studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.algorithms import Algorithm
    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

NAME = "spectral_gap"


class Setting(NamedTuple):
    """A network, and who merges with whom on which data."""

    model: str
    width: float
    partition: str
    topology: str

    @property
    def network(self) -> str:
        """As tables name it."""
        return f"{self.model} × {self.width:g}"


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells share.
      settings: the cells.
      seeds: of each.
      tests: of the test images accuracies are of.
    """

    base: Config
    settings: tuple[Setting, ...]
    seeds: int
    tests: int


CPU = Config(
    dataset="cifar10",
    agents=6,
    alpha=0.1,
    examples_per_agent=200,
    batch_size=50,
    pretrain_epochs=8,
    rounds=2,
    merge_frame="own",
    align_every=1,
    merge_at_end=False,
    merged_every=0,
    evaluate_every=1,
    matching_images=100,
    statistics_images=50,
    test_examples=None,
)
GRAPHS = ("ring", "fully_connected", "exponential")
RESNET = ("resnet20", 0.5)
STUDIES = {
    "cpu": Study(
        CPU,
        (
            *(
                Setting(*n, "iid", "ring")
                for n in (("mlp", 0.25), ("vgg11", 0.125), ("vit", 0.125))
            ),
            *(
                Setting(*RESNET, partition, graph)
                for partition in ("iid", "by_class", "dirichlet")
                for graph in GRAPHS
            ),
        ),
        2,
        250,
    ),
    "smoke": Study(
        dataclasses.replace(
            CPU,
            dataset="digits",
            agents=4,
            examples_per_agent=100,
            batch_size=20,
            pretrain_epochs=2,
            rounds=2,
            matching_images=32,
            statistics_images=32,
        ),
        tuple(Setting("mlp", 0.1, "iid", graph) for graph in GRAPHS),
        2,
        100,
    ),
}


def methods() -> "dict[str, Algorithm]":
    """What is compared, ready to be handed to a run: name → method."""
    from dimat_jax.algorithms import METHODS, neighbor_average
    from dimat_jax.algorithms.merging import by_activations, reference_frame

    one = neighbor_average(frame=reference_frame(by_activations))
    return {
        "own frames": METHODS["dimat"],
        "one frame": METHODS["dimat"]._replace(merge=one),
        "averaging": METHODS["wa"],
    }


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.spectral_gap import picture, report

    prepare_devices(study.base.agents)
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.tests)

    @functools.lru_cache(maxsize=1)  # Of all seeds: what it compiles is traced once.
    def session(setting: Setting) -> "Session":
        return session_of(study, setting, dataset)

    pretrained: dict[tuple[Any, ...], RunState] = {}

    def measured(setting: Setting, seed: int) -> studies.Rows:
        start = (setting._replace(topology=""), seed)  # Graphs share the agents trained apart.
        if start not in pretrained:
            pretrained[start] = studies.pretrain(session(setting), seed)
        return spectra(session(setting), pretrained[start])

    rows: studies.Rows = []
    for setting, seed in itertools.product(study.settings, range(study.seeds)):
        found = studies.cell(
            folder,
            "-".join([*map(str, setting), str(seed)]),
            {"config": grid.plain_of(config_of(study, setting, seed)), "tests": study.tests},
            functools.partial(measured, setting, seed),
        )
        rows += [{**row, **setting._asdict(), "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(rows)


def config_of(study: Study, setting: Setting, *seeds: int) -> Config:
    """The run of a cell, or of several seeds."""
    return dataclasses.replace(study.base, **setting._asdict(), methods=(), seeds=seeds)


def session_of(study: Study, setting: Setting, dataset: "Dataset") -> "Session":
    """A setting's session, of all seeds."""
    import dimat_jax as dj

    config = config_of(study, setting, *range(study.seeds))
    config = dataclasses.replace(config, methods=("local_only",))
    return dj.make_session(config, dataset=dataset, methods=methods())


def spectra(session: "Session", pretrained: "RunState") -> studies.Rows:
    """Runs the session's methods; one row for every round of each.

    Returns:
      Accuracies before it, after its merge and after the training that follows, 0 to 1; consensus
      distances before the merge and after it, the latter also modulo permutation; and what
      `of_merge` says. Nothing of merges where agents stay alone.
    """
    from dimat_jax.simulation.plan import Action

    rows: studies.Rows = []
    start = session.measure(session.take_over(pretrained), "pretrain")
    last: dict[str, Any] = {}

    def watch(event: Any, state: "RunState", row: Any) -> None:
        if event.action is Action.BEGIN:
            last.update(start)
        now = event.method, event.round
        if event.round and (not rows or now != (rows[-1]["method"], rows[-1]["round"])):
            rows.append(
                {
                    "method": event.method,
                    "round": event.round,
                    "before": last["test_accuracy"],
                    "distance_before": last["consensus_distance"],
                }
            )
        if event.action is Action.MERGE:
            rows[-1] |= of_merge(session, state)
        if row is not None:
            last.update(row)
        if row is not None and row["phase"] == "merge":
            rows[-1] |= {
                "merged": row["test_accuracy"],
                "distance": row["consensus_distance"],
                "distance_aligned": row["consensus_distance_aligned"],
            }
        if row is not None and row["phase"] == "train":
            rows[-1]["trained"] = row["test_accuracy"]

    studies.run_methods(session, pretrained, session.setup.methods, watch)
    return rows


def of_merge(session: "Session", state: "RunState") -> dict[str, Any]:
    """What the operator of a run's last merge is like.

    Returns:
      Means over all hidden units, each group by its operator: ``gap``, ``eigenvalue``, ``fixed``
      (dimensions of the fixed space, for each unit), ``cycles`` and ``there_and_back`` (the shares
      of units that come back elsewhere), ``neighbors``; the largest ``stochasticity_error``; the
      same of all parameters at once as ``whole``, in the last round of the first seed.
    """
    import numpy as np

    from dimat_jax import spectral
    from dimat_jax.execution.placement import to_host
    from dimat_jax.topology import neighbor_slots

    setup = session.setup
    symmetries, round = setup.symmetries, state.position.round
    graph = setup.graphs[session.method_of(state)]["merge"]
    sources, weights = neighbor_slots(graph, round - 1)
    used = list(to_host(setup.execution, state.permutations))
    if state.frame == {}:  # all are in one frame: they were brought there, each by its own
        used = spectral.pairs_of_frames(symmetries, sources, used[0])
    operators = spectral.of_groups(symmetries, sources, weights, used)
    sizes = np.array([operator.shape[1] for operator in operators.values()])

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=sizes))

    found = [spectral.spectrum(operator) for operator in operators.values()]
    cycles = [spectral.cycle_inconsistency(operator) for operator in operators.values()]
    described: dict[str, Any] = {
        "gap": mean([spectrum.gap for spectrum in found]),
        "eigenvalue": mean([spectrum.eigenvalue for spectrum in found]),
        "fixed": float(sum(spectrum.fixed_dimension for spectrum in found) / sizes.sum()),
        "cycles": mean([of_group.cycles for of_group in cycles]),
        "there_and_back": mean([of_group.there_and_back for of_group in cycles]),
        "neighbors": mean([spectral.effective_neighbors(o) for o in operators.values()]),
        "stochasticity_error": max(map(spectral.stochasticity_error, operators.values())),
        "gap_of_graph": graph.spectral_gap,
    }
    if (round, state.position.seed) == (setup.config.rounds, setup.config.seeds[0]):
        operator = spectral.of_parameters(symmetries, sources, weights, used, setup.abstract[0])
        whole = spectral.spectrum(operator)
        described["whole"] = whole._asdict() | {"parameters": operator.shape[1]}
    return described


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
