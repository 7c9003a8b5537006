"""Primitives that read or write at computed positions."""

from dimat_jax.symmetries.axes import Axes, Axis, axis_size, freeze, mixed_axis, unify
from dimat_jax.symmetries.rules.contractions import picked_dims
from dimat_jax.symmetries.rules.table import Equation, freeze_dims, rule


@rule("dynamic_slice")
def _dynamic_slice(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    (shape,) = equation.shapes
    dims = [dim for dim, axis in enumerate(x) if axis_size(axis) != shape[dim]]
    return [freeze_dims(equation, x, dims)]


@rule("dynamic_update_slice")
def _dynamic_update_slice(equation: Equation, x: Axes, update: Axes, *_: Axes) -> list[Axes]:
    axes: list[Axis] = []
    for old, new in zip(x, update, strict=True):
        # A whole axis is written to position by position; of a part nobody knows which.
        if axis_size(old) == axis_size(new):
            axes.append(unify(old, new))
            continue
        freeze(old, equation.cause)
        freeze(new, equation.cause)
        axes.append(mixed_axis(axis_size(old), equation.cause))
    return [tuple(axes)]


@rule("gather")
def _gather(equation: Equation, x: Axes, indices: Axes) -> list[Axes]:
    """Whole axes pass; axes that are indexed, and the axis of index vectors, freeze."""
    # Embedding: table [vocabulary, d] and tokens [b, t, 1] give [b, t, d]; axis 0 is picked from
    # and freezes, d passes as a window, b and t come from the indices.
    numbers, (shape,) = equation.params["dimension_numbers"], equation.shapes
    freeze(indices[-1], equation.cause)
    for dim in picked_dims(numbers):
        freeze(x[dim], equation.cause)
    batch = list(indices[:-1])
    for i, j in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        batch[j] = unify(x[i], batch[j])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = iter([axis for dim, axis in enumerate(x) if dim not in gone])
    batches = iter(batch)
    axes: list[Axis] = []
    for dim, size in enumerate(shape):
        axis = next(windows) if dim in numbers.offset_dims else next(batches)
        if axis_size(axis) != size:
            freeze(axis, equation.cause)
            axis = mixed_axis(size, equation.cause)
        axes.append(axis)
    return [tuple(axes)]


SCATTER = """
scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max
scatter-add scatter-sub scatter-mul scatter-min scatter-max
""".split()


@rule(*SCATTER)
def _scatter(equation: Equation, x: Axes, indices: Axes, updates: Axes) -> list[Axes]:
    """Whole window axes pass; everything that is indexed, or indexes, freezes."""
    numbers, why = equation.params["dimension_numbers"], equation.cause
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    dims = [dim for dim in range(len(x)) if dim not in gone]
    whole: dict[int, Axis] = {}
    for dim, window in zip(dims, sorted(numbers.update_window_dims), strict=True):
        indexed = dim in numbers.scatter_dims_to_operand_dims
        if not indexed and axis_size(x[dim]) == axis_size(updates[window]):
            whole[dim] = unify(x[dim], updates[window])
        else:
            freeze(updates[window], why)
    batch = [axis for dim, axis in enumerate(updates) if dim not in numbers.update_window_dims]
    for axis in (*indices, *batch):
        freeze(axis, why)
    rest = freeze_dims(equation, x, [dim for dim in range(len(x)) if dim not in whole])
    return [tuple(whole.get(dim, axis) for dim, axis in enumerate(rest))]
