"""Examples of any kind, on the host: pytrees of arrays, and what is done to a batch of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dimat_jax.datasets.augment import Augmentation, channel_statistics, normalize
from dimat_jax.datasets.base import Dataset
from dimat_jax.types import Batch, Key


class Data(NamedTuple):
    """Training and test examples, on the host, possibly memory-mapped.

    A batch is a pytree like ``train`` of some of its examples, gathered on the device.

    Attributes:
      train: a pytree whose leaves share a leading axis ``examples``.
      test: likewise, of the same structure.
      name: what to call it in tables and titles, where it says so if it is a part or a stand-in.
      labels: int ``[examples]`` of the training examples, for partitions that go by class; None:
        such partitions are refused.
      prepare: ``(batch) -> batch``, always: from what is stored to what the task takes.
      augment: ``(key, batch) -> batch``, in training, before ``prepare``.
      synthetic: whether it was drawn by a program.
      stand_in_for: the name of the data set in whose place it was loaded, if it was.
    """

    train: Any
    test: Any
    name: str
    labels: Int[np.ndarray, " examples"] | None = None
    prepare: Callable[[Batch], Batch] | None = None
    augment: Callable[[Key, Batch], Batch] | None = None
    synthetic: bool = False
    stand_in_for: str | None = None


def examples_of(tree: Any) -> int:
    """How many examples a pytree of arrays holds."""
    return len(jax.tree.leaves(tree)[0])


def take(tree: Any, rows: Any) -> Any:
    """The examples of these rows."""
    return jax.tree.map(lambda x: x[rows], tree)


def moments(values: np.ndarray, axes: int | tuple[int, ...]) -> tuple[Any, Any]:
    """The mean and standard deviation over these axes, float32; 1 of what is constant."""
    mean, std = (np.asarray(f(values, axes, np.float64)) for f in (np.mean, np.std))
    return np.float32(mean), np.float32(np.where(std > 1e-6, std, 1))


def of_images(dataset: Dataset, augmentation: Augmentation) -> Data:
    """Images with labels as `Data`: batches ``{"inputs", "labels"}``, normalised on the device.

    Args:
      dataset: uint8 or float images, and integer labels.
      augmentation: ``(key, images) -> images``, as stored.
    """
    floats = dataset.train_images.dtype != np.uint8
    images = dataset.train_images
    statistics = moments(images, (0, 1, 2)) if floats else channel_statistics(images)

    def prepare(batch: Batch) -> Batch:
        mean, std = (jnp.asarray(x, jnp.result_type(float)) for x in statistics)
        images = batch["inputs"]
        scaled = (images - mean) / std if floats else normalize(images, mean, std)
        return {**batch, "inputs": scaled}

    def augment(key: Key, batch: Batch) -> Batch:
        return {**batch, "inputs": augmentation(key, batch["inputs"])}

    return Data(
        train={"inputs": dataset.train_images, "labels": dataset.train_labels},
        test={"inputs": dataset.test_images, "labels": dataset.test_labels},
        name=dataset.name,
        labels=dataset.train_labels,
        prepare=prepare,
        augment=augment,
        synthetic=dataset.synthetic,
        stand_in_for=dataset.stand_in_for,
    )
