"""When does alignment pay? A budget of messages, many rounds, and a map over gossip and width.

    python -m experiments.when_to_merge --preset cpu

Budget: the same number of messages is spent early, evenly, late or as gossip, or fewer as sparse
gossip, and then everyone is averaged once; from the same and from different initial weights, IID
and Dirichlet. Crossing: over many rounds after some pretraining apart, from when on plain averaging
is ahead of alignment, and how far agents are apart before each merge. Map: what alignment gains in
the merged model over the probability of gossip and the width of the network.
"""

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from dimat_jax.config import Config
from experiments import grid, studies
from experiments.when_to_merge_crossing import METHODS, cross
from experiments.when_to_merge_spend import Budget, methods, spend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Dataset

NAME = "when_to_merge"


class Setting(NamedTuple):
    """A network, on which data, from which weights."""

    width: float
    partition: str
    init: str


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells of the budget and of the map share.
      budget: what can be spent.
      settings: the cells of the budget.
      mapped: what the map has besides its widths; their ways without a fixed budget.
      widths: of the map.
      crossing: the runs of the crossing, but for their pretraining.
      pretraining: epochs of it.
      seeds: of each cell of the budget and of the crossing.
      map_seeds: of each cell of the map.
      tests: of the test images accuracies are of.
      shrink: each image is averaged over squares of so many pixels a side.
    """

    base: Config
    budget: Budget
    settings: tuple[Setting, ...]
    mapped: tuple[Setting, ...]
    widths: tuple[float, ...]
    crossing: Config
    pretraining: tuple[int, ...]
    seeds: int
    map_seeds: int
    tests: int
    shrink: int = 1


CPU = Config(
    dataset="cifar10",
    agents=8,
    topology="exponential",
    alpha=0.1,
    examples_per_agent=200,
    augmentation="none",
    model="mlp",
    norm="batch",
    width=0.5,
    batch_size=50,
    pretrain_epochs=10,
    rounds=12,
    evaluate_every=12,
    matching_images=200,
    statistics_images=100,
    test_examples=None,
)
CROSSING = dataclasses.replace(
    CPU,
    augmentation="flip_and_crop",
    pretrain_epochs=0,
    rounds=100,
    evaluate_every=5,
    merge_at_end=False,
)
STUDIES = {
    "cpu": Study(
        base=CPU,
        budget=Budget(3, (0.05, 0.2, 1.0)),
        settings=tuple(
            Setting(0.5, partition, init)
            for partition in ("iid", "dirichlet")
            for init in ("different", "same")
        ),
        mapped=(Setting(0.5, "dirichlet", "different"),),
        widths=(0.125, 0.25, 0.5, 1.0),
        crossing=CROSSING,
        pretraining=(0, 5, 40),
        seeds=3,
        map_seeds=3,
        tests=500,
        shrink=2,
    ),
}


def small(config: Config) -> Config:
    """The same as a check that all parts work."""
    return dataclasses.replace(
        config,
        dataset="digits",
        augmentation="none",
        width=0.1,
        agents=4,
        examples_per_agent=60,
        batch_size=20,
        pretrain_epochs=1,
        rounds=4,
        evaluate_every=2,
        matching_images=32,
        statistics_images=32,
    )


STUDIES["smoke"] = STUDIES["cpu"]._replace(
    base=small(CPU),
    budget=Budget(2, (0.5, 1.0)),
    settings=(Setting(0.1, "iid", "different"), Setting(0.1, "dirichlet", "same")),
    mapped=(Setting(0.1, "iid", "different"),),
    widths=(0.1, 0.2),
    crossing=small(CROSSING),
    pretraining=(0, 2),
    seeds=2,
    map_seeds=2,
    tests=100,
    shrink=1,
)


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.when_to_merge import Found, picture, report

    prepare_devices(study.base.agents)
    dataset = shrunk(
        grid.load_data(study.base.dataset, options.data_dir, study.tests), study.shrink
    )
    spent, crossed = [], []
    for setting, seed in cells(study):
        spent += spend_cell(study, setting, seed, dataset, folder)
    for seed in range(study.seeds):
        for epochs in study.pretraining:
            crossed += cross_cell(study, epochs, seed, dataset, folder)
    found = Found(study, dataset.name, spent, crossed)
    return report(found), picture(found)


def cells(study: Study) -> list[tuple[Setting, int]]:
    """Every setting and seed of the budget and of the map; each once, where both have it."""
    budget = [(setting, seed) for seed in range(study.seeds) for setting in study.settings]
    mapped = [
        (setting._replace(width=width), seed)
        for seed in range(study.map_seeds)
        for setting in study.mapped
        for width in study.widths
    ]
    return list(dict.fromkeys(budget + mapped))


def config_of(study: Study, setting: Setting, seed: int) -> Config:
    """The run of a cell of the budget, or of the map."""
    return dataclasses.replace(
        study.base, **setting._asdict(), seeds=(seed,), methods=("local_only",)
    )


def crossing_of(study: Study, epochs: int, seed: int) -> Config:
    """The run of a cell of the crossing, after so many epochs of pretraining apart."""
    return dataclasses.replace(
        study.crossing, pretrain_epochs=epochs, seeds=(seed,), methods=tuple(METHODS)
    )


def spend_cell(
    study: Study, setting: Setting, seed: int, dataset: "Dataset", folder: pathlib.Path
) -> studies.Rows:
    """The rows of a cell of the budget or of the map, see `spend`."""
    import dimat_jax as dj

    config = config_of(study, setting, seed)
    fixed = setting in study.settings and seed < study.seeds

    def run() -> studies.Rows:
        tried = methods(config.agents, config.rounds, study.budget, seed, fixed)
        session = dj.make_session(config, dataset=dataset, methods=tried)
        return spend(session, tried, studies.pretrain(session))

    described = {"config": grid.plain_of(config), "budget": study.budget, "fixed": fixed}
    described |= {"tests": study.tests, "shrink": study.shrink}
    name = "-".join(["spend", *map(str, setting), str(seed)])
    rows = studies.cell(folder, name, described, run)
    return [{**row, **setting._asdict(), "seed": seed} for row in rows]


def cross_cell(
    study: Study, epochs: int, seed: int, dataset: "Dataset", folder: pathlib.Path
) -> studies.Rows:
    """The rows of a cell of the crossing, see `cross`."""
    import dimat_jax as dj

    config = crossing_of(study, epochs, seed)

    def run() -> studies.Rows:
        session = dj.make_session(config, dataset=dataset)
        return cross(session, studies.pretrain(session))

    described = {"config": grid.plain_of(config), "tests": study.tests, "shrink": study.shrink}
    rows = studies.cell(folder, f"crossing-{epochs}-{seed}", described, run)
    return [{**row, "epochs": epochs, "seed": seed} for row in rows]


def shrunk(dataset: "Dataset", by: int) -> "Dataset":
    """The same images at so many times fewer pixels a side, each the mean of a square of them."""
    if by == 1:
        return dataset
    import numpy as np

    def smaller(images: np.ndarray) -> np.ndarray:
        number, height, width, channels = images.shape
        squares = images.reshape(number, height // by, by, width // by, by, channels)
        return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(images.dtype)

    train, test = smaller(dataset.train_images), smaller(dataset.test_images)
    name = f"{dataset.name}, at {train.shape[1]} × {train.shape[2]} pixels"
    return dataset._replace(train_images=train, test_images=test, name=name)


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
