"""Classification: softmax cross-entropy and accuracy."""

from typing import Any

import jax
import optax

from dimat_jax.registry import check_number, expect
from dimat_jax.types import Batch, Key, Model, Task, Variables


def classification(model: Model, label_smoothing: float = 0.0) -> Task:
    """The task of classifying ``{"inputs": [batch, ...], "labels": int [batch]}``.

    Metrics: ``accuracy``. Outputs: the logits.

    Args:
      model: gives logits ``[batch, classes]``.
      label_smoothing: share of a label that is spread over all classes in training.

    Raises:
      ValueError: for anything but a model, or a share that is none.
    """
    expect("model", model, Model, "a dj.Model")
    check_number("label_smoothing", label_smoothing, least=0, most=1)

    def init(key: Key, batch: Batch) -> Variables:
        return model.init(key, batch["inputs"])

    def loss(
        variables: Variables, batch: Batch, key: Key | None = None, train: bool = False
    ) -> tuple[Any, dict[str, Any], Variables]:
        logits, after = model.apply(variables, batch["inputs"], train=train, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        if train and label_smoothing:
            # The cross-entropy with a share spread evenly: its mean over all classes.
            even = -jax.nn.log_softmax(logits).mean(-1)
            losses = (1 - label_smoothing) * losses + label_smoothing * even
        return losses, {"accuracy": logits.argmax(-1) == batch["labels"]}, after

    def outputs(variables: Variables, batch: Batch) -> Any:
        return model.apply(variables, batch["inputs"])[0]

    return Task(init, loss, outputs)
