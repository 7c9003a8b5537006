"""The images of a run, on the devices: the agents' shards, batches to match on, test images."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

from dimat_jax.datasets import Dataset
from dimat_jax.execution.placement import FORWARD_BATCH, pad, place, replicate, shard
from dimat_jax.merging.batches import Batches
from dimat_jax.simulation.setup import Setup
from dimat_jax.training.evaluation import test_batches
from dimat_jax.training.local import epoch_order
from dimat_jax.types import Key

POOLED_IMAGES = 1024


class Shards(NamedTuple):
    """The agents' training examples, where they lie on the devices.

    Attributes:
      images: uint8 ``[lanes * examples, height, width, channels]``; each device holds its agents'.
      labels: int32 ``[lanes * examples]``.
      examples: rows of each agent.
      steps: batches of an epoch.
    """

    images: UInt8[Array, "rows height width channels"]
    labels: Int[Array, "rows"]
    examples: int
    steps: int


def place_shards(setup: Setup, seed: int, part: int, pooled: bool = False) -> Shards:
    """Puts the agents' examples on their devices.

    Args:
      setup: what the run works with.
      seed: of the run.
      part: for pretraining (0) or the rounds (1).
      pooled: whether the examples of all agents are dealt out to them at random.
    """
    rows = setup.shards[seed][part]
    if pooled:
        rows = np.random.default_rng(seed).permutation(rows.ravel()).reshape(rows.shape)
    rows = pad(setup.execution, rows).reshape(-1)
    images, labels = setup.dataset.train_images[rows], setup.dataset.train_labels[rows]
    images, labels = shard(setup.execution, (images, labels))
    steps = setup.epoch_examples[part] // setup.batch_size
    return Shards(images, labels, setup.shards[seed][part].shape[1], steps)


def own_batches(setup: Setup, shards: Shards, key: Key, number: int) -> Batches:
    """Up to so many of each agent's own images, drawn for each key."""
    execution = setup.execution
    batches, size = split_evenly(min(number, shards.examples))
    # A random order of each agent's shard, as for training, of which only the beginning is used.
    order = epoch_order(
        key,
        0,
        execution.agents,
        shards.examples,
        batches,
        size,
        execution.lanes,
        execution.all_lanes,
    )
    return Batches(shard(execution, order), shards.images)


def common_batches(setup: Setup, shards: Shards, key: Key, number: int, agents: int) -> Batches:
    """Up to so many images that are the same for all: of so many agents, the first ones."""
    pool = shards.examples * agents
    batches, size = split_evenly(min(number, pool))
    images = shards.images[jax.random.permutation(key, pool)[: batches * size]]
    # Drawn from the shards as they lie on the devices, then copied to all: rows count from 0.
    rows = np.arange(batches * size, dtype=np.int32).reshape(1, batches, size)
    rows = place(setup.execution, np.tile(rows, (setup.execution.agents, 1, 1)))
    return Batches(rows, replicate(setup.execution, images), shared=True)


def pooled_batches(setup: Setup, shards: Shards, key: Key) -> Batches:
    """A batch for each agent of images of all of them, `POOLED_IMAGES` or more in all.

    Nothing is counted as sent for it: it is there for what a run measures of one network.
    """
    agents, pool = setup.execution.agents, shards.examples * setup.execution.agents
    size = min(shards.examples, max(FORWARD_BATCH, POOLED_IMAGES // agents))
    images = shards.images[jax.random.permutation(key, pool)[: agents * size]]
    rows = np.arange(agents * size, dtype=np.int32).reshape(agents, 1, size)
    return Batches(place(setup.execution, rows), replicate(setup.execution, images), shared=True)


def split_evenly(number: int) -> tuple[int, int]:
    """The number of batches, and their size, for so many images."""
    batches = -(-number // FORWARD_BATCH)
    return batches, number // batches


def some_tests(dataset: Dataset, number: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A fixed part of the test images, in batches: the same in every run, of every class."""
    rows = np.arange(len(dataset.test_labels))
    if number is not None and number < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:number])
    return test_batches(
        dataset.test_images[rows], dataset.test_labels[rows], min(FORWARD_BATCH, len(rows))
    )
