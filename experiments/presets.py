"""What `experiments.paper` and `experiments.tune` run, by preset, and how long that takes."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from dimat_jax.config import PRESETS, Config
from dimat_jax.registry import METHODS
from experiments.grid import Cell, Rates, Setting

PAPER = ("local_only", "dimat", "dimat_once", "dimat_plus", "wm", "wa", "wa_published")
PAPER += ("final_dimat", "final_wa", "cdsgd", "cdmsgd", "sgp", "cga")
PAPER += ("sparse_final_wa", "sparse_final_dimat")
MODERN = ("sgp_nesterov", "dsgd_nesterov", "d2", "gradient_tracking", "qg_dsgdm_n", "relay_sgd")
REFERENCES = ("fedavg", "centralized", "centralized_nesterov")
"""Reference points, which do not depend on the graph."""
FROM_COMMON = ("local_only", "dimat", "wa", "cdsgd", "sgp", "dsgd_nesterov", "gradient_tracking")
FROM_COMMON += ("qg_dsgdm_n", *REFERENCES)
"""The methods of the regime ``common`` on two CPU cores."""

BESIDE = ("local_only", "dimat", "dimat_plus", "wa", "dsgd_nesterov", "gradient_tracking")
BESIDE += ("qg_dsgdm_n",)
"""Those that are compared beside the paper's settings, on other data, norms and graphs."""
ONCE_A_ROUND = ("local_only", "dimat", "dimat_plus", "wa", "dsgd", "dsgd_nesterov", "sgp", "cdsgd")
ONCE_A_ROUND += ("gradient_tracking", "qg_dsgdm_n")
"""Merging methods, and those that exchange in steps, which here are as rare as merges."""

APART = ("local_only", "dimat", "wa", "cdsgd", "cga")
"""Methods of the paper that a graph without edges leaves as they are; others refuse it."""


PUBLISHED_RATES = {
    partition: dict.fromkeys(
        ("cdsgd", "cdmsgd", "sgp", "cga", *MODERN, "dsgd", *REFERENCES[1:]), 0.01
    )
    for partition in ("iid", "by_class", "pretrain_iid_finetune_by_class")
}
"""Of the published experiments' CDSGD, SGP and CGA, and here of all that exchange in every step."""


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all its cells share.
      cells: in the order in which they run.
      most_tests: of the test images that the final accuracy is of; None: all.
      reduced: what is other than in the paper, in a sentence; empty if nothing is.
      rates: learning rates in the rounds, as published; None: those that `experiments.tune` found.
    """

    base: Config
    cells: tuple[Cell, ...]
    most_tests: int | None
    reduced: str
    rates: Rates | None = None


def cpu_cells() -> Iterable[Cell]:
    """Two CPU cores: CIFAR-10 and the convnet, the reference points on the ring alone."""
    fixed = dict(dataset="cifar10", model="convnet", width=1.0)
    for seed in range(3):
        for partition, topology in itertools.product(
            ("iid", "by_class"), ("ring", "fully_connected")
        ):
            setting = Setting(
                partition=partition, topology=topology, agents=5, regime="pretrained", **fixed
            )
            yield Cell(setting, seed, PAPER + MODERN + REFERENCES * (topology == "ring"))
        for setting, methods in beside(**fixed):
            yield Cell(setting, seed, methods)
        if seed > 0:
            continue
        ring = dict(topology="ring", **fixed)
        for partition in ("iid", "by_class"):
            setting = Setting(partition=partition, agents=5, regime="common", **ring)
            yield Cell(setting, seed, FROM_COMMON)
        setting = Setting(partition="iid", agents=10, regime="pretrained", **ring)
        yield Cell(setting, seed, PAPER + MODERN + REFERENCES)


def beside(**fixed: Any) -> Iterable[tuple[Setting, tuple[str, ...]]]:
    """What the paper lacks, one thing at a time: norms, partitions, graphs, equal bytes."""
    ring = Setting(partition="iid", topology="ring", agents=5, regime="pretrained", **fixed)
    yield ring._replace(partition="by_class", norm="group"), BESIDE
    for alpha in (0.1, 0.5):
        yield ring._replace(partition="dirichlet", alpha=alpha), BESIDE
    yield ring._replace(topology="digraph"), ("local_only", "sgp", "sgp_nesterov")
    yield ring._replace(topology="random_peers"), BESIDE
    steps = CPU_EXAMPLES // CPU_BATCH
    for partition in ("iid", "by_class"):
        yield ring._replace(partition=partition, gossip_every=steps), ONCE_A_ROUND


def full_cells() -> Iterable[Cell]:
    """The paper's settings: its main comparison, and beyond it on CIFAR-100."""
    main = itertools.product(
        ("pretrained", "common"),
        ("cifar100", "cifar10", "tiny_imagenet"),
        ("iid", "by_class"),
        ("fully_connected", "ring"),
        (5, 10),
        (("resnet20", 8.0), ("vgg16", 1.0)),
    )
    more = itertools.product(
        ("pretrained",),
        ("cifar100",),
        ("iid", "by_class", "pretrain_iid_finetune_by_class"),
        ("fully_connected", "ring", "bipartite", "disconnected"),
        (2, 5, 10, 20),
        (("resnet20", 8.0), ("resnet50", 1.0)),
    )
    chosen = dict.fromkeys((*main, *more))
    for seed, (regime, dataset, partition, topology, agents, size) in itertools.product(
        range(5), chosen
    ):
        setting = Setting(dataset, partition, topology, agents, *size, regime)
        yield Cell(setting, seed, APART if topology == "disconnected" else tuple(METHODS))


