"""Regression: squared error and R²."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dimat_jax.registry import attempt, expect
from dimat_jax.types import Batch, Key, Model, Task, Variables


def regression(model: Model, mean: Any = 0.0) -> Task:
    """The task of predicting ``{"inputs": [batch, ...], "targets": float [batch, ...]}``.

    The loss is the squared error, in the mean over a target's numbers. Metrics: ``r2``, 1 − Σ (y −
    ŷ)² / Σ (y − mean)², exact whatever the batches. Outputs: the predictions.

    Args:
      model: gives predictions ``[batch, outputs]``, as many as a target has numbers.
      mean: of the targets, from which R² counts; 0 of those that are standardised.

    Raises:
      ValueError: for anything but a model, or a mean that is none.
    """
    expect("model", model, Model, "a dj.Model")
    mean = attempt("mean must be of numbers", np.asarray, mean, float)

    def predictions(variables: Variables, batch: Batch, **options: Any) -> tuple[Any, Variables]:
        given, after = model.apply(variables, batch["inputs"], **options)
        return given.reshape(batch["targets"].shape), after

    def init(key: Key, batch: Batch) -> Variables:
        return model.init(key, batch["inputs"])

    def loss(
        variables: Variables, batch: Batch, key: Key | None = None, train: bool = False
    ) -> tuple[Any, dict[str, Any], Variables]:
        given, after = predictions(variables, batch, train=train, key=key)
        targets = batch["targets"]
        others = tuple(range(1, targets.ndim))
        losses = jnp.square(given - targets).mean(others)
        spread = jnp.square(targets - mean).mean(others)
        return losses, {"r2": (spread - losses, spread)}, after

    def outputs(variables: Variables, batch: Batch) -> Any:
        return predictions(variables, batch)[0]

    return Task(init, loss, outputs)
