"""The cells of a comparison: what they are, how one runs, and where its results lie.

A cell is one run of `dimat_jax.simulate`: all methods of one setting and one seed, which share the
pretraining. Its results are one file, written at its end.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dimat_jax.config import Config
from dimat_jax.registry import choose

if TYPE_CHECKING:
    from dimat_jax.datasets import Dataset
    from dimat_jax.metrics import Row
    from dimat_jax.simulation.observer import Observer

RESULT_FILE = "result.json"
NOT_OF_THE_RUN = ("preset", "data_dir", "out", "overwrite", "devices")

Rates = Mapping[str, Mapping[str, float]]
"""`rates_key` → method → learning rate."""


class Setting(NamedTuple):
    """What is compared within: one table.

    Attributes:
      regime: ``pretrained``: all methods from the same agents, pretrained apart from different
        initial weights; ``common``: all agents from one initialisation, no pretraining, and as many
        rounds more as make up for its epochs.
      alpha: of the partition ``dirichlet``; None for others.
      norm: the model's normalisation; None: its own, BatchNorm.
      gossip_every: methods that exchange in steps do so in each one of so many.
    """

    dataset: str
    partition: str
    topology: str
    agents: int
    model: str
    width: float
    regime: str
    alpha: float | None = None
    norm: str | None = None
    gossip_every: int = 1

    @property
    def name(self) -> str:
        """Of its files: what all settings say, then what is special about it."""
        special = {"alpha": self.alpha, "norm": self.norm}
        special["gossip"] = None if self.gossip_every == 1 else self.gossip_every
        said = [f"{name}{value}" for name, value in special.items() if value is not None]
        return "-".join([*map(str, self[:7]), *said]).replace("_", "")


class Cell(NamedTuple):
    """A setting with one seed, and the methods that run in it."""

    setting: Setting
    seed: int
    methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.setting.name}-{self.seed}"


class Outcome(NamedTuple):
    """What a cell gave.

    Attributes:
      config: the run's, as plain values.
      dataset: the display name of the data set actually used.
      rows: of ``metrics.jsonl``.
      all_tests: method → accuracy of each agent at the end, on all test images, 0 to 1.
      diverged: methods whose loss did not stay finite.
      seconds: that it took.
      commit: of this project, when it ran.
      versions: library → version, when it ran.
    """

    config: dict[str, Any]
    dataset: str
    rows: list["Row"]
    all_tests: dict[str, list[float]]
    diverged: list[str]
    seconds: float
    commit: str | None = None
    versions: Mapping[str, str | None] = {}


def rates_key(partition: str, regime: str) -> str:
    """Under which learning rates are stored: agents from scratch take others than pretrained."""
    return partition if regime == "pretrained" else f"{partition}, {regime}"


def config_of(base: Config, cell: Cell, rates: Rates) -> Config:
    """The run of a cell.

    Args:
      base: what all cells share.
      cell: the cell.
      rates: learning rates in the rounds, those of pretrained agents where a regime has none of
        its own; methods that are not in it take the run's.
    """
    fields = cell.setting._asdict()
    regime, alpha = fields.pop("regime"), fields.pop("alpha")
    if alpha is not None:
        fields["alpha"] = alpha
    partition = cell.setting.partition
    tuned = rates.get(rates_key(partition, regime), rates.get(partition, {}))
    chosen = tuple((method, tuned[method]) for method in cell.methods if method in tuned)
    config = dataclasses.replace(
        base, **fields, seeds=(cell.seed,), methods=cell.methods, method_learning_rate=chosen
    )
    if cell.setting.topology != "fully_connected":
        # As published: each agent merges in its own frame where the graph is not fully connected.
        config = dataclasses.replace(config, merge_frame="own", align_every=1)
    if regime == "pretrained":
        return config
    more = config.pretrain_epochs // max(1, config.epochs_per_round)
    return dataclasses.replace(config, init="same", pretrain_epochs=0, rounds=config.rounds + more)


def read_rates(path: pathlib.Path) -> Rates:
    """The learning rates that `experiments.tune` has left.

    Raises:
      ValueError: if the file is not there or not such a table, or names what there is not.
    """
    from dimat_jax.algorithms import METHODS
    from dimat_jax.partition import PARTITIONS

    keys = [rates_key(part, regime) for part in PARTITIONS for regime in ("pretrained", "common")]
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))["rates"]
        return {
            choose("partition", key, keys): {
                choose("method", method, METHODS): positive(float(rate))
                for method, rate in table.items()
            }
            for key, table in rates.items()
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no table of learning rates ({type(error).__name__}: {error}): "
            "python -m experiments.tune makes one."
        ) from error


def positive(rate: float) -> float:
    """The rate, if it is one."""
    if not 0 < rate < float("inf"):
        raise ValueError(f"a learning rate must be positive, not {rate}")
    return rate


def read_edges(path: pathlib.Path) -> list[str]:
    """Which rates of a table that `read_rates` can read lie at the edge of their grid."""
    return json.loads(path.read_text(encoding="utf-8")).get("at_edge", [])


def make_folders(*folders: pathlib.Path) -> None:
    """Makes the folders of results.

    Raises:
      ValueError: if one cannot be made.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be a folder of results ({error.strerror}): choose another."
            ) from error