def smoke_cells() -> Iterable[Cell]:
    """Every regime and both partitions once, on digits."""
    for seed, (partition, regime) in itertools.product(
        range(2), (("iid", "pretrained"), ("by_class", "common"))
    ):
        setting = Setting("digits", partition, "ring", 3, "mlp", 0.1, regime)
        yield Cell(setting, seed, ("dimat", "wa", "cdsgd", "qg_dsgdm_n"))


CPU_EXAMPLES, CPU_BATCH = 800, 50

CPU = Config(
    round_rate=1.0,
    optimizer_after_merge="fresh",
    merge_at_end=True,
    merge_frame="reference",
    align_every=1,
    evaluate_every=2,
    examples_per_agent=CPU_EXAMPLES,
    batch_size=CPU_BATCH,
    pretrain_epochs=8,
    rounds=4,
    epochs_per_round=1,
    test_examples=1000,
    matching_images=512,
    statistics_images=512,
)

STUDIES = {
    "cpu": Study(
        CPU,
        tuple(cpu_cells()),
        2000,
        "a 3-layer convolutional network instead of ResNet-20 of width 8 and VGG16; CIFAR-10; "
        "800 training images per agent instead of 10,000; 8 epochs of pretraining (momentum SGD) "
        "instead of 100 (Adam); 4 rounds of 1 epoch instead of 100 of 2; 3 seeds (1 with 10 agents "
        "and from a common initialisation) instead of 5; accuracy along the way on 1,000 test "
        "images, at the end on 2,000",
    ),
    "full": Study(
        dataclasses.replace(
            PRESETS["paper"],
            schedule="exponential",
            merge_frame="reference",
            matching_data="shared",
            statistics_data="shared",
            matching_images=100_000,
            statistics_images=100_000,
        ),
        tuple(full_cells()),
        None,
        "BatchNorm statistics are recomputed for every method but WA (published), there for DIMAT "
        "alone; SGP has its push-sum weights; images are drawn and augmented from other random "
        "numbers; methods that the paper lacks take the learning rate of its baselines",
        PUBLISHED_RATES,
    ),
    "smoke": Study(
        dataclasses.replace(
            CPU,
            examples_per_agent=100,
            batch_size=20,
            pretrain_epochs=2,
            rounds=2,
            matching_images=32,
            statistics_images=32,
            test_examples=100,
        ),
        tuple(smoke_cells()),
        200,
        "everything: a check that all parts work, whose numbers mean nothing",
    ),
}
"""``cpu``: about 90 minutes on two slow cores; ``full``: the paper's; ``smoke``: a minute."""

IMAGES_PER_SECOND = {
    "mlp": 30_000.0,
    "convnet": 6_000.0,
    "resnet20": 350.0,
    "vgg16": 45.0,
    "resnet50": 11.0,
}
"""Training at width 1 on 32 × 32 images by two CPU cores, all agents together: convnet and resnet20
as measured (convnet by 4,500 to 14,000 with compiled kernels, as the machine is), vgg16 and
resnet50 from their multiply-adds. It falls with the square of the width."""
EXAMPLES = {"cifar10": 50_000, "cifar100": 50_000, "tiny_imagenet": 100_000, "digits": 1_437}
TESTS = {"cifar10": 10_000, "cifar100": 10_000, "tiny_imagenet": 10_000, "digits": 360}
COMPILATION = 12.0, 2.0
"""Seconds: once a cell, and for each method."""


def expected_seconds(config: Config, most_tests: int | None) -> float:
    """A guess at the time of a cell on two quiet CPU cores.

    Training, CGA with a gradient for each neighbour; a forward pass costs a third of a training
    step, and is counted for evaluation, matching and statistics.
    """
    size = 4 if config.dataset == "tiny_imagenet" else 1
    speed = IMAGES_PER_SECOND[config.model] / config.width**2 / size
    share = EXAMPLES[config.dataset] // config.agents
    assert config.examples_per_agent != "auto"
    examples = min(config.examples_per_agent or share, share)
    neighbors = config.agents - 1 if config.topology == "fully_connected" else 2
    gradients = sum(1 + neighbors * (method == "cga") for method in config.methods)
    epochs = config.pretrain_epochs + gradients * config.rounds * config.epochs_per_round
    tests = min(most_tests or TESTS[config.dataset], TESTS[config.dataset])
    along = min(config.test_examples or tests, tests)
    merging = sum(METHODS[method].merge is not None for method in config.methods)
    evaluated = len(config.methods) * (config.rounds * along + tests)
    merged = along + config.statistics_images + (1 + neighbors) * config.matching_images
    forward = evaluated + merging * config.rounds * merged
    images = config.agents * (epochs * examples + forward / 3)
    once, each = COMPILATION
    return images / speed + once + each * len(config.methods)
