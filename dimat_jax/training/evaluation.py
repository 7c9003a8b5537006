"""Evaluation of one agent on test images; `dimat_jax.execution` lifts it to all agents."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from dimat_jax.execution.forms import Update
from dimat_jax.types import Model, Prepare, Variables


class Score(NamedTuple):
    """What evaluation adds up; stacked with a leading ``agents`` axis.

    Attributes:
      correct: number of test images of each class classified correctly, int32. shape=(classes,)
      loss: sum of their losses. shape=()
      batch: the next batch, int32. shape=()
    """

    correct: Int[Array, "*agents classes"]
    loss: Float[Array, "*agents"]
    batch: Int[Array, "*agents"]


def zero_score(agents: int, classes: int) -> Score:
    """The score of every agent before any image, in buffers of its own: it will be donated."""
    return Score(
        correct=jnp.zeros((agents, classes), jnp.int32),
        loss=jnp.zeros(agents, jnp.result_type(float)),
        batch=jnp.zeros(agents, jnp.int32),
    )


def test_batches(
    images: UInt8[np.ndarray, "examples height width channels"],
    labels: Int[np.ndarray, "examples"],
    batch_size: int,
) -> tuple[UInt8[np.ndarray, "batches batch ..."], Int[np.ndarray, "batches batch"]]:
    """Cuts test images into batches; the last is filled up with the label -1, "none"."""
    batches = -(-len(images) // batch_size)
    missing = batches * batch_size - len(images)
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    labels = np.concatenate([labels, np.full(missing, -1)]).astype(np.int32)
    shape = batches, batch_size
    return images.reshape(*shape, *images.shape[1:]), labels.reshape(shape)


def evaluate_update(model: Model, normalise: Prepare) -> Update:
    """Adds one batch of test images to one agent's `Score`.

    The operands are its variables; the resident arrays are those of `test_batches`.
    """

    def update(score: Score, variables: Variables, resident: Any) -> Score:
        images, labels = resident
        y = labels[score.batch]
        logits, _ = model.apply(variables, normalise(images[score.batch]))
        # Images that fill up the last batch have the label -1: no class is that, and none may be
        # looked up.
        hits = (logits.argmax(-1) == y)[:, None] & (
            y[:, None] == jnp.arange(logits.shape[-1])[None]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return Score(
            correct=score.correct + hits.sum(0, dtype=jnp.int32),
            loss=score.loss + jnp.where(y >= 0, losses, 0).sum().astype(score.loss.dtype),
            batch=score.batch + 1,
        )

    return update
