"""Tables that scikit-learn ships, with features standardised by those of the training examples."""

import numpy as np

from dimat_jax.datasets.base import Directory
from dimat_jax.datasets.data import Data, moments, take

TEST_SHARE = 0.2


def load_breast_cancer(data_dir: Directory = None, cache_dir: Directory = None) -> Data:
    """Loads Breast Cancer Wisconsin (diagnostic): 569 cases of 30 features, malignant or benign.

    Source: Street, Wolberg, Mangasarian 1993.

    Args:
      data_dir: not used; scikit-learn brings the data along.
      cache_dir: not used.
    """
    from sklearn.datasets import load_breast_cancer as read

    features, labels = map(np.asarray, read(return_X_y=True))
    return of_table(features, labels.astype(np.int32), "labels", "breast cancer (Wisconsin)")


def load_diabetes(data_dir: Directory = None, cache_dir: Directory = None) -> Data:
    """Loads the diabetes data: 442 patients of 10 features, and the progression after a year.

    Targets are standardised like features. Source: Efron, Hastie, Johnstone, Tibshirani 2004.

    Args:
      data_dir: not used; scikit-learn brings the data along.
      cache_dir: not used.
    """
    from sklearn.datasets import load_diabetes as read

    features, targets = map(np.asarray, read(return_X_y=True))
    return of_table(features, targets, "targets", "diabetes")


def of_table(features: np.ndarray, targets: np.ndarray, kind: str, name: str) -> Data:
    """A table as examples ``{"inputs": float32 [batch, features], kind: ...}``.

    Args:
      features: float ``[examples, features]``.
      targets: integer labels, or numbers to predict. ``[examples]``
      kind: ``labels`` or ``targets``.
      name: what to call it.
    """
    order = np.random.default_rng(0).permutation(len(features))
    cut = round(TEST_SHARE * len(order))
    test, train = order[:cut], order[cut:]
    inputs = standardised(features, train)
    if kind == "targets":
        targets = standardised(targets[:, None], train)
    whole = {"inputs": inputs, kind: targets}
    labels = targets[train] if kind == "labels" else None
    return Data(take(whole, train), take(whole, test), name, labels)


def standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1 over the training examples, float32."""
    mean, std = moments(values[train], 0)
    return ((values - mean) / std).astype(np.float32)
