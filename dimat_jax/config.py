"""The frozen configuration of a run. Light on purpose: nothing here imports JAX."""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

from dimat_jax.registry import choose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All that a run is, but for its data; the defaults are those of the preset that is named.

    `dataclasses.replace` keeps every option that it is not given, whatever preset it is.

    Raises:
      ValueError: for a preset that there is not. What else is wrong is said before a run.
    """

    # The field docstrings below are the command line's help texts, which add the names that
    # `dimat_jax.registry` has.

    preset: str = "quick"
    """Where the defaults come from: quick, for two CPU cores; early, where merging does not pay
    yet; paper, the published network, data, number of agents and epochs; or language, decoders of
    characters."""
    agents: int = 16
    """Number of agents, each with its own network and its own data."""
    topology: str = "exponential"
    """The graph: who merges with whom. Of the methods only sgp takes digraph."""
    topology_options: tuple[tuple[str, int | float], ...] = ()
    """Options of the graph, by name: degree 3 of random_regular, p 0.4 seed 1 of erdos_renyi, k 2
    of base_k."""
    dataset: str = "auto"
    """The images; auto is CIFAR-10 if it can be had, else shapes."""
    data_dir: pathlib.Path | None = None
    """Where data sets and archives lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    partition: str = "iid"
    """How the training data are divided among the agents."""
    alpha: float = 0.5
    """Concentration of the dirichlet partition: smaller is more heterogeneous."""
    examples_per_agent: int | None | Literal["auto"] = "auto"
    """At most so many training examples for each agent; None: all of its share; auto: 500 of a data
    set that is named, all of one that is handed over."""
    augmentation: str | None = None
    """What is done to the images in training; None: what suits the data set."""
    model: str = "convnet"
    """The network that every agent trains."""
    width: float = 1.0
    """Multiplies the model's channels."""
    norm: Literal["batch", "layer", "group", "rms", "none"] | None = None
    """The model's normalisation; None: its own default."""
    init: Literal["different", "same"] = "different"
    """Whether agents start from different initial weights or from the same ones."""
    pretrain_epochs: int = 40
    """Epochs that every agent trains alone before the first merge, once for all methods."""
    rounds: int = 12
    """Number of rounds, each a merge and then local training."""
    epochs_per_round: int = 1
    """Epochs of local training after each merge."""
    merge_at_end: bool = True
    """Whether methods that merge do so once more after the last training."""
    gossip_every: int = 1
    """Steps between two exchanges of methods that exchange something while they train."""
    optimizer: str = "momentum"
    """The local optimizer; momentum is 0.9."""
    weight_decay: float = 0.0
    """Times the parameters, added to the gradient (L2), or with adamw to the step. Not of methods
    that exchange something in every step, which step by themselves."""
    clip: float | None = None
    """Largest norm of an agent's gradient; longer ones are shortened. None: no limit. As with
    weight_decay, not of methods that step by themselves."""
    warmup_epochs: int = 0
    """Epochs at the start of the run in which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes in training; of classification alone."""
    learning_rate: float | None = None
    """Learning rate; None: 0.001 for adam and adamw; for sgd 0.1 and for momentum 0.02 at a batch
    of 50, and in proportion to it."""
    method_learning_rate: tuple[tuple[str, float], ...] = ()
    """Learning rates of methods in the rounds, by name, in place of the run's: cdsgd 0.1 sgp
    0.05."""
    round_rate: float = 0.5
    """Multiplies the learning rate in the rounds, of all methods without one of their own."""
    round_schedule: Literal["constant", "cosine", "cosine_each", "warmup_each"] = "constant"
    """What multiplies it: a cosine's fall over all rounds, or in each round; a linear rise over the
    first fifth of each."""
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    """The learning rate over the whole run, pretraining included; exponential: that of methods that
    exchange something in every step, times 0.981 an epoch of the rounds."""
    optimizer_after_merge: Literal["fresh", "kept", "averaged"] = "kept"
    """Whether the optimizer's state is made again after a merge, goes on, or is averaged as the
    networks are (and sent with them)."""
    proximal: float = 0.0
    """Strength μ of a pull back to the merged network in local training: μ (x - merged) is added to
    the gradient."""
    batch_size: int | None = None
    """Images in an agent's batch; None: 50, or less where an epoch would have under ten steps."""
    micro_batch: int | None = None
    """An agent goes through its batch so many images at a time, and averages their gradients: the
    same step, but the activations of so many only are held. Must divide batch_size. BatchNorm then
    normalises over each such part by itself (ghost batches), and dropout draws other masks. None:
    the whole batch at once."""
    methods: tuple[str, ...] = ("dimat", "wa", "local_only")
    """The methods to compare, all from the same pretrained agents."""
    matching_data: Literal["own", "shared"] = "own"
    """On what neighbours' units are compared: each agent's own images, or images of all agents, the
    same for all, which count as sent."""
    matching_images: int = 512
    """Number of images for matching."""
    recompute_statistics: bool = True
    """Whether BatchNorm statistics are recomputed: after a merge and after each round of training,
    for all methods alike. Else a merge averages them, and training leaves its running averages."""
    statistics_data: Literal["own", "shared"] = "own"
    """From what BatchNorm statistics are recomputed: as in matching_data."""
    statistics_images: int = 512
    """Number of images for recomputing BatchNorm statistics."""
    merge_frame: Literal["own", "reference", "tree"] = "reference"
    """Whether each agent aligns its neighbours to itself in its own frame, or all align themselves
    to agent 0's network: that network is handed on to everyone, or pairs of neighbours are compared
    along a spanning tree."""
    align_every: int | Literal["once"] = "once"
    """Rounds between two alignments to a common frame; in between agents average in the frame they
    share."""
    test_examples: int | None = 1000
    """Test images of the evaluations along the way, always the same; the last is on all of them.
    None: all of them throughout."""
    evaluate_every: int = 2
    """Rounds between two evaluations; the first and the last round are always measured."""
    merged_every: int = 1
    """Rounds between two evaluations of the mean of all agents' networks, as if they were all
    merged; of those that are evaluated at all. 0: never."""
    message_loss: float = 0.0
    """Probability that a message between agents is lost; what it would have brought, its receiver
    keeps of itself. From Python, faults= says more."""
    stale_messages: float = 0.0
    """Probability that a merge gets what its sender was one merge before."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each is a run of its own."""
    devices: int | None = None
    """Devices to shard the agents over; None: all there are, as far as there are agents for
    them."""
    agents_at_once: int | None = None
    """At most so many of a device's agents train at the same time, and the others wait: fewer take
    less memory. None: all of them, but one on CPU where the model has convolutions."""
    out: pathlib.Path | None = None
    """Folder for the results; None: a new one under runs/ (from Python: none is written)."""
    overwrite: bool = False
    """Whether a run that already lies in that folder may be replaced."""
    resume: bool = False
    """Whether the run in that folder, if there is one, goes on from its last checkpoint."""
    checkpoint_every: int = 1
    """Rounds between two checkpoints in that folder; 0: none."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, beside the best."""
    force: bool = False
    """Whether a run is tried that needs more memory than there is."""


