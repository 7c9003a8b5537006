"""Language modelling: the cross-entropy of the next token."""

from typing import Any

import jax.numpy as jnp
import optax

from dimat_jax.registry import expect
from dimat_jax.types import Batch, Key, LogMean, Model, Task, Variables


def language_model(model: Model) -> Task:
    """The task of predicting each token of ``{"tokens": int [batch, length + 1]}`` but the first.

    The loss of an example is the cross-entropy in nats per token. Metrics, both over all tokens:
    ``accuracy``, and ``perplexity``, the exponential of the mean cross-entropy. Outputs: logits.

    Args:
      model: gives logits ``[batch, length, vocabulary]`` of tokens ``[batch, length]``, each from
        the tokens before and at its place.

    Raises:
      ValueError: for anything but a model.
    """
    expect("model", model, Model, "a dj.Model")

    def init(key: Key, batch: Batch) -> Variables:
        return model.init(key, batch["tokens"][:, :-1])

    def loss(
        variables: Variables, batch: Batch, key: Key | None = None, train: bool = False
    ) -> tuple[Any, dict[str, Any], Variables]:
        before, after = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits, state = model.apply(variables, before, train=train, key=key)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, after)
        count = jnp.full(len(nats), nats.shape[1])
        hits = (logits.argmax(-1) == after).sum(1)
        metrics = {"accuracy": (hits, count), "perplexity": LogMean(nats.sum(1), count)}
        return nats.mean(1), metrics, state

    def outputs(variables: Variables, batch: Batch) -> Any:
        return model.apply(variables, batch["tokens"][:, :-1])[0]

    return Task(init, loss, outputs)
