"""What merging survives: agents that join and leave, edges that fail, graphs that change.

    python -m experiments.dynamic --preset cpu

Agents on one graph merge and train, aligned or as they are, or stay alone. From some round on two
of them join, from new weights or from a neighbour's, or leave; or they are away for a while and
come back with stale networks; or edges fail. Beside it all, the same without any event; and without
events graphs that are drawn anew in every round, against those that stay.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dimat_jax.config import Config
from experiments import grid, studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Dataset
    from dimat_jax.metrics import Row
    from dimat_jax.simulation.faults import Events, Faults
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

NAME = "dynamic"
ALONE = "local_only"
MOVING = 2
"""How many agents join, leave or are away: the last ones, for the first is whom all align to."""


class Graph(NamedTuple):
    """Who merges with whom.

    Attributes:
      label: in tables.
      topology: its name.
      options: of it.
      drawn: whether it is drawn at random, by the seed of the run.
      static: label of the graph that it is compared with; None for one that stays as it is.
    """

    label: str
    topology: str
    options: tuple[tuple[str, int], ...] = ()
    drawn: bool = False
    static: str | None = None


class Scenario(NamedTuple):
    """What happens.

    Attributes:
      label: in tables.
      joins: how agents begin that join.
      leaves: whether agents leave.
      away: whether agents are away for a while.
      fail: share of the edges that fail for a while, each of them in both directions.
      message_loss: probability that a message is lost, throughout.
      stale: probability that one is what its sender sent a merge before, throughout.
    """

    label: str
    joins: Literal["fresh", "copy"] | None = None
    leaves: bool = False
    away: bool = False
    fail: float = 0.0
    message_loss: float = 0.0
    stale: float = 0.0

    @property
    def changes_agents(self) -> bool:
        """Whether agents who stay alone see anything of it."""
        return self.joins is not None or self.leaves or self.away

    @property
    def has_event(self) -> bool:
        """Whether something happens at a time of its own, from which to recover."""
        return self.changes_agents or self.fail > 0


STATIC = "exponential"
"""The graph on which things happen."""
GRAPHS = {
    graph.label: graph
    for graph in (
        Graph(STATIC, STATIC),
        Graph("ring", "ring"),
        Graph("epidemic, 2", "epidemic", (("s", 2),), drawn=True, static="ring"),
        Graph("epidemic, 3", "epidemic", (("s", 3),), drawn=True, static=STATIC),
        Graph("random matching", "random_matching", drawn=True, static="ring"),
        Graph("one-peer exponential", "one_peer_exponential", static=STATIC),
    )
}
NOTHING = Scenario("nothing happens")
SCENARIOS = (
    NOTHING,
    Scenario("two join, fresh", joins="fresh"),
    Scenario("two join, as copies", joins="copy"),
    Scenario("two leave", leaves=True),
    Scenario("two away, then stale", away=True),
    Scenario("half of the edges fail", fail=0.5),
    Scenario("all edges fail", fail=1.0),
    Scenario("3 in 10 messages lost", message_loss=0.3),
    Scenario("3 in 10 messages stale", stale=0.3),
)


class Setting(NamedTuple):
    """A graph and what happens on it."""

    graph: Graph
    scenario: Scenario

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that run; agents alone only where they would not do the same elsewhere."""
        merging = "dimat", "wa"
        same = self.graph.label != STATIC or not (
            self.scenario == NOTHING or self.scenario.changes_agents
        )
        return merging if same else (*merging, ALONE)


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells share.
      settings: the cells.
      seeds: of each.
      tests: of the test images accuracies are of.
      first: the round in which something happens.
      last: the last round in which agents are away, or edges fail.
    """

    base: Config
    settings: tuple[Setting, ...]
    seeds: int
    tests: int
    first: int
    last: int


CPU = Config(
    dataset="cifar10",
    agents=8,
    examples_per_agent=500,
    batch_size=50,
    model="mlp",
    width=0.5,
    norm="batch",
    pretrain_epochs=30,
    rounds=12,
    merge_at_end=False,
    merged_every=0,
    evaluate_every=1,
    matching_images=256,
    statistics_images=256,
    test_examples=None,
)
SETTINGS = (
    *(Setting(GRAPHS[STATIC], scenario) for scenario in SCENARIOS),
    *(Setting(graph, NOTHING) for label, graph in GRAPHS.items() if label != STATIC),
)
STUDIES = {
    "cpu": Study(CPU, SETTINGS, 3, 500, first=5, last=7),
    "smoke": Study(
        dataclasses.replace(
            CPU,
            dataset="digits",
            width=0.1,
            agents=4,
            examples_per_agent=100,
            batch_size=20,
            pretrain_epochs=2,
            rounds=4,
            matching_images=32,
            statistics_images=32,
        ),
        tuple(Setting(GRAPHS[STATIC], SCENARIOS[i]) for i in (0, 1, 6))
        + (Setting(GRAPHS["random matching"], NOTHING),),
        2,
        100,
        first=2,
        last=3,
    ),
}


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.dynamic import picture, report

    prepare_devices(study.base.agents)
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.tests)

    @functools.lru_cache(maxsize=1)
    def agents(seed: int) -> "RunState":
        return studies.pretrain(session_of(study, study.settings[0], seed, dataset))

    rows = []
    for seed in range(study.seeds):  # All settings of a seed begin with the same agents.
        for setting in study.settings:
            found = studies.cell(
                folder,
                name_of(setting, seed),
                described(study, setting, seed),
                lambda setting=setting, seed=seed: run(
                    study, setting, session_of(study, setting, seed, dataset), agents(seed)
                ),
            )
            names = {"graph": setting.graph.label, "scenario": setting.scenario.label}
            rows += [{**row, **names, "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(study, rows)


def name_of(setting: Setting, seed: int) -> str:
    """Of a cell's file."""
    words = f"{setting.graph.label} {setting.scenario.label} {seed}"
    return "-".join(words.replace(",", "").split())


