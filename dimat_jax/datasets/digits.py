"""The 8 × 8 digits that scikit-learn ships: real data, and no download."""

import importlib.metadata

import numpy as np

from dimat_jax.datasets.base import Dataset, Directory
from dimat_jax.datasets.cache import cached

TEST_EXAMPLES = 360


def load(data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Loads scikit-learn's digits, 1,437 for training and 360 for testing, split by class.

    The intensities, 0 to 16, are scaled to 0 to 255. Source: E. Alpaydin and C. Kaynak, Optical
    Recognition of Handwritten Digits, UCI Machine Learning Repository (1998), its test part.

    Args:
      data_dir: not used; scikit-learn brings the data along.
      cache_dir: where the arrays are kept; see `dimat_jax.datasets.cache`.

    Returns:
      Images of shape ``[examples, 8, 8, 1]``, ten classes. The split is always the same.
    """
    return cached("digits", [importlib.metadata.version("scikit-learn")], _build, cache_dir)


def _build() -> Dataset:
    """Reads scikit-learn's arrays and splits them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, targets = map(np.asarray, load_digits(return_X_y=True))
    images = np.round(255 / 16 * values).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = targets.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_EXAMPLES, stratify=targets.tolist(), random_state=0
    )
    return Dataset(train_images, train_labels, test_images, test_labels, 10, "digits")
