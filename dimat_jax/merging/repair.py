"""REPAIR: gives the units of a merged network the mean and deviation of its parents' units.

Averaging weights makes the variance of hidden units collapse layer by layer. Source: Jordan,
Sedghi, Saukh, Entezari, Neyshabur 2023, "REPAIR" (arXiv 2211.08403), section 3: the preactivations
of every hidden unit are rescaled so that E[X] = Σ_k w_k E[X_k] and std(X) = Σ_k w_k std(X_k), where
X_k are those of the (aligned) parents; the correction is then folded into the weights.

Where they are is found in the jaxpr of any model (`dimat_jax.merging.units`). With BatchNorm,
recomputing the running statistics (RESET, there) has the same effect but for units whose scales
have different signs in the parents; correcting what comes out of BatchNorm makes up for those.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dimat_jax.datasets.data import take
from dimat_jax.execution.forms import Update, map_agents, repeat
from dimat_jax.execution.placement import Execution, zeros
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.jaxprs import Path, enter_or_bind, evaluate
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.units import Dims, Unit, Units, find_units
from dimat_jax.symmetries import Symmetries
from dimat_jax.symmetries.groups import path_name
from dimat_jax.types import Batch, Prepare, Task, Variables

EPSILON = 1e-5
"""Added to variances, as BatchNorm does: units that hardly change are not blown up."""


class Preactivations(NamedTuple):
    """Of one layer's units, over examples and positions; each of the shape of the bias.

    Attributes:
      mean: their mean.
      deviation: their standard deviation; √(variance + `EPSILON`).
    """

    mean: Float[Array, "*units"]
    deviation: Float[Array, "*units"]


class PreactivationSum(NamedTuple):
    """What is added up over batches; stacked with a leading ``agents`` axis.

    Attributes:
      mean: sum of the batches' means, by the path of the layer's bias.
      variance: sum of the batches' variances.
      batch: the next batch, int32. shape=()
    """

    mean: dict[str, Array]
    variance: dict[str, Array]
    batch: Int[Array, "*agents"]


Goal = dict[str, Preactivations]
"""The path of a layer's bias → what its units shall have."""


