"""Merging networks by each technique: accuracy right after, and barriers on the way.

    python -m experiments.techniques --preset cpu --out runs/techniques

Networks are trained apart on the same images from different initial weights, and then merged:
plain averaging, activation matching, weight matching (Git Re-Basin, arXiv 2209.04836) and
cycle-consistent alignment; each as it is, with the BatchNorm statistics recomputed, and with REPAIR
(arXiv 2211.08403), whose figures the report puts beside ours. ``--preset cpu`` is a reduction for
two CPU cores; ``--preset gpu`` trains longer, on all images, and adds width 4; ``--preset
language`` merges decoders of characters, attention's heads and units aligned or left as they are.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dimat_jax.config import Config
from dimat_jax.registry import choose
from experiments import common, grid

if TYPE_CHECKING:
    import numpy as np

    from dimat_jax.algorithms import MergeRound
    from dimat_jax.algorithms.merging import Frame
    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.observer import Observer
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.setup import Setup
    from dimat_jax.types import Variables

BATCH_SIZE = 50
ROWS_FILE = "techniques.jsonl"
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Network(NamedTuple):
    """An architecture, and how it is trained.

    Attributes:
      model: its name in the zoo.
      width: multiplies its channels.
      norm: its normalisation; None: its own.
      epochs: of training.
      examples: training examples.
      dataset: what it is trained on.
      init: whether all start from the same weights.
      learning_rate: at first; None: the optimizer's default.
      weight_decay: times the weights, added to the gradient.
    """

    model: str
    width: float
    norm: Literal["batch", "none"] | None
    epochs: int
    examples: int
    dataset: str = "cifar10"
    init: Literal["different", "same"] = "different"
    learning_rate: float | None = None
    weight_decay: float = 0.0

    @property
    def label(self) -> str:
        """As tables name it."""
        norm = {"batch": ", BatchNorm", "none": ", no normalisation", None: ""}[self.norm]
        start = ", one initialisation" if self.init == "same" else ""
        return f"{self.model} × {self.width:g}{norm}{start}"


PRESETS: dict[str, tuple[Network, ...]] = {
    "cpu": (
        Network("mlp", 1.0, "none", 10, 10_000),
        Network("vgg11", 0.25, "none", 6, 5_000),
        Network("vgg11", 0.25, "batch", 6, 5_000),
        Network("resnet20", 1.0, "batch", 5, 4_000),
        Network("resnet20", 2.0, "batch", 3, 2_500),
    ),
    "gpu": (
        Network("mlp", 1.0, "none", 30, 50_000),
        Network("vgg11", 0.25, "none", 50, 50_000),
        Network("vgg11", 0.25, "batch", 50, 50_000),
        Network("resnet20", 1.0, "batch", 50, 50_000),
        Network("resnet20", 2.0, "batch", 50, 50_000),
        Network("resnet20", 4.0, "batch", 50, 50_000),
    ),
    "language": (
        Network("gpt", 1.0, None, 6, 10_000, "tiny_shakespeare"),
        Network("gpt", 1.0, None, 6, 10_000, "tiny_shakespeare", "same"),
    ),
    "smoke": (Network("mlp", 0.1, "none", 2, 400), Network("mlp", 0.1, "batch", 2, 400)),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    preset: Literal["cpu", "gpu", "language", "smoke"] = "cpu"
    """cpu: for two cores. gpu: for an accelerator. language: decoders of characters, for two cores.
    smoke: a minute, to see that it works."""
    dataset: str | None = None
    """What networks are trained on, see experiments.cifar; None: the preset's."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    models: tuple[str, ...] = ()
    """Of the preset's networks those of these models; none: all."""
    agents: int = 3
    """Number of networks that are merged; of two, cycle-consistent is weight matching."""
    seeds: tuple[int, ...] = (0,)
    """Each trains and merges networks of its own."""
    epochs: int | None = None
    """Epochs of training; None: the preset's, of each network."""
    examples: int | None = None
    """Training examples; None: the preset's, of each network."""
    test_examples: int | None = 1000
    """Test examples, always the same; None: all."""
    images: int = 1024
    """Examples for matching, for recomputing statistics and for REPAIR."""
    out: pathlib.Path | None = None
    """Folder for the rows; None: runs/techniques-PRESET."""
    report: pathlib.Path | None = None
    """Folder for techniques.md and techniques.csv; None: that of the rows."""
    list: bool = False
    """Only say the networks, and how each is trained."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def act() -> None:
        options = common.command_line(Options, "techniques", __doc__, given)
        print_networks(options) if options.list else compare(options, " ".join(given))

    return common.exit_code(act)


def print_networks(options: Options) -> None:
    """Says which networks are trained, and how long."""
    for network in chosen_networks(options):
        print(
            f"{network.label}: {options.agents} networks, {len(options.seeds)} seeds, "
            f"{network.epochs} epochs of {network.examples:,} examples"
        )


def compare(options: Options, command: str) -> None:
    """Trains, merges and measures every network, and writes the report.

    Raises:
      ValueError: for bad input.
    """
    networks = chosen_networks(options)
    from dimat_jax.execution.devices import prepare_devices
    from dimat_jax.report.progress import show_progress
    from dimat_jax.report.terminal import terminal
    from experiments.reports.techniques import write_report

    prepare_devices(options.agents)
    folder = options.out or pathlib.Path("runs") / f"techniques-{options.preset}"
    grid.make_folders(folder, options.report or folder)
    setups = {network: make_setup(options, network) for network in networks}
    rows: list[dict[str, Any]] = []
    with (
        show_progress(terminal()) as observer,
        (folder / ROWS_FILE).open("w", encoding="utf-8") as file,
    ):
        for network, setup in setups.items():
            for row in measure_network(network, setup, observer):
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
    names = {setup.data.name for setup in setups.values()}
    print(write_report(options.report or folder, rows, ", ".join(names), command))
    print(f"Written to {folder}")


def chosen_networks(options: Options) -> list[Network]:
    """The preset's networks as the options change them.

    Raises:
      ValueError: for an option out of range.
    """
    preset = PRESETS[options.preset]
    for model in options.models:
        choose("model of the preset", model, dict.fromkeys(n.model for n in preset))
    if options.agents < 2:
        raise ValueError(f"agents must be at least 2, to be merged, not {options.agents}.")
    changes = {
        name: value
        for name in ("epochs", "examples", "dataset")
        if (value := getattr(options, name)) is not None
    }
    return [
        n._replace(**changes) for n in preset if not options.models or n.model in options.models
    ]


def config_of(options: Options, network: Network) -> Config:
    """The run in which a network is trained."""
    return Config(
        agents=options.agents,
        topology="fully_connected",
        dataset=network.dataset,
        data_dir=options.data_dir,
        examples_per_agent=None,
        model=network.model,
        width=network.width,
        norm=network.norm,
        init=network.init,
        pretrain_epochs=network.epochs,
        rounds=0,
        optimizer="momentum" if network.norm == "batch" else "adam",
        learning_rate=network.learning_rate,
        weight_decay=network.weight_decay,
        schedule="cosine",
        batch_size=BATCH_SIZE,
        methods=("dimat",),
        matching_images=options.images,
        statistics_images=options.images,
        test_examples=options.test_examples,
        seeds=options.seeds,
    )


def make_setup(options: Options, network: Network, dataset: "Dataset | None" = None) -> "Setup":
    """What a network's training works with: every agent has the same images.

    Args:
      options: of the command line.
      network: what is trained, and how.
      dataset: used instead of loading the network's.

    Raises:
      ValueError: for bad input.
    """
    import numpy as np

    from dimat_jax.datasets import examples_of
    from dimat_jax.simulation.setup import prepare

    setup = prepare(config_of(options, network), dataset=dataset)
    available = examples_of(setup.data.train)
    if network.examples < BATCH_SIZE:
        raise ValueError(f"examples must be at least {BATCH_SIZE}, not {network.examples}.")
    number = min(network.examples, available)
    shards = {}
    for seed in options.seeds:
        own = np.random.default_rng(seed).permutation(available)[:number].astype(np.int32)
        everyone = np.tile(own, (options.agents, 1))
        shards[seed] = (everyone, everyone)
    return setup._replace(shards=shards, epoch_examples=(number, number))


# One network ------------------------------------------------------------------------------------


def measure_network(
    network: Network, setup: "Setup", observer: "Observer"
) -> Iterator[dict[str, Any]]:
    """Trains the agents of every seed, and measures each technique on them."""
    from dimat_jax.simulation.rounds import merge_round
    from dimat_jax.simulation.session import session_of
    from dimat_jax.simulation.state import round_keys

    session, epochs = session_of(setup), network.epochs
    for number, seed in enumerate(setup.config.seeds):
        state = session.start(seed)
        for epoch in range(1, epochs + 1):
            state = session.train(state)
            observer.on_phase(
                f"{network.label}, seed {seed}, epoch {epoch} of {epochs}: "
                f"loss {state.train_loss:.3f}, {state.images_per_second:,.0f} examples/s",
                (number + epoch / epochs) / len(setup.config.seeds),
            )
        shards, keys = session.shards_of(state), round_keys(state.keys, 1)
        round, _ = merge_round(setup, state.position, shards, keys, "final", setup.topology)
        trained_by = f"{epochs} epochs of {shards.number:,} examples, "
        trained_by += f"{setup.config.optimizer}, learning rate {setup.learning_rate:g} (cosine)"
        named = {"network": network.label, "training": trained_by, "seed": seed}
        named["tests"] = int(session.parts.tests.weights.sum())
        for row in measure_techniques(session, state.agents.variables, round):
            yield named | row


def frames(groups: Iterable[str]) -> "dict[str, Frame | None]":
    """The techniques: how each brings all networks into one frame.

    Args:
      groups: names of what is aligned; where attention is among them, there are techniques that
        leave it as it is.
    """
    from dimat_jax.algorithms.merging import (
        by_activations,
        by_weights,
        reference_frame,
        universe_frame,
    )

    pairwise: dict[str, Frame] = {
        "activation matching": reference_frame(by_activations),
        "weight matching": reference_frame(by_weights),
    }
    found = {"averaging": None, **pairwise, "cycle-consistent": universe_frame}
    if any(map(in_attention, groups)):
        for name, frame in pairwise.items():
            found[f"{name}, but in attention"] = without_attention(frame)
    return found


def in_attention(group: str) -> bool:
    """Whether a group is heads, or units within them, by its name."""
    return "attention" in group.lower()


def without_attention(frame: "Frame") -> "Frame":
    """The same, but attention's heads and the units within them stay where they are."""

    def outside(merger: Any, variables: "Variables", round: "MergeRound") -> list[Any]:
        return [
            {name: p for name, p in permutations.items() if not in_attention(name)}
            for permutations in frame(merger, variables, round)
        ]

    return outside


