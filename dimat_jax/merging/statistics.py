"""Running statistics of normalisation layers, recomputed from data.

The statistics of an average of networks are not the average of their statistics. What DIMAT's
published code does after a merge (reset them, and average those of the training batches) is
done here for every method alike.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dimat_jax.execution.forms import Update, map_agents, repeat
from dimat_jax.execution.placement import Execution, zeros
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging.batches import Batches
from dimat_jax.types import Model, Prepare, Variables

RUNNING = ("mean", "var")
"""What Flax, Linen and NNX alike, calls the running statistics of a BatchNorm."""
LARGE = 2.0**60
"""A running statistic beside which no batch's own can be seen."""


def batch_statistics(model: Model, variables: Variables, x: Float[Array, "batch ..."]) -> Any:
    """The statistics of one batch itself, whatever momentum the model's BatchNorm has.

    A running statistic becomes ``m * old + (1 - m) * batch``. From ``old = 0`` that is the batch's
    share, and from an ``old`` that dwarfs the batch it is the momentum ``m``. Both come from one
    pass: all that depends on ``old`` is this line. (Its derivative would give ``m`` as well, but
    NNX stops gradients there.)

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
    if not running:
        return variables["batch_stats"]

    def take(leaves):
        return [leaves[i] for i in running]

    def replaced(values):
        new = list(leaves)
        for i, value in zip(running, values, strict=True):
            new[i] = value
        return structure.unflatten(new)

    def after(old):
        state = {**variables, "batch_stats": replaced(old)}
        _, state = model.apply(state, x, train=True, key=jax.random.key(0))
        return take(jax.tree.leaves(state["batch_stats"]))

    # BatchNorm of momentum m: from 0 comes (1 - m) batch, from LARGE comes m LARGE (to rounding).
    start = [jnp.stack([jnp.zeros_like(x), jnp.full_like(x, LARGE)]) for x in take(leaves)]
    return replaced([share / (1 - far / LARGE) for share, far in jax.vmap(after)(start)])


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
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x / total.batch.astype(x.dtype) if floating else x // total.batch.astype(x.dtype)

    return jax.tree.map(mean, total.total)


def make_recompute(
    execution: Execution,
    model: Model,
    normalise: Prepare,
    abstract: Variables,
    stopwatch: Stopwatch,
) -> Callable[[Variables, Batches], Variables]:
    """Builds ``(variables, batches) -> variables`` of all agents, with these batches' statistics.

    Args:
      execution: the form in which the population runs.
      model: the model of all agents.
      normalise: images as stored → what the model takes.
      abstract: shapes of one agent's variables.
      stopwatch: gets the compile time.
    """
    if "batch_stats" not in abstract:
        return lambda variables, batches: variables
    averaging = map_agents(execution, mean_statistics, stopwatch)
    update = statistics_update(model, normalise)
    counter = jax.ShapeDtypeStruct((), jnp.int32)

    @functools.cache
    def summing(spec: PartitionSpec) -> Callable[..., StatisticsSum]:
        return repeat(execution, update, stopwatch, spec)

    def recompute(variables: Variables, batches: Batches) -> Variables:
        nothing = StatisticsSum(*zeros(execution, (abstract["batch_stats"], counter)))
        operands = variables, batches.rows
        total = summing(batches.spec)(nothing, operands, batches.images, batches.number)
        return {**variables, "batch_stats": averaging(total)}

    return recompute
