"""Do wide networks that were trained with strong weight decay merge without alignment?

    python -m experiments.width_and_decay --preset cpu

Two networks are trained apart on the same images from different initial weights; measured is by how
much the network half way between them falls behind the two (the barrier at the midpoint), with its
BatchNorm statistics recomputed: after plain averaging, activation matching and weight matching, by
width and weight decay. arXiv 2510.08023 reports that with a decay of 0.003 and widths of 16 to 32
plain averaging loses 1 to 3 points; its figures stand beside ours.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import grid, studies, techniques

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Dataset
    from dimat_jax.simulation.session import Session
    from dimat_jax.types import Variables

    Logits = Callable[[Variables], np.ndarray]

NAME = "width_and_decay"

DECAYS = (1e-4, 5e-4, 3e-3)
RATE = 0.1
"""Of SGD with momentum. Decay acts in so many steps as (1 − 0.9) / (rate × decay): 333 at 0.003, so
that what is trained for a few hundred steps needs the high rate that BatchNorm allows."""

TECHNIQUES = ("averaging", "activation matching", "weight matching")
"""Of `techniques.frames`; of two networks the cycle-consistent alignment is weight matching."""

TEMPERATURES = tuple(2 ** (power / 2) for power in range(-6, 3))
"""A merged network is less sure than it may be: logits are divided by what suits them best."""


class Setting(NamedTuple):
    """A network, and how strongly its weights decay.

    Attributes:
      model: its name in the zoo.
      width: multiplies its channels or units.
      epochs: of training.
      examples: training examples, the same for both networks.
      decay: times the weights, added to the gradient.
    """

    model: str
    width: float
    epochs: int
    examples: int
    decay: float


class Study(NamedTuple):
    """A preset.

    Attributes:
      dataset: what networks are trained on.
      settings: the cells.
      seeds: of each.
      tests: of the test images everything is measured on.
      images: for matching and for recomputing statistics.
    """

    dataset: str
    settings: tuple[Setting, ...]
    seeds: int
    tests: int
    images: int


def settings_of(
    networks: tuple[tuple[str, float, int, int], ...], decays: tuple[float, ...]
) -> tuple[Setting, ...]:
    """Every network with every decay."""
    return tuple(Setting(*network, decay) for network in networks for decay in decays)


STUDIES = {
    "cpu": Study(
        "cifar10",
        (
            *settings_of(tuple(("mlp", width, 3, 8_000) for width in (0.25, 1.0, 2.0)), DECAYS),
            # Of what takes longer only the ends: published are they.
            *settings_of(tuple(("vgg11", w, 5, 2_000) for w in (0.125, 0.25)), DECAYS[::2]),
            *settings_of(tuple(("resnet20", w, 4, 1_500) for w in (0.25, 0.5)), DECAYS[::2]),
        ),
        3,
        1_000,
        512,
    ),
    # Long enough for decay to act many times over, on all images and in wider networks.
    "gpu": Study(
        "cifar10",
        (
            *settings_of(tuple(("mlp", width, 5, 50_000) for width in (1.0, 4.0)), DECAYS),
            *settings_of(tuple(("convnet", width, 5, 50_000) for width in (1.0, 4.0)), DECAYS),
            *settings_of((("convnet", 16.0, 5, 50_000),), DECAYS[::2]),
        ),
        3,
        10_000,
        1024,
    ),
    "smoke": Study(
        "digits",
        settings_of((("mlp", 0.1, 4, 400), ("mlp", 0.4, 4, 400)), (1e-4, 3e-3)),
        2,
        200,
        64,
    ),
}


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.width_and_decay import picture, report

    prepare_devices(2)
    dataset = grid.load_data(study.dataset, options.data_dir, study.tests)

    @functools.lru_cache(maxsize=1)
    def session(setting: Setting) -> "tuple[Session, Logits]":
        found = session_of(study, setting, dataset)
        return found, make_logits(found)

    rows = []
    # One after the other the seeds of one setting, which share what is compiled.
    for setting, seed in itertools.product(study.settings, range(study.seeds)):
        network = network_of(study, setting)._asdict()
        found = studies.cell(
            folder,
            "-".join([*map(str, setting), str(seed)]),
            {"network": network, "seed": seed, "tests": study.tests, "images": study.images},
            lambda setting=setting, seed=seed: merged(*session(setting), setting.epochs, seed),
        )
        rows += [{**row, **setting._asdict(), "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(rows)


def network_of(study: Study, setting: Setting) -> techniques.Network:
    """How a setting's networks are trained; with BatchNorm all, and so by SGD with momentum."""
    return techniques.Network(
        setting.model,
        setting.width,
        "batch",
        setting.epochs,
        setting.examples,
        study.dataset,
        learning_rate=RATE,
        weight_decay=setting.decay,
    )


def options_of(study: Study) -> techniques.Options:
    """What all settings share."""
    return techniques.Options(
        agents=2, seeds=tuple(range(study.seeds)), images=study.images, test_examples=None
    )