CORRECTIONS = {
    "none": {"recompute": False, "repair": False},
    "RESET": {"recompute": True, "repair": False},
    "REPAIR": {"recompute": True, "repair": True},
}
"""What is done to a merged network, as arguments of `neighbor_average`."""


def measure_techniques(
    session: "Session", variables: "Variables", round: "MergeRound"
) -> Iterator[dict[str, Any]]:
    """Merges trained networks by every technique with every correction.

    Yields:
      A row each: what was done, the mean accuracy and loss of the networks, those of the mean of
      all, those at `POINTS` between the first two, and the losses of the mean of the first one,
      two, three ... networks.
    """
    import numpy as np

    merger, agents = session.parts.merger, session.setup.config.agents
    accuracies, losses = scores(session, variables)
    ends = {"ends_accuracy": float(accuracies.mean()), "ends_loss": float(losses.mean())}
    segment = np.zeros((len(POINTS) - 2, agents))
    segment[:, 0], segment[:, 1] = 1 - np.array(POINTS[1:-1]), POINTS[1:-1]
    of_first = np.tri(agents) / np.arange(1, agents + 1)[:, None]
    weights = np.concatenate([of_first, segment])
    for technique, frame in frames(session.setup.symmetries.groups).items():
        aligned = variables
        for permutations in [] if frame is None else frame(merger, variables, round):
            aligned = merger.permute(permutations, aligned)
        for correction, arguments in CORRECTIONS.items():
            if correction == "RESET" and "batch_stats" not in variables:
                continue
            found = mixtures(session, aligned, round, weights, **arguments)
            accuracy, loss = (values[agents - 1 :] for values in found)
            yield {
                "technique": technique,
                "correction": correction,
                "accuracy": float(accuracy[0]),
                "loss": float(loss[0]),
                "accuracies": [float(x) for x in (accuracies[0], *accuracy[1:], accuracies[1])],
                "losses": [float(x) for x in (losses[0], *loss[1:], losses[1])],
                "losses_of_first": [float(x) for x in found[1][:agents]],
                **ends,
            }


