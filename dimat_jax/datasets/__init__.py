"""Image classification data sets, by name, as uint8 arrays on the host; what augments them.

Knows neither of agents nor of models: may import `types`, `registry` and `jaxprs`. Adding one: a
file with ``load(data_dir, cache_dir)``, and a line in `dimat_jax.registry`.
"""

import os
from collections.abc import Callable, Mapping

from dimat_jax import registry
from dimat_jax.datasets.augment import Augmentation as Augmentation
from dimat_jax.datasets.augment import channel_statistics as channel_statistics
from dimat_jax.datasets.augment import flip_and_crop as flip_and_crop
from dimat_jax.datasets.augment import normalize as normalize
from dimat_jax.datasets.base import DataNotFoundError as DataNotFoundError
from dimat_jax.datasets.base import Dataset as Dataset
from dimat_jax.datasets.base import Directory
from dimat_jax.datasets.base import check as check

SOURCES: Mapping[str, Callable[[Directory, Directory], Dataset]] = registry.DATASETS
"""Name → ``load(data_dir, cache_dir)``."""

AUGMENTATIONS: Mapping[str, Augmentation] = registry.AUGMENTATIONS
"""Name → augmentation."""


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
    for argument, value in (("data_dir", data_dir), ("cache_dir", cache_dir)):
        registry.expect(argument, value, str | os.PathLike | None, "a path, or None")
    return SOURCES[registry.choose("data set", name, SOURCES)](data_dir, cache_dir)