def batch_preactivations(
    symmetries: Symmetries,
    task: Task,
    variables: Variables,
    batch: Batch,
    goal: Goal | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The mean and variance of each hidden unit's preactivations on one batch.

    Args:
      symmetries: the model's groups.
      task: evaluated, so that BatchNorm uses its running statistics.
      variables: of the network.
      batch: what the task takes.
      goal: if given, preactivations are brought to it on this batch, layer after layer, so that
        later layers see what earlier ones will give once they are corrected.

    Returns:
      Two dicts, path of the bias → array of its shape: of what was there before correction.
    """
    units = find_units(symmetries, task.outputs, variables, batch)
    by_path = {unit.path: unit for unit in units.found}
    means: dict[str, Array] = {}
    variances: dict[str, Array] = {}

    def equation(path: Path, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        outputs = enter_or_bind(path, eqn, operands, equation)
        return [corrected(by_path[path], *outputs)] if path in by_path else outputs

    def corrected(unit: Unit, value: Array) -> Array:
        # A convolution's value [batch, H, W, units] with dims (3,): all but the units are averaged.
        others = tuple(d for d in range(value.ndim) if d not in unit.dims)
        mean = value.mean(others, keepdims=True)
        variance = jnp.square(value - mean).mean(others, keepdims=True)
        means[unit.bias] = from_axes(mean, unit.dims, unit.shape)
        variances[unit.bias] = from_axes(variance, unit.dims, unit.shape)
        if goal is None:
            return value
        wanted = goal[unit.bias]
        scale = to_axes(wanted.deviation, unit.dims, value.ndim) / jnp.sqrt(variance + EPSILON)
        return (value - mean) * scale + to_axes(wanted.mean, unit.dims, value.ndim)

    evaluate(units.jaxpr, jax.tree.leaves((variables, batch)), equation)
    return means, variances


def to_axes(values: Array, dims: Dims, ndim: int) -> Array:
    """Puts each axis where ``dims`` says among ``ndim`` axes, the others of size 1."""
    # A bias [units] with dims (3,) among 4 axes becomes [1, 1, 1, units].
    wide = [(dim, values.shape[axis]) for axis, dim in enumerate(dims) if dim is not None]
    order = np.argsort([dim for dim, _ in wide])
    shape = [dict(wide).get(dim, 1) for dim in range(ndim)]
    return values.reshape([size for _, size in wide]).transpose(order).reshape(shape)


def from_axes(values: Array, dims: Dims, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_axes`."""
    wide = [dim for dim in dims if dim is not None]
    rest = [dim for dim in range(values.ndim) if dim not in wide]
    return values.transpose(*wide, *rest).reshape(shape)


def mean_preactivations(total: PreactivationSum) -> Goal:
    """The mean of one agent's batches' moments."""

    def mean(mean: Array, variance: Array) -> Preactivations:
        batches = total.batch.astype(mean.dtype)
        return Preactivations(mean / batches, jnp.sqrt(variance / batches + EPSILON))

    return {path: mean(total.mean[path], total.variance[path]) for path in total.mean}


def fold(units: Sequence[Unit], variables: Variables, found: Goal, goal: Goal) -> Variables:
    """Folds the correction of each unit into the gain and bias of its layer.

    Args:
      units: where preactivations are.
      variables: of the network.
      found: what its preactivations have, when all layers before are corrected.
      goal: what they shall have.

    Returns:
      Variables with which they have it.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(variables)
    leaves = {path_name(path): leaf for path, leaf in flat}
    for unit in units:
        had, wanted = found[unit.bias], goal[unit.bias]
        # y = gain · x + bias has the mean m and the deviation s; (y − m) s'/s + m' has m' and s',
        # and is a gain times x plus a bias again.
        scale = wanted.deviation / had.deviation
        gain = leaves[unit.gain]
        leaves[unit.gain] = gain * to_axes(scale, unit.axes, gain.ndim)
        leaves[unit.bias] = (leaves[unit.bias] - had.mean) * scale + wanted.mean
    return structure.unflatten(leaves.values())


def preactivation_update(symmetries: Symmetries, task: Task, prepare: Prepare) -> Update:
    """Adds the moments of one batch to one agent's `PreactivationSum`.

    The operands are its variables, the goal that earlier layers are brought to (None: they are left
    as they are), and the rows of its batches ``[batches, batch]``; the resident arrays are the
    examples ``[rows, ...]`` on its device.
    """

    def update(total: PreactivationSum, operands: Any, examples: Any) -> PreactivationSum:
        variables, goal, rows = operands
        batch = prepare(take(examples, rows[total.batch]))
        moments = batch_preactivations(symmetries, task, variables, batch, goal)
        mean, variance = jax.tree.map(jnp.add, (total.mean, total.variance), moments)
        return PreactivationSum(mean, variance, total.batch + 1)

    return update


def make_repair(
    execution: Execution,
    task: Task,
    symmetries: Symmetries,
    prepare: Prepare,
    abstract: tuple[Variables, Batch],
    stopwatch: Stopwatch,
) -> tuple[Callable[[Variables, Batches], Goal], Callable[[Variables, Goal, Batches], Variables]]:
    """Builds what reads and what corrects the moments of all agents' units.

    Returns:
      ``(variables, batches) -> goal`` and ``(variables, goal, batches) -> variables``. The first
      use warns of layers that cannot be corrected.
    """
    averaging = map_agents(execution, mean_preactivations, stopwatch)
    update = preactivation_update(symmetries, task, prepare)
    counter = jax.ShapeDtypeStruct((), jnp.int32)

    @functools.cache
    def reading(spec: PartitionSpec) -> Callable[..., PreactivationSum]:
        return repeat(execution, update, stopwatch, spec)

    @functools.cache
    def units() -> Units:
        found = find_units(symmetries, task.outputs, *abstract)
        if found.missing:
            warnings.warn(
                f"REPAIR leaves these layers uncorrected: {', '.join(found.missing)}. It needs a "
                "bias after each, and both used once and outside loops.",
                stacklevel=2,
            )
        return found

    def read(variables: Variables, goal: Goal | None, batches: Batches) -> Goal:
        dtype = jnp.result_type(float)
        moments = {u.bias: jax.ShapeDtypeStruct(u.shape, dtype) for u in units().found}
        nothing = PreactivationSum(*zeros(execution, (moments, moments, counter)))
        operands = variables, goal, batches.rows
        total = reading(batches.spec)(nothing, operands, batches.examples, batches.number)
        return averaging(total)

    @functools.cache
    def folding() -> Callable[..., Variables]:
        return map_agents(execution, functools.partial(fold, units().found), stopwatch)

    def correct(variables: Variables, goal: Goal, batches: Batches) -> Variables:
        return folding()(variables, read(variables, goal, batches), goal)

    return lambda variables, batches: read(variables, None, batches), correct