OPTIONS: dict[str, dict[str, Any]] = {
    "quick": {},
    "early": dict(
        topology="ring",
        examples_per_agent=1000,
        optimizer_after_merge="fresh",
        pretrain_epochs=8,
        rounds=3,
        round_rate=1.0,
        merge_at_end=False,
        merge_frame="own",
        align_every=1,
        evaluate_every=1,
    ),
    "language": dict(
        agents=8,
        dataset="python_docs",
        examples_per_agent=None,
        model="gpt",
        optimizer="adam",
        learning_rate=3e-3,
        batch_size=32,
        pretrain_epochs=12,
        rounds=4,
        methods=("dimat", "wm", "wa", "local_only"),
        test_examples=None,
    ),
    "paper": dict(
        agents=5,
        topology="fully_connected",
        dataset="cifar100",
        examples_per_agent=None,
        model="resnet20",
        width=8.0,
        pretrain_epochs=100,
        rounds=100,
        epochs_per_round=2,
        optimizer="adam",
        optimizer_after_merge="fresh",
        learning_rate=1e-3,
        round_rate=1.0,
        merge_at_end=False,
        align_every=1,
        statistics_images=1024,
        batch_size=100,
        test_examples=None,
        evaluate_every=1,
    ),
}
"""Preset → the options in which it differs from ``quick``."""


def _from_preset(init: Any) -> Any:
    """The same ``__init__``, but options that are not given are those of the preset."""

    @functools.wraps(init)
    def from_preset(self: Config, *, preset: str = Config.preset, **given: Any) -> None:
        options = OPTIONS[choose("preset", preset, OPTIONS)]
        init(self, **{"preset": preset, **options, **given})

    return from_preset


Config.__init__ = _from_preset(Config.__init__)

PRESETS = {name: Config(preset=name) for name in OPTIONS}
"""Named configurations. ``quick`` is sized for two CPU cores; ``early`` too: agents merge before
they have learned what their own data can teach them, and train on at the same rate, so that those
who stay alone end ahead; ``paper`` has the network, data,
number of agents and epochs of the published headline result (arXiv 2404.08079, table 2: ResNet-20
of width 8 on CIFAR-100). It matches as ``quick`` does; the published code on the images of all
agents: ``matching_data="shared", statistics_data="shared"``."""

EXAMPLES_PER_AGENT = 500
"""What ``examples_per_agent="auto"`` is of a data set that is named."""

LEARNING_RATES = {"sgd": 0.1, "momentum": 0.02, "adam": 1e-3, "adamw": 1e-3}
