"""Products that sum over axes, and where primitives mix the positions of an axis."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from jax.lax import RaggedDotDimensionNumbers

from dimat_jax.symmetries.axes import (
    Axes,
    Axis,
    Sum,
    Wild,
    axis_size,
    free_axis,
    freeze,
    mixed_axis,
    unify,
)
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.table import Equation, freeze_everything, rule


class Kind(enum.Enum):
    """How positions are mixed."""

    PRODUCT = "with those of another operand, and summed"
    REDUCTION = "summed, or another reduction"
    LOOKUP = "picked by index"


class Contraction(NamedTuple):
    """That a primitive mixes positions of an operand.

    Attributes:
      operand: which one.
      dims: the axes along which positions are mixed.
      batch: the axes along which the other operand keeps in step.
      kind: how they are mixed.
    """

    operand: int
    dims: tuple[int, ...]
    batch: tuple[int, ...] = ()
    kind: Kind = Kind.PRODUCT


def contractions(equation: Equation, inputs: Sequence[Axes]) -> list[Contraction]:
    """Where the equation mixes positions: what it leaves of an operand no longer has those axes."""
    params, name = equation.params, equation.name
    if name == "dot_general":
        (left, right), (left_batch, right_batch) = params["dimension_numbers"]
        return [
            Contraction(0, tuple(left), tuple(left_batch)),
            Contraction(1, tuple(right), tuple(right_batch)),
        ]
    if name == "conv_general_dilated":
        # The windows' positions are summed over as well, so all but batch and outputs are mixed. A
        # grouped kernel's outputs are in step with the groups of the images' channels.
        numbers = params["dimension_numbers"]
        groups = numbers.rhs_spec[:1] if params["feature_group_count"] > 1 else ()
        return [
            Contraction(0, tuple(numbers.lhs_spec[1:])),
            Contraction(1, tuple(numbers.rhs_spec[1:]), tuple(groups)),
        ]
    if name == "ragged_dot_general":
        (left, right), (left_batch, right_batch) = _ragged(equation).dot_dimension_numbers
        return [
            Contraction(0, tuple(left), tuple(left_batch)),
            Contraction(1, tuple(right), tuple(right_batch)),
        ]
    if name in REDUCTIONS:
        return [Contraction(0, tuple(params["axes"]), kind=Kind.REDUCTION)]
    if name == "reduce":
        dims = tuple(params["dimensions"])
        return [Contraction(i, dims, kind=Kind.REDUCTION) for i in range(len(equation.shapes))]
    if name == "gather":
        numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
        whole = [axis_size(axis) == size for axis, size in zip(inputs[0], sizes, strict=True)]
        picked = [d for d in range(len(sizes)) if not whole[d]]
        dims = tuple(d for d in picked if d not in numbers.operand_batching_dims)
        return [Contraction(0, dims, kind=Kind.LOOKUP)]
    return []


WINDOW = Cause(Reason.CONVOLUTION_WINDOW)
REDUCTIONS = """
reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor
""".split()


@rule("dot_general")
def _dot_general(equation: Equation, x: Axes, y: Axes) -> list[Axes]:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, j in zip(left, right, strict=True):
        unify(x[i], y[j])
    batch = [unify(x[i], y[j]) for i, j in zip(left_batch, right_batch, strict=True)]
    free_x = [axis for i, axis in enumerate(x) if i not in (*left, *left_batch)]
    free_y = [axis for j, axis in enumerate(y) if j not in (*right, *right_batch)]
    return [(*batch, *free_x, *free_y)]


@rule("ragged_dot_general")
def _ragged_dot_general(equation: Equation, x: Axes, y: Axes, *groups: Axes) -> list[Axes]:
    """Rows of x in consecutive groups, each times its own matrix of y (a mixture of experts)."""
    # x [m, k], y [g, k, n] and sizes [g] give [m, n]: k and n pass. Which rows of x go with which
    # matrix depends on the order of both, m and g. Where the ragged axis is summed over, as in the
    # gradient, the output has g, and where it is a batch axis there is none.
    numbers, why = _ragged(equation), equation.cause
    (left, right), (left_batch, right_batch) = numbers.dot_dimension_numbers
    for axis in [
        *(x[dim] for dim in numbers.lhs_ragged_dimensions),
        *(y[dim] for dim in numbers.rhs_group_dimensions),
        *(axis for axes in groups for axis in axes),
    ]:
        freeze(axis, why)
    for i, j in zip(left, right, strict=True):
        unify(x[i], y[j])
    batch = [unify(x[i], y[j]) for i, j in zip(left_batch, right_batch, strict=True)]
    gone = (*right, *right_batch, *numbers.rhs_group_dimensions)
    free = [axis for i, axis in enumerate(x) if i not in (*left, *left_batch)]
    free += [axis for j, axis in enumerate(y) if j not in gone]
    (shape,) = equation.shapes
    new = [mixed_axis(size, why) for size in shape[: len(shape) - len(batch) - len(free)]]
    return [(*new, *batch, *free)]


def _ragged(equation: Equation) -> RaggedDotDimensionNumbers:
    return equation.params["ragged_dot_dimension_numbers"]


@rule("conv_general_dilated")
def _conv_general_dilated(equation: Equation, x: Axes, kernel: Axes) -> list[Axes]:
    params, (shape,) = equation.params, equation.shapes
    if params["batch_group_count"] > 1:
        return freeze_everything(equation, x, kernel, why=Cause(Reason.BATCH_GROUPS))
    lhs, rhs, out = params["dimension_numbers"]
    channels = _unify_channels(
        x[lhs[1]], kernel[rhs[1]], kernel[rhs[0]], params["feature_group_count"]
    )
    # A window of one pixel without padding or strides leaves an axis as it is, as in 1 × 1 kernels.
    axes = dict(zip(out, (x[lhs[0]], channels), strict=False))
    for i, (dim, window) in enumerate(zip(lhs[2:], rhs[2:], strict=True)):
        alone = axis_size(kernel[window]) == 1 and params["padding"][i] == (0, 0)
        if alone and params["window_strides"][i] == params["lhs_dilation"][i] == 1:
            axes[out[2 + i]] = x[dim]
            continue
        freeze(x[dim], WINDOW)
        freeze(kernel[window], WINDOW)
        axes[out[2 + i]] = mixed_axis(shape[out[2 + i]], WINDOW)
    return [tuple(axes[dim] for dim in range(len(shape)))]


def _unify_channels(inputs: Axis, kernel_inputs: Axis, outputs: Axis, groups: int) -> Axis:
    """Groups are the outermost factor of both channel axes and share the kernel's inputs."""
    # 32 input channels in 4 groups are g·c of 4·8, and the kernel's inputs are c; 64 outputs are g
    # times 16 that each group has in its own way, and that nothing is known of: wild, so that the
    # outputs' own atoms stand there. Depthwise: g is all of the channels, and c a single one.
    group = free_axis(groups)
    unify(inputs, ((Sum(group), Sum(kernel_inputs)),))
    per_group = axis_size(outputs) // groups
    return unify(outputs, ((Sum(group), Wild(per_group)),))
