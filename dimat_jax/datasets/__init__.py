"""Image classification data sets, by name, as uint8 arrays on the host."""

import functools
import logging
import os
from collections.abc import Callable

from dimat_jax.datasets import cifar, digits, shapes, tiny_imagenet
from dimat_jax.datasets.augment import AUGMENTATIONS as AUGMENTATIONS
from dimat_jax.datasets.augment import Augmentation as Augmentation
from dimat_jax.datasets.augment import channel_statistics as channel_statistics
from dimat_jax.datasets.augment import flip_and_crop as flip_and_crop
from dimat_jax.datasets.augment import normalize as normalize
from dimat_jax.datasets.base import DataNotFoundError as DataNotFoundError
from dimat_jax.datasets.base import Dataset as Dataset
from dimat_jax.datasets.base import check as check
from dimat_jax.registry import choose

_log = logging.getLogger(__name__)

Directory = str | os.PathLike | None


def load_auto(data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Loads CIFAR-10 if it can be had, otherwise `shapes`, which then say so.

    Where there is no network, no more than 2 s go into finding that out.
    """
    try:
        return cifar.load(cifar.CIFAR10, data_dir, cache_dir)
    except DataNotFoundError as error:
        _log.warning("%s Taking synthetic shapes instead.", error)
        title = cifar.CIFAR10.title
        return shapes.load(data_dir, cache_dir)._replace(
            name=f"shapes (synthetic stand-in for {title})", stand_in_for=title
        )


SOURCES: dict[str, Callable[[Directory, Directory], Dataset]] = {
    "auto": load_auto,
    "cifar10": functools.partial(cifar.load, cifar.CIFAR10),
    "cifar100": functools.partial(cifar.load, cifar.CIFAR100),
    "tiny_imagenet": tiny_imagenet.load,
    "digits": digits.load,
    "shapes": shapes.load,
}
"""Name → ``load(data_dir, cache_dir)``."""


def load(name: str, data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Loads a data set by name.

    Args:
      name: one of `SOURCES`; ``auto`` is CIFAR-10 if it can be had, otherwise ``shapes``.
      data_dir: where to look for data, and download it to: by default ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.
      cache_dir: where decoded arrays are kept and memory-mapped from: by default
        ``$XDG_CACHE_HOME/dimat_jax``, else ``~/.cache/dimat_jax``.

    Returns:
      The data set. Its ``name`` is what to call it in tables and titles: what was really loaded.

    Raises:
      DataNotFoundError: (a ValueError) if it can be had neither here nor from the network.
      ValueError: for an unknown name (with the nearest one), or damaged data (which file).
    """
    return SOURCES[choose("data set", name, SOURCES)](data_dir, cache_dir)
