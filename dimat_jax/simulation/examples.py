"""The examples of a run, on the devices: the agents' shards, batches to match on, tests."""

from typing import Any, NamedTuple

import jax
import numpy as np

from dimat_jax.datasets.data import Data, examples_of, take
from dimat_jax.execution.placement import (
    FORWARD_BATCH,
    own_lanes,
    pad,
    place,
    replicate,
    shard,
    shard_own,
)
from dimat_jax.merging.batches import Batches
from dimat_jax.simulation.setup import Setup
from dimat_jax.training.evaluation import Tests, test_batches
from dimat_jax.training.local import epoch_order
from dimat_jax.types import Key

POOLED_EXAMPLES = 1024


class Shards(NamedTuple):
    """The agents' training examples, where they lie on the devices.

    Attributes:
      examples: a pytree ``[lanes * number, ...]``; each device holds its agents'.
      number: examples of each agent.
      steps: batches of an epoch.
    """

    examples: Any
    number: int
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
    # Of several processes each takes the examples of its own agents.
    rows = pad(setup.execution, rows)[own_lanes(setup.execution)].reshape(-1)
    examples = shard_own(setup.execution, take(setup.data.train, rows))
    steps = setup.epoch_examples[part] // setup.batch_size
    return Shards(examples, setup.shards[seed][part].shape[1], steps)


def own_batches(setup: Setup, shards: Shards, key: Key, number: int) -> Batches:
    """Up to so many of each agent's own examples, drawn for each key."""
    execution = setup.execution
    batches, size = split_evenly(min(number, shards.number))
    # A random order of each agent's shard, as for training, of which only the beginning is used.
    order = epoch_order(
        key,
        0,
        execution.agents,
        shards.number,
        batches,
        size,
        execution.lanes,
        execution.all_lanes,
    )
    return Batches(shard(execution, order), shards.examples)


def common_batches(setup: Setup, shards: Shards, key: Key, number: int, agents: int) -> Batches:
    """Up to so many examples that are the same for all: of so many agents, the first ones."""
    pool = shards.number * agents
    batches, size = split_evenly(min(number, pool))
    drawn = jax.random.permutation(key, pool)[: batches * size]
    # Drawn from the shards as they lie on the devices, then copied to all: rows count from 0.
    rows = np.arange(batches * size, dtype=np.int32).reshape(1, batches, size)
    rows = place(setup.execution, np.tile(rows, (setup.execution.agents, 1, 1)))
    examples = replicate(setup.execution, take(shards.examples, drawn))
    return Batches(rows, examples, shared=True)


def pooled_batches(setup: Setup, shards: Shards, key: Key) -> Batches:
    """A batch for each agent of examples of all of them, `POOLED_EXAMPLES` or more in all.

    Nothing is counted as sent for it: it is there for what a run measures of one network.
    """
    agents, pool = setup.execution.agents, shards.number * setup.execution.agents
    size = min(shards.number, max(FORWARD_BATCH, POOLED_EXAMPLES // agents))
    drawn = jax.random.permutation(key, pool)[: agents * size]
    examples = replicate(setup.execution, take(shards.examples, drawn))
    rows = np.arange(agents * size, dtype=np.int32).reshape(agents, 1, size)
    return Batches(place(setup.execution, rows), examples, shared=True)


def split_evenly(number: int) -> tuple[int, int]:
    """The number of batches, and their size, for so many examples."""
    batches = -(-number // FORWARD_BATCH)
    return batches, number // batches


def some_tests(data: Data, number: int | None) -> Tests:
    """A fixed part of the test examples, in batches: the same in every run."""
    rows = np.arange(examples_of(data.test))
    if number is not None and number < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:number])
    return test_batches(take(data.test, rows), min(FORWARD_BATCH, len(rows)))