def described(study: Study, setting: Setting, seed: int) -> dict[str, Any]:
    """All that decides the numbers of a cell."""
    config = config_of(study, setting, seed)
    happens = setting.scenario._asdict() | {"first": study.first, "last": study.last}
    return {"config": grid.plain_of(config), "tests": study.tests, "happens": happens}


def config_of(study: Study, setting: Setting, seed: int) -> Config:
    """The run of a cell."""
    graph = setting.graph
    options = (*graph.options, ("seed", seed)) if graph.drawn else graph.options
    return dataclasses.replace(
        study.base,
        topology=graph.topology,
        topology_options=options,
        methods=setting.methods,
        seeds=(seed,),
    )


def session_of(study: Study, setting: Setting, seed: int, dataset: "Dataset") -> "Session":
    """A cell's session."""
    import dimat_jax as dj

    faults, events = network_of(study, setting.scenario, seed)
    config = config_of(study, setting, seed)
    return dj.make_session(config, dataset=dataset, faults=faults, events=events)


def network_of(study: Study, scenario: Scenario, seed: int) -> "tuple[Faults, Events]":
    """What happens in a run, round by round."""
    import itertools

    import numpy as np

    import dimat_jax as dj

    agents, first, last = study.base.agents, study.first, study.last
    moving = range(agents - MOVING, agents)
    pairs = list(itertools.combinations(range(agents), 2))
    # A share of all pairs, whether or not they are neighbours: so any graph loses that share.
    fails = np.random.default_rng(seed).random(len(pairs)) < scenario.fail
    edges = [pair for pair, failed in zip(pairs, fails, strict=True) if failed]
    lost = [
        (round, *edge)
        for round in range(first, last + 1)
        for i, j in edges
        for edge in ((i, j), (j, i))
    ]
    how = scenario.joins
    faults = dj.Faults(
        message_loss=scenario.message_loss,
        lost=tuple(lost),
        stale=scenario.stale,
        down=tuple((agent, first, last) for agent in moving) if scenario.away else (),
    )
    events = dj.Events(
        joins=tuple((first, agent, how) for agent in moving) if how else (),
        leaves=tuple((first, agent) for agent in moving) if scenario.leaves else (),
    )
    return faults, events


# A cell -------------------------------------------------------------------------------------------


def run(study: Study, setting: Setting, session: "Session", pretrained: "RunState") -> studies.Rows:
    """Runs the methods of a setting; a row for every merge and every training of each, in order.

    Returns:
      ``method``, ``round``, ``phase``, ``accuracy`` (mean over those who are there, 0 to 1),
      ``moving`` and ``others`` (the same of those who join, leave or are away, and of the rest;
      None of nobody), ``distance`` (from consensus, over those who are there), ``bytes_sent``, and
      how many ``neighbours`` an agent hears from in a round.
    """
    matrices = session.setup.topology.mixing_matrices
    neighbours = float(((matrices != 0).sum((1, 2)) - study.base.agents).mean())
    rows: studies.Rows = []

    def watch(event: Any, state: "RunState", row: "Row | None") -> None:
        if row is not None:
            rows.append(kept(row) | {"neighbours": neighbours / study.base.agents})

    studies.run_methods(session, pretrained, setting.methods, watch)
    return rows


def kept(row: "Mapping[str, Any]") -> dict[str, Any]:
    """What the page needs of a row."""
    accuracies = row["test_accuracy_agents"]
    return {
        "method": row["method"],
        "round": row["round"],
        "phase": row["phase"],
        "accuracy": row["test_accuracy"],
        "moving": mean_of(accuracies[-MOVING:]),
        "others": mean_of(accuracies[:-MOVING]),
        "distance": row["consensus_distance"],
        "bytes_sent": row["bytes_sent"],
    }


def mean_of(values: Sequence[float]) -> float | None:
    """The mean of the numbers among them; None where there is none."""
    import numpy as np

    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
