"""Running statistics of normalisation layers, recomputed from data.

The statistics of an average of networks are not the average of their statistics. What DIMAT's
published code does after a merge (reset them, and average those of the training batches anew) is
done here for every method alike.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dimat_jax.population import Update
from dimat_jax.types import Model, Prepare, Variables

RUNNING = ("mean", "var")
"""What Flax, Linen and NNX alike, calls the running statistics of a BatchNorm."""


def batch_statistics(model: Model, variables: Variables, x: Float[Array, "batch ..."]) -> Any:
    """The statistics of one batch itself, whatever momentum the model's BatchNorm has.

    A running statistic becomes ``m * old + (1 - m) * batch``, with the momentum ``m`` as its
    derivative by ``old``: one forward-mode pass from ``old = 0`` gives both, at no extra cost.

    Args:
      model: the model.
      variables: its variables.
      x: a batch of what the model takes.

    Returns:
      A pytree like ``variables["batch_stats"]``. What is not the running mean or variance of a
      normalisation layer (spectral norm's vector, say) is returned as it was given.
    """
    with_paths, structure = jax.tree.flatten_with_path(variables["batch_stats"])
    leaves = [leaf for _, leaf in with_paths]
    running = [i for i, (path, _) in enumerate(with_paths) if path[-1].key in RUNNING]

    def replaced(values):
        new = list(leaves)
        for i, value in zip(running, values, strict=True):
            new[i] = value
        return structure.unflatten(new)

    def after(old):
        state = {**variables, "batch_stats": replaced(old)}
        _, state = model.apply(state, x, train=True, key=jax.random.key(0))
        new = jax.tree.leaves(state["batch_stats"])
        return [new[i] for i in running]

    zeros = [jnp.zeros_like(leaves[i]) for i in running]
    ones = [jnp.ones_like(leaves[i]) for i in running]
    new, momentum = jax.jvp(after, (zeros,), (ones,))
    return replaced([n / (1 - m) for n, m in zip(new, momentum, strict=True)])


class StatisticsSum(NamedTuple):
    """What recomputation adds up; stacked with a leading ``agents`` axis.

    Attributes:
      total: sum of the batches' statistics, like ``variables["batch_stats"]``.
      batch: the next batch, int32. shape=()
    """

    total: Any
    batch: Int[Array, "*agents"]


def statistics_update(model: Model, normalise: Prepare) -> Update:
    """Adds the statistics of one batch to one agent's `StatisticsSum`.

    The operands are its variables and the rows of its batches ``[batches, batch]``; the resident
    arrays are the images ``[rows, height, width, channels]`` on its device.
    """

    def update(carry: StatisticsSum, operands: Any, images: Any) -> StatisticsSum:
        variables, rows = operands
        x = normalise(images[rows[carry.batch]])
        statistics = batch_statistics(model, variables, x)
        return StatisticsSum(jax.tree.map(jnp.add, carry.total, statistics), carry.batch + 1)

    return update


def mean_statistics(total: StatisticsSum) -> Any:
    """The mean of one agent's batches' statistics, like ``variables["batch_stats"]``."""

    def mean(x):
        return x / total.batch.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(mean, total.total)
