"""What honest decentralization costs: on whose images, and on how many, units are compared.

    python -m experiments.matching_data --preset cpu

DIMAT compares the units of neighbours on images. Published results use images of all agents, which
agents that may not share their data do not have. Here the same pretrained agents are aligned on a
shared batch, which counts as sent, or on each agent's own images, of 10 to 1,000 of them; beside
plain averaging, weight matching, which needs no images, and agents alone.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dimat_jax.config import Config
from experiments import grid, spectral_gap, studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

NAME = "matching_data"


class Source(NamedTuple):
    """On which images units are compared.

    Attributes:
      data: as ``Config.matching_data`` has it.
      images: how many.
    """

    data: Literal["own", "shared"]
    images: int


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells share.
      partitions: the cells.
      images: how many images units are compared on, own ones and shared ones, in rising order;
        alignments are held against those on the most shared ones.
      seeds: of each.
      tests: of the test images accuracies are of.
    """

    base: Config
    partitions: tuple[str, ...]
    images: tuple[int, ...]
    seeds: int
    tests: int

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that are tried, the one with the most shared images first."""
        number = sorted(self.images, reverse=True)
        return tuple(Source(data, images) for data in ("shared", "own") for images in number)


CPU = Config(
    dataset="cifar10",
    agents=5,
    topology="ring",
    alpha=0.1,
    examples_per_agent=1_000,
    batch_size=50,
    model="convnet",
    width=0.5,
    pretrain_epochs=8,
    rounds=2,
    merge_frame="own",
    align_every=1,
    merge_at_end=False,
    merged_every=0,
    evaluate_every=1,
    statistics_images=256,
    test_examples=None,
    methods=("dimat", "wm", "wa", "local_only"),
)
STUDIES = {
    "cpu": Study(CPU, ("iid", "by_class", "dirichlet"), (10, 30, 100, 300, 1_000), 3, 500),
    "smoke": Study(
        dataclasses.replace(
            CPU,
            dataset="digits",
            agents=4,
            model="mlp",
            width=0.1,
            examples_per_agent=100,
            batch_size=20,
            pretrain_epochs=2,
            rounds=2,
            statistics_images=32,
        ),
        ("iid", "by_class"),
        (10, 100),
        2,
        100,
    ),
}


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.matching_data import picture, report

    prepare_devices(study.base.agents)
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.tests)
    rows = []
    for seed in range(study.seeds):
        for partition in study.partitions:
            config = config_of(study, partition, seed)
            found = studies.cell(
                folder,
                f"{partition}-{seed}",
                {
                    "config": grid.plain_of(config),
                    "images": study.images,
                    "tests": study.tests,
                },
                lambda config=config: compared(study.sources, config, dataset),
            )
            rows += [{**row, "partition": partition, "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(rows)


def config_of(study: Study, partition: str, seed: int) -> Config:
    """The run of a cell, but for the images on which units are compared."""
    return dataclasses.replace(study.base, partition=partition, seeds=(seed,))


def compared(sources: Sequence[Source], config: Config, dataset: "Dataset") -> studies.Rows:
    """Runs DIMAT with each source of images, and the others once, from the same agents.

    Returns:
      A row for each method, source and round; see `followed`. Of those that align also
      ``agreement``, in the first round, in which all align the same networks: the share of hidden
      units that go where the images of the first source put them.
    """
    import dimat_jax as dj

    session = dj.make_session(config, dataset=dataset)
    pretrained = studies.pretrain(session)
    tried: list[tuple[str, Source | None]] = [("dimat", source) for source in sources]
    tried += [(method, None) for method in config.methods if method != "dimat"]
    rows: studies.Rows = []
    first: Sequence[Mapping[str, Any]] = ()
    for method, source in tried:
        changed = session if source is None else with_images(session, source)
        found, used = followed(changed, pretrained, method)
        first = first or used
        if used:
            found[0]["agreement"] = agreement(used, first)
        named = {"data": None, "images": None} if source is None else source._asdict()
        rows += [{"method": method, **named, **row} for row in found]
    return rows


def with_images(session: "Session", source: Source) -> "Session":
    """The same session, but units are compared on other images: nothing is compiled again."""
    config = dataclasses.replace(
        session.setup.config, matching_data=source.data, matching_images=source.images
    )
    return session._replace(setup=session.setup._replace(config=config))


def followed(
    session: "Session", pretrained: "RunState", method: str
) -> tuple[studies.Rows, list[Mapping[str, Any]]]:
    """Runs a method from pretrained agents, and says what each round did.

    Returns:
      A row for each round: accuracies, 0 to 1, ``before`` and ``after`` the merge (None where there
      is none) and after the training that follows (``trained``); ``bytes_sent`` by an agent until
      then; of the first merge what `spectral_gap.of_merge` says. And the alignments of that merge,
      for each of an agent's neighbours; none where units stay as they are.
    """
    from dimat_jax.execution.placement import to_host
    from dimat_jax.simulation.plan import Action

    start = session.measure(session.take_over(pretrained), "pretrain")["test_accuracy"]
    rows: studies.Rows = []
    used: list[Mapping[str, Any]] = []

    def watch(event: Any, state: "RunState", row: Any) -> None:
        if event.round > len(rows):
            before = rows[-1]["trained"] if rows else start
            rows.append({"round": event.round, "before": before, "after": None})
        if event.action is Action.MERGE and event.round == 1:
            used.extend(to_host(session.setup.execution, state.permutations))
            rows[-1] |= spectral_gap.of_merge(session, state)
        if row is not None:
            rows[-1]["after" if row["phase"] == "merge" else "trained"] = row["test_accuracy"]
            rows[-1]["bytes_sent"] = row["bytes_sent"]

    studies.run_methods(session, pretrained, [method], watch)
    return rows, used


def agreement(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """The share of hidden units that two alignments of the same networks put in the same place.

    Args:
      ours: for each of an agent's neighbours: group name → int ``[agents, ..., size]``.
      theirs: likewise.
    """
    import numpy as np

    same = [
        np.ravel(np.asarray(p) == np.asarray(others[name]))
        for own, others in zip(ours, theirs, strict=True)
        for name, p in own.items()
    ]
    return float(np.concatenate(same).mean())


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