def mixtures(
    session: "Session",
    aligned: "Variables",
    round: "MergeRound",
    weights: "np.ndarray",
    recompute: bool,
    repair: bool,
) -> tuple["np.ndarray", "np.ndarray"]:
    """Test accuracy and loss of weighted averages of aligned networks, as many at once as agents.

    Args:
      session: the run.
      aligned: stacked ``[agents, ...]``.
      round: has the images.
      weights: ``[averages, agents]``.
      recompute: as in `dimat_jax.algorithms.merging`.
      repair: likewise.
    """
    import numpy as np

    from dimat_jax.algorithms.merging import neighbor_average

    number, agents = weights.shape
    rows = np.arange(-(-number // agents) * agents).reshape(-1, agents) % number
    average = neighbor_average(recompute=recompute, repair=repair).apply
    found = []
    for chunk in rows:
        shares = np.take_along_axis(weights[chunk], round.sources, 1)
        shared = round._replace(weights=shares)
        merged = average(session.parts.merger, aligned, (), shared).variables
        found.append(np.stack(scores(session, merged)))
    accuracies, losses = np.concatenate(found, axis=1)[:, :number]
    return accuracies, losses


def scores(session: "Session", variables: "Variables") -> tuple["np.ndarray", "np.ndarray"]:
    """Test accuracy, 0 to 1, and test loss of every agent."""
    import jax

    from dimat_jax.training.evaluation import values_of

    score = session.parts.evaluate(variables, session.parts.tests)
    measured = values_of(jax.device_get(score))
    return measured["accuracy"], measured["loss"]


if __name__ == "__main__":
    sys.exit(main())
