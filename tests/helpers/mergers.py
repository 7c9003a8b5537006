"""Populations and their mergers, for the tests of merging."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dimat_jax as dj
from dimat_jax.execution.placement import Execution, place, replicate, shard
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import Merger, make_merger
from helpers.small_runs import as_batch, execution_of, noise, preparer, random_variables

AGENTS, EXAMPLES, SHAPE = 8, 64, (8, 8, 3)
DATASET = noise(examples=AGENTS * EXAMPLES, size=8)


class Case(NamedTuple):
    """A model, where its agents run, and their merger."""

    model: dj.Model
    execution: Execution
    symmetries: dj.Symmetries
    merger: Merger
    stopwatch: Stopwatch


@functools.cache
def case(name) -> Case:
    """The MLP in the scanned form, two agents on each device; the convnet in the sequential one."""
    options = {"width": 0.03, "norm": "batch", "depth": 2} if name == "mlp" else {"width": 0.25}
    model = dj.models.make(name, num_classes=4, **options)
    execution = execution_of(AGENTS, 4, sequential=name == "convnet")
    return case_of(model, execution)


def case_of(model: dj.Model, execution: Execution) -> Case:
    """A model, and its merger in some form of execution."""
    image = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    task, batch = dj.classification(model), as_batch(image, jax.ShapeDtypeStruct((1,), jnp.int32))
    abstract = jax.eval_shape(task.init, jax.random.key(0), batch), batch
    symmetries, stopwatch = dj.find_symmetries(task.outputs, *abstract), Stopwatch()
    merger = make_merger(execution, task, symmetries, preparer(DATASET), abstract, stopwatch)
    return Case(model, execution, symmetries, merger, stopwatch)


def own_batches(execution: Execution, same=False) -> Batches:
    """Two batches of each agent's own images, or of images that all have alike."""
    images = DATASET.train_images.reshape(AGENTS, EXAMPLES, *SHAPE)
    images = images[[0] * AGENTS] if same else images
    lane = np.arange(AGENTS, dtype=np.int32) % execution.lanes
    rows = np.arange(EXAMPLES, dtype=np.int32) + EXAMPLES * lane[:, None]
    rows = rows.reshape(AGENTS, 2, -1)
    return Batches(*shard(execution, (rows, as_batch(images.reshape(-1, *SHAPE)))))


def shared_batches(execution: Execution) -> Batches:
    """Two batches of agent 0's images, which lie on every device."""
    rows = np.tile(np.arange(EXAMPLES, dtype=np.int32).reshape(1, 2, -1), (AGENTS, 1, 1))
    images = as_batch(jnp.asarray(DATASET.train_images[:EXAMPLES]))
    return Batches(place(execution, rows), replicate(execution, images), shared=True)


def population_of(case: Case):
    return place(case.execution, random_variables(case.model, SHAPE, AGENTS))
