"""CIFAR-10 if it can be had, else the synthetic shapes in its place."""

import logging

from dimat_jax.datasets import cifar, shapes
from dimat_jax.datasets.base import DataNotFoundError, Dataset, Directory

_log = logging.getLogger(__name__)


def load(data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Loads CIFAR-10 if it can be had, otherwise `shapes`, which then say so.

    Where there is no network, no more than 2 s go into finding that out.
    """
    try:
        return cifar.load_cifar10(data_dir, cache_dir)
    except DataNotFoundError as error:
        _log.warning("%s Taking synthetic shapes instead.", error)
        title = cifar.CIFAR10.title
        return shapes.load(data_dir, cache_dir)._replace(
            name=f"shapes (synthetic stand-in for {title})", stand_in_for=title
        )
