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
from jax.extend.core import JaxprEqn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dimat_jax.execution.forms import Update, repeat
from dimat_jax.execution.placement import Execution, zeros
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.jaxprs import Path, called, evaluate, scan_of
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
      normalisation layer (spectral norm's vector, say), or is not moved by training (of a layer
      that is frozen), is returned as it was given.
    """
    leaves, structure = jax.tree.flatten(variables["batch_stats"])
    running = [i for i, moves in enumerate(moved_by_training(model, variables, x)) if moves]
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

    def statistic(given, share, far):
        moves = far != LARGE  # With a momentum of 1 they stay what they are.
        return jnp.where(moves, share / jnp.where(moves, 1 - far / LARGE, 1), given)

    both = zip(take(leaves), jax.vmap(after)(start), strict=True)
    return replaced([statistic(given, *found) for given, found in both])


def running_statistics(variables: Variables) -> list[bool]:
    """Which leaves of ``variables["batch_stats"]`` are called what running statistics are."""
    paths = [path for path, _ in jax.tree.leaves_with_path(variables["batch_stats"])]
    return [jax.tree_util.keystr(path[-1:], simple=True) in RUNNING for path in paths]


def moved_by_training(
    model: Model, variables: Variables, x: Float[Array, "batch ..."] | jax.ShapeDtypeStruct
) -> list[bool]:
    """Which running statistics a training pass makes from its batch, found in its jaxpr.

    Args:
      model: the model.
      variables: its variables; leaves may be `jax.ShapeDtypeStruct`.
      x: a batch of what the model takes, likewise.

    Returns:
      For each leaf of ``variables["batch_stats"]``.
    """

    def after(x, variables):
        _, state = model.apply(variables, x, train=True, key=jax.random.key(0))
        return jax.tree.leaves(state["batch_stats"])

    given = len(jax.tree.leaves(x)), len(jax.tree.leaves(variables))
    from_x = [True] * given[0] + [False] * given[1]
    found = evaluate(jax.make_jaxpr(after)(x, variables), from_x, depends, lambda _: False)
    running = running_statistics(variables)
    return [named and moves for named, moves in zip(running, found, strict=True)]


def depends(path: Path, eqn: JaxprEqn, operands: list[bool]) -> list[bool]:
    """What of an equation's results depends on something, given what of its operands does."""
    inner = called(eqn)
    if inner is not None:
        return evaluate(inner, operands, depends, lambda _: False)
    if eqn.primitive.name != "scan":
        return [any(operands)] * len(eqn.outvars)
    scan = scan_of(eqn)
    consts, carry, inputs = scan.split(operands)
    while True:
        out = evaluate(scan.body, [*consts, *carry, *inputs], depends, lambda _: False)
        later = [now or then for now, then in zip(carry, out, strict=False)]
        if later == carry:
            return out
        carry = later


class StatisticsMean(NamedTuple):
    """The mean over the batches so far; stacked with a leading ``agents`` axis.

    Attributes:
      mean: of the batches' statistics, like ``variables["batch_stats"]``.
      batch: the next batch, int32. shape=()
    """

    mean: Any
    batch: Int[Array, "*agents"]


def statistics_update(model: Model, normalise: Prepare) -> Update:
    """Takes the statistics of one batch into one agent's `StatisticsMean`.

    The operands are its variables and the rows of its batches ``[batches, batch]``; the resident
    arrays are the images ``[rows, height, width, channels]`` on its device.
    """

    def update(carry: StatisticsMean, operands: Any, images: Any) -> StatisticsMean:
        variables, rows = operands
        statistics = batch_statistics(model, variables, normalise(images[rows[carry.batch]]))
        number = carry.batch + 1

        # What is the same in all batches stays what it is, to the last bit, as counts and flags.
        def mean(mean, x):
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return x
            return mean + (x - mean) / number.astype(x.dtype)

        return StatisticsMean(jax.tree.map(mean, carry.mean, statistics), number)

    return update


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
    update = statistics_update(model, normalise)
    counter = jax.ShapeDtypeStruct((), jnp.int32)

    @functools.cache
    def averaging(spec: PartitionSpec) -> Callable[..., StatisticsMean]:
        return repeat(execution, update, stopwatch, spec)

    def recompute(variables: Variables, batches: Batches) -> Variables:
        nothing = StatisticsMean(*zeros(execution, (abstract["batch_stats"], counter)))
        operands = variables, batches.rows
        found = averaging(batches.spec)(nothing, operands, batches.images, batches.number)
        return {**variables, "batch_stats": found.mean}

    return recompute
