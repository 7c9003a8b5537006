"""Evaluation of one agent on test examples; `dimat_jax.execution` lifts it to all agents."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimat_jax.datasets.data import examples_of, take
from dimat_jax.execution.forms import Update
from dimat_jax.types import LogMean, Metric, Prepare, Task, Variables

LOSS = "loss"
"""What the task's loss is called among the metrics."""


class Total(NamedTuple):
    """What a metric adds up to: its value is ``sum / count``.

    Attributes:
      sum: of the examples' values. shape=()
      count: of examples, or of what they are made of. shape=()
    """

    sum: Float[Array, "*agents"]
    count: Float[Array, "*agents"]


class LogTotal(NamedTuple):
    """What a `LogMean` adds up to: its value is ``exp(sum / count)``; see `Total`."""

    sum: Float[Array, "*agents"]
    count: Float[Array, "*agents"]


class Score(NamedTuple):
    """What evaluation adds up; stacked with a leading ``agents`` axis.

    Attributes:
      totals: by metric, `LOSS` among them.
      classes: Σ of the accuracy over the examples of each class. shape=(classes,), or () without.
      batch: the next batch, int32. shape=()
    """

    totals: dict[str, Total | LogTotal]
    classes: Float[Array, "*agents_classes"]
    batch: Int[Array, "*agents"]


class Tests(NamedTuple):
    """Test examples in batches.

    Attributes:
      examples: a pytree ``[batches, batch, ...]``.
      weights: 1, or 0 of what fills up the last batch. shape=(batches, batch)
    """

    examples: Any
    weights: Float[np.ndarray | Array, "batches batch"]


def total_of(metric: Any) -> type[Total | LogTotal]:
    """What a `Metric`, or its shape, adds up to."""
    return LogTotal if isinstance(metric, LogMean) else Total


def zero_score(
    agents: int, metrics: Mapping[str, type[Total | LogTotal]], classes: int | None
) -> Score:
    """The score of every agent before any example, in buffers of its own: it will be donated.

    Args:
      agents: number of agents.
      metrics: what the task measures besides its loss, and what it adds up to.
      classes: how many there are; None: the examples have none.
    """

    def zeros(*shape: int) -> Array:
        return jnp.zeros((agents, *shape), jnp.result_type(float))

    kinds = {LOSS: Total, **metrics}
    totals = {name: kind(zeros(), zeros()) for name, kind in kinds.items()}
    of_classes = zeros() if classes is None else zeros(classes)
    return Score(totals, of_classes, jnp.zeros(agents, jnp.int32))


def values_of(score: Score) -> dict[str, Any]:
    """The value of each metric, from a score on the host: ``[agents]``, or a single number."""

    def value(total: Total | LogTotal) -> Any:
        mean = np.asarray(total.sum, float) / np.asarray(total.count, float)
        return np.exp(mean) if isinstance(total, LogTotal) else mean

    return {name: value(total) for name, total in score.totals.items()}


def test_batches(examples: Any, batch_size: int) -> Tests:
    """Cuts test examples into batches; the last is filled up with the first example."""
    number = examples_of(examples)
    batches = -(-number // batch_size)
    filled = batches * batch_size
    rows = np.arange(filled)
    cut = take(examples, np.where(rows < number, rows, 0))
    shape = batches, batch_size
    weights = (rows < number).astype(np.float32).reshape(shape)
    return Tests(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), cut), weights)


def evaluate_update(task: Task, prepare: Prepare, classes: int | None = None) -> Update:
    """Adds one batch of test examples to one agent's `Score`.

    The operands are its variables; the resident arrays are `Tests`.

    Args:
      task: what is measured.
      prepare: ``(batch) -> batch``, from examples as stored.
      classes: if given, the accuracy is added up by ``labels`` of the batch, too.
    """

    def update(score: Score, variables: Variables, resident: Tests) -> Score:
        batch, counts = take((resident.examples, resident.weights), score.batch)
        losses, metrics, _ = task.loss(variables, prepare(batch))

        def add(total: Total | LogTotal, metric: Metric) -> Total | LogTotal:
            values, each = metric if isinstance(metric, tuple) else (metric, counts)

            def plus(before: Array, x: Array) -> Array:
                return before + jnp.where(counts > 0, x.astype(before.dtype), 0).sum()

            return type(total)(plus(total.sum, values), plus(total.count, each))

        measured = {LOSS: losses, **metrics}
        totals = {name: add(total, measured[name]) for name, total in score.totals.items()}
        of_classes = score.classes
        if classes is not None:
            hits = metrics["accuracy"] * counts
            same = batch["labels"][:, None] == jnp.arange(classes)[None]
            of_classes += jnp.where(same, hits[:, None], 0).sum(0).astype(of_classes.dtype)
        return Score(totals, of_classes, score.batch + 1)

    return update