def session_of(study: Study, setting: Setting, dataset: "Dataset") -> "Session":
    """What a setting's networks of all seeds are trained and merged by."""
    from dimat_jax.simulation.session import session_of

    network = network_of(study, setting)
    return session_of(techniques.make_setup(options_of(study), network, dataset))


def merged(session: "Session", logits_of: "Logits", epochs: int, seed: int) -> studies.Rows:
    """Trains two networks, and merges them by each technique.

    Returns:
      A row each: accuracy, 0 to 1, loss, and loss at the best temperature, of the network half way
      (``midpoint``) and the means over the two (``ends``); ``norm``, the mean Euclidean norm of
      their weights, and ``distance`` between the two, after alignment, over that norm.
    """
    import numpy as np

    from dimat_jax.algorithms.merging import neighbor_average
    from dimat_jax.simulation.rounds import merge_round
    from dimat_jax.simulation.state import round_keys

    state = session.start(seed)
    for _ in range(epochs):
        state = session.train(state)
    shards, keys = session.shards_of(state), round_keys(state.keys, 1)
    setup, merger = session.setup, session.parts.merger
    # Everyone is half of the average on the fully connected graph of two.
    round, _ = merge_round(setup, state.position, shards, keys, "final", setup.topology)
    average = neighbor_average(recompute=True, repair=False).apply
    variables = state.agents.variables
    frames = techniques.frames(setup.symmetries.groups)
    tests = session.parts.tests
    labels = np.asarray(tests.examples["labels"])[tests.weights > 0]
    ends = {f"ends_{k}": v for k, v in calibrated(logits_of(variables), labels).items()}
    rows = []
    for technique in TECHNIQUES:
        frame, aligned = frames[technique], variables
        for permutations in [] if frame is None else frame(merger, variables, round):
            aligned = merger.permute(permutations, aligned)
        middle = logits_of(average(merger, aligned, (), round).variables)
        of_midpoint = {f"midpoint_{k}": v for k, v in calibrated(middle, labels).items()}
        rows.append({"technique": technique, **ends, **of_midpoint, **apart(aligned)})
    return rows


def make_logits(session: "Session") -> "Logits":
    """What gives the logits of all networks on the test images, ``[networks, images, classes]``."""
    import numpy as np

    from dimat_jax.datasets.data import take
    from dimat_jax.execution.forms import repeat
    from dimat_jax.execution.placement import replicate, shard, to_host
    from dimat_jax.simulation.parts import prepared

    setup, tests = session.setup, session.parts.tests
    execution, prepare = setup.execution, prepared(setup.data).always
    assert setup.classes is not None, "There are no classes to have logits of."
    shape = (*tests.weights.shape, setup.classes)

    def update(carry: Any, variables: "Variables", resident: Any) -> Any:
        batch, logits = carry
        outputs = setup.task.outputs(variables, prepare(take(resident, batch)))
        return batch + 1, logits.at[batch].set(outputs)

    run = repeat(execution, update, session.parts.stopwatch)
    examples = replicate(execution, tests.examples)

    def logits_of(variables: "Variables") -> "np.ndarray":
        lanes = execution.all_lanes
        nothing = np.zeros(lanes, np.int32), np.zeros((lanes, *shape), np.float32)
        _, found = run(shard(execution, nothing), variables, examples, len(tests.weights))
        filled = tests.weights.reshape(-1) > 0
        return to_host(execution, found).reshape(lanes, -1, shape[-1])[:, filled]

    return logits_of


def calibrated(logits: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
    """Means over networks: accuracy, loss, and the loss at the temperature that suits each best.

    The temperature, one number a network, is fitted on the same images.

    Args:
      logits: ``[networks, images, classes]``.
      labels: of the images.
    """
    import numpy as np
    from scipy.special import log_softmax

    everyone = np.arange(len(labels))
    losses = [
        -log_softmax(logits / temperature, axis=-1)[:, everyone, labels].mean(1)
        for temperature in TEMPERATURES
    ]
    values = {
        "accuracy": (logits.argmax(-1) == labels).mean(1),
        "loss": losses[TEMPERATURES.index(1.0)],
        "calibrated_loss": np.min(losses, axis=0),
    }
    return {name: float(value.mean()) for name, value in values.items()}


def apart(variables: "Variables") -> dict[str, float]:
    """How long the weights of two networks are, and how far from each other, over that length."""
    import jax
    import numpy as np

    pairs = [np.asarray(x, np.float64) for x in jax.tree.leaves(variables["params"])]
    lengths = np.sqrt(sum((x.reshape(2, -1) ** 2).sum(1) for x in pairs))
    distance = np.sqrt(sum(((x[0] - x[1]) ** 2).sum() for x in pairs))
    return {"norm": float(lengths.mean()), "distance": float(distance / lengths.mean())}


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
