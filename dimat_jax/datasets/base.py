"""What a data set is, and the check of one's own arrays."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32, Shaped, UInt8

from dimat_jax.registry import AUGMENTATIONS, attempt, check_number, choose, expect

Directory = str | os.PathLike | None
"""A folder; None: where such things lie by default."""


class Dataset(NamedTuple):
    """Images and labels on the host, possibly memory-mapped.

    The data sets of `dimat_jax.datasets` stand in no order of class: any stretch of one is a fair
    sample of it. One's own arrays may come in any order; see `check` for what is asked of them.

    Attributes:
      train_images: uint8 ``[examples, height, width, channels]``.
      train_labels: int32 ``[examples]``, from 0 to ``num_classes - 1``.
      test_images: uint8, images of the same shape as ``train_images``.
      test_labels: int32, as ``train_labels``.
      num_classes: how many classes there are.
      name: what to call it in tables and titles, where it says so if it is a part or a stand-in.
      augmentation: the name in `AUGMENTATIONS` of what suits its images in training.
      synthetic: whether its images were drawn by a program.
      stand_in_for: the name of the data set in whose place it was loaded, if it was.
    """

    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, " test"]
    num_classes: int
    name: str
    augmentation: str = "none"
    synthetic: bool = False
    stand_in_for: str | None = None


def data_directory(data_dir: Directory = None) -> Path:
    """``data_dir`` if given, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


class DataNotFoundError(ValueError):
    """A data set is neither on this machine nor to be downloaded."""


def check(dataset: Dataset) -> Dataset:
    """Checks a data set made of one's own arrays.

    Args:
      dataset: arrays of NumPy or JAX (or lists); labels of any integer dtype.

    Returns:
      The same data as host arrays of the dtypes that `Dataset` documents. What already is a NumPy
      array of that dtype is not copied.

    Raises:
      ValueError: if an array has the wrong shape or dtype, a split is empty, images and labels
        differ in number, training and test images in shape, labels lie outside
        ``0 .. num_classes - 1``, or another field is none that `Dataset` documents.
    """
    expect("dataset", dataset, Dataset, "a dj.Dataset")
    check_number("num_classes", dataset.num_classes, whole=True)
    if dataset.num_classes < 2:
        raise ValueError(f"num_classes is {dataset.num_classes}: it must be at least 2.")
    train = _check_split("train", dataset.train_images, dataset.train_labels, dataset.num_classes)
    test = _check_split("test", dataset.test_images, dataset.test_labels, dataset.num_classes)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"test_images are {test[0].shape[1:]} (height, width, channels), "
            f"train_images {train[0].shape[1:]}: they must be the same."
        )
    choose("augmentation of the data set", dataset.augmentation, AUGMENTATIONS)
    if not isinstance(dataset.synthetic, bool):
        raise ValueError(f"synthetic is {dataset.synthetic!r}: it must be True or False.")
    if not isinstance(dataset.stand_in_for, str | None):
        raise ValueError(
            f"stand_in_for is {dataset.stand_in_for!r}: it must be a data set's name, or None."
        )
    described = (str(dataset.name), dataset.augmentation, dataset.synthetic, dataset.stand_in_for)
    return Dataset(*train, *test, int(dataset.num_classes), *described)


def _check_split(
    split: str,
    images: Shaped[Array | np.ndarray, "..."] | list,
    labels: Shaped[Array | np.ndarray, "..."] | list,
    num_classes: int,
) -> tuple[UInt8[np.ndarray, "examples height width channels"], Int32[np.ndarray, " examples"]]:
    """Checks the images and labels of one split; see `check`."""
    images, labels = (
        attempt(f"{split}_{name} must be an array", np.asarray, values)
        for name, values in (("images", images), ("labels", labels))
    )
    if images.dtype != np.uint8:
        raise ValueError(
            f"{split}_images are {images.dtype}: they must be uint8, from 0 to 255 "
            "(normalisation happens on the device)."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{split}_images have shape {images.shape}: it must be "
            "[examples, height, width, channels], with at least one of each."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split}_labels are {labels.dtype} of shape {labels.shape}: they must be integers of "
            f"shape {images.shape[:1]}, one for each image."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{split}_labels go from {low} to {high}, but num_classes is {num_classes}: "
            f"they must lie between 0 and {num_classes - 1}."
        )
    return images, labels.astype(np.int32, copy=False)
