"""How often should agents merge? Accuracy by epoch and by bytes, aligned and plain.

    python -m experiments.merge_frequency --preset cpu

From the same pretrained agents all train for the same number of epochs, and merge every tenth of
an epoch to every tenth epoch, and once more at the end; aligned (once, in one frame) and as they
are. How far agents drift apart between two merges stands beside what theory says of it.
"""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dimat_jax.config import Config
from experiments import grid, studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.session import Session

NAME = "merge_frequency"
MERGING = ("dimat", "wa")


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells share.
      partitions: of the data, a table each.
      epochs: of training after pretraining, in all.
      periods: epochs between two merges; those below 1 go evenly into an epoch's batches, those
        above into `epochs`.
      seeds: of each.
      tests: of the test images accuracies are of.
    """

    base: Config
    partitions: tuple[str, ...]
    epochs: int
    periods: tuple[float, ...]
    seeds: int
    tests: int


CPU = Config(
    dataset="cifar10",
    agents=10,
    topology="exponential",
    examples_per_agent=300,
    batch_size=30,
    pretrain_epochs=20,
    merged_every=0,
    matching_images=256,
    statistics_images=128,
    test_examples=500,
)
PERIODS = (0.1, 0.5, 1, 2, 5, 10)
STUDIES = {
    "cpu": Study(CPU, ("iid",), 10, PERIODS, 3, 2000),
    "by_class": Study(CPU, ("by_class",), 10, PERIODS, 3, 2000),
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
            matching_images=32,
            statistics_images=32,
            test_examples=100,
        ),
        ("iid",),
        2,
        (0.2, 1, 2),
        2,
        100,
    ),
}


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.merge_frequency import picture, report

    prepare_devices(study.base.agents)
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.tests)
    rows = []
    for seed, partition in itertools.product(range(study.seeds), study.partitions):
        config = dataclasses.replace(study.base, partition=partition, seeds=(seed,))
        described = {"config": grid.plain_of(config), "tests": study.tests}
        found = studies.cell(
            folder,
            f"{partition}-{seed}",
            described | {"epochs": study.epochs, "periods": study.periods},
            lambda config=config: frequencies(study, config, dataset),
        )
        rows += [{**row, "partition": partition, "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(study, rows)


def session_of(config: Config, dataset: "Dataset", period: float, epochs: int) -> "Session":
    """A session whose agents merge every so many epochs.

    Below 1 a round trains on that share of an epoch's batches, which are drawn from all of an
    agent's images in each: what it calls an epoch is then a round.
    """
    import dimat_jax as dj
    from dimat_jax.simulation.session import session_of as of_setup

    changed = dataclasses.replace(
        config,
        rounds=round(epochs / period),
        epochs_per_round=max(1, round(period)),
        # At every full epoch, as far as there is a merge.
        evaluate_every=max(1, round(1 / period)),
        methods=(*MERGING, "local_only"),
    )
    session = dj.make_session(changed, dataset=dataset)
    if period >= 1:
        return session
    pretraining, in_rounds = session.setup.epoch_examples
    share = pretraining, round(in_rounds * period)
    return of_setup(session.setup._replace(epoch_examples=share))


def frequencies(study: Study, config: Config, dataset: "Dataset") -> studies.Rows:
    """All periods and methods from the same agents.

    Returns:
      For each measurement ``method``, ``period``, ``epoch`` since the pretraining, ``phase``,
      accuracy, consensus distance and bytes; agents alone once, as of period `epochs`.
    """
    rows: studies.Rows = []
    whole = session_of(config, dataset, 1, study.epochs)
    pretrained = studies.pretrain(whole)
    before = whole.measure(whole.take_over(pretrained), "pretrain")
    for period in study.periods:
        session = session_of(config, dataset, period, study.epochs)
        methods = MERGING if period != study.periods[-1] else (*MERGING, "local_only")

        def watch(event: Any, state: Any, row: Mapping[str, Any] | None, period: float = period):
            if row is None:
                return
            trained = state.position.epoch - state.position.first_epoch
            final = {"all_tests": float(state.final["accuracy"].mean())} if event.ends else {}
            rows.append(
                {
                    "method": event.method,
                    "period": period,
                    "epoch": round(trained * min(1.0, period), 6),
                    "phase": event.phase,
                    "accuracy": row["test_accuracy"],
                    "distance": row["consensus_distance"],
                    "bytes_sent": row["bytes_sent"],
                    "train_loss": row["train_loss"],
                    "before": before["test_accuracy"],
                    **final,
                }
            )

        studies.run_methods(session, pretrained, methods, watch)
    return rows


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