def plain_of(config: Config) -> dict[str, Any]:
    """What decides a run's numbers, as it reads back from JSON."""
    from dimat_jax.report.folder import plain

    values = {k: v for k, v in plain(config).items() if k not in NOT_OF_THE_RUN}
    return json.loads(json.dumps(values))


def load_outcome(folder: pathlib.Path, config: Config) -> Outcome | None:
    """What a finished cell gave; None if it is not finished, or was another configuration's."""
    try:
        stored = Outcome(**json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / RESULT_FILE} is no result of a cell: {error}.") from error
    return stored if stored.config == plain_of(config) else None


def store_outcome(folder: pathlib.Path, outcome: Outcome) -> None:
    """Writes the results of a cell, all at once: a kill leaves the file whole or none."""
    from dimat_jax.report.folder import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.partial", outcome._asdict())
    (folder / "result.partial").replace(folder / RESULT_FILE)


def run_and_store(folder: pathlib.Path, config: Config, dataset: "Dataset") -> Outcome:
    """Runs a cell, showing progress, and writes its results."""
    from dimat_jax.report.progress import show_progress
    from dimat_jax.report.terminal import terminal

    with show_progress(terminal()) as observer:
        outcome = run_cell(config, dataset, observer)
    store_outcome(folder, outcome)
    return outcome


def run_cell(config: Config, dataset: "Dataset", observer: "Observer") -> Outcome:
    """Runs a cell; a method that diverges is noted, and the others go on."""
    from dimat_jax.report.summary import commit, versions
    from dimat_jax.runs import simulate

    start, diverged = time.monotonic(), []
    watching = observer._replace(on_diverged=lambda method, error: diverged.append(method))
    result = simulate(config, dataset=dataset, observer=watching)
    all_tests = {m: final.test_accuracy.tolist() for (m, _), final in result.finals.items()}
    rows = [row for row in result.history if row["method"] not in diverged]
    seconds = time.monotonic() - start
    plain = plain_of(config)
    return Outcome(plain, dataset.name, rows, all_tests, diverged, seconds, commit(), versions())


def provenance(outcomes: Sequence[Outcome]) -> str:
    """On which data, with which code and libraries, cells ran, in a sentence or two."""
    names = ", ".join(sorted({found.dataset for found in outcomes}))
    commits = ", ".join(sorted({found.commit or "unknown" for found in outcomes}))
    libraries = sorted(
        {f"{name} {version}" for found in outcomes for name, version in found.versions.items()}
    )
    return f"Data: {names}. Commit {commits}; {', '.join(libraries) or 'versions unknown'}."


def load_data(name: str, data_dir: pathlib.Path | None, most_tests: int | None) -> "Dataset":
    """A data set with at most so many test images, which its name then says."""
    from dimat_jax import datasets

    found = datasets.load(name, data_dir=data_dir)
    if most_tests is None or most_tests >= len(found.test_labels):
        return found
    return found._replace(
        test_images=found.test_images[:most_tests],
        test_labels=found.test_labels[:most_tests],
        name=f"{found.name} (first {most_tests:,} test images)",
    )
