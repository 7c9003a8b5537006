"""Primitives that read or write at computed positions."""

from collections.abc import Iterable, Sequence
from typing import Any

from dimat_jax.jaxprs import overwrites
from dimat_jax.symmetries.axes import Axes, Axis, axis_size, cut, freeze, mixed_axis, unify
from dimat_jax.symmetries.rules.segments import take_slice
from dimat_jax.symmetries.rules.table import Equation, rule
from dimat_jax.symmetries.values import Value

Starts = dict[int, int]
"""Axis → the position at which a window begins on it, where that is known."""


@rule("dynamic_slice")
def _dynamic_slice(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    (sizes,) = equation.shapes
    return [_windows(equation, x, sizes, _starts(equation.values[1:]))]


@rule("dynamic_update_slice")
def _dynamic_update_slice(equation: Equation, x: Axes, update: Axes, *_: Axes) -> list[Axes]:
    room = [axis_size(old) - axis_size(new) for old, new in zip(x, update, strict=True)]
    starts = {
        dim: min(max(start, 0), room[dim])  # a window that would not fit is moved
        for dim, start in _starts(equation.values[2:]).items()
    }
    return [_written(equation, x, dict(enumerate(update)), starts, overwritten=True)]


@rule("gather")
def _gather(equation: Equation, x: Axes, indices: Axes) -> list[Axes]:
    """Whole axes pass; axes of which windows are picked, and that of index vectors, freeze."""
    # Embedding: table [vocabulary, d] and tokens [b, t, 1] give [b, t, d]; axis 0 is picked from
    # and freezes, d passes as a window, b and t come from the indices.
    numbers, (shape,) = equation.params["dimension_numbers"], equation.shapes
    freeze(indices[-1], equation.cause)
    # Axes without an index are picked from position 0 on.
    indexed = _ints(numbers.start_index_map)
    starts = {dim: 0 for dim in range(len(x)) if dim not in indexed}
    starts |= _starts_of_vector(equation.values[1], indexed)
    batching = numbers.operand_batching_dims
    sizes = _ints(equation.params["slice_sizes"])
    for dim in batching:
        sizes[dim] = axis_size(x[dim])
    batch = list(indices[:-1])
    for i, j in zip(batching, numbers.start_indices_batching_dims, strict=True):
        batch[j] = unify(x[i], batch[j])
    x = _windows(equation, x, sizes, starts)
    gone = (*numbers.collapsed_slice_dims, *batching)
    windows = iter([axis for dim, axis in enumerate(x) if dim not in gone])
    batches = iter(batch)
    return [
        tuple(next(windows if dim in numbers.offset_dims else batches) for dim in range(len(shape)))
    ]


SCATTER = """
scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max
scatter-add scatter-sub scatter-mul scatter-min scatter-max
""".split()


@rule(*SCATTER)
def _scatter(equation: Equation, x: Axes, indices: Axes, updates: Axes) -> list[Axes]:
    """Whole windows, and parts at one known position, pass; all else that is indexed freezes."""
    numbers, why = equation.params["dimension_numbers"], equation.cause
    of_operand = _ints(numbers.operand_batching_dims)
    from_indices = _ints(numbers.scatter_indices_batching_dims)
    batching = dict(zip(from_indices, of_operand, strict=True))
    inserted = _ints(numbers.inserted_window_dims)
    kept = [dim for dim in range(len(x)) if dim not in (*inserted, *of_operand)]
    windows = sorted(numbers.update_window_dims)
    new = {dim: updates[window] for dim, window in zip(kept, windows, strict=True)}
    new |= dict.fromkeys(inserted, ((),))  # of a single position
    freeze(indices[-1], why)
    several = False
    rest = [axis for dim, axis in enumerate(updates) if dim not in windows]
    for j, (index, update) in enumerate(zip(indices[:-1], rest, strict=True)):
        if j in batching:
            new[batching[j]] = unify(index, update)
            continue
        several = True
        freeze(index, why)
        freeze(update, why)
    indexed = _ints(numbers.scatter_dims_to_operand_dims)
    starts = {dim: 0 for dim in range(len(x)) if dim not in indexed}
    starts |= _starts_of_vector(equation.values[1], indexed)
    overwritten = equation.name == "scatter" and overwrites(equation.params) and not several
    return [_written(equation, x, new, starts, overwritten)]


def _ints(numbers: Iterable[Any]) -> list[int]:
    """JAX has some of NumPy's among them."""
    return [int(number) for number in numbers]


def _starts(values: Sequence[Value]) -> Starts:
    """The known ones of a start for each axis."""
    return {dim: int(value) for dim, value in enumerate(values) if value is not None}


def _starts_of_vector(value: Value, dims: Sequence[int]) -> Starts:
    """Those in a single index vector."""
    if value is None or value.ndim != 1:
        return {}
    return dict(zip(dims, _ints(value), strict=True))


def _windows(equation: Equation, x: Axes, sizes: Sequence[int], starts: Starts) -> Axes:
    """Windows of these sizes; whole axes pass, and parts at unknown positions freeze."""
    for dim, size in enumerate(sizes):
        room = axis_size(x[dim]) - size
        if room and dim in starts:
            # A window that would not fit is moved.
            x = take_slice(equation, x, dim, min(max(starts[dim], 0), room), size)
        elif room:
            freeze(x[dim], equation.cause)
            x = (*x[:dim], mixed_axis(size, equation.cause), *x[dim + 1 :])
    return x


def _written(
    equation: Equation, x: Axes, new: dict[int, Axis], starts: Starts, overwritten: bool
) -> Axes:
    """An operand with a window of other values in it.

    Args:
      equation: the equation.
      x: the operand.
      new: the window's axes.
      starts: where it begins.
      overwritten: whether nothing is left of what was there.
    """
    axes: list[Axis] = []
    partial = [dim for dim, axis in enumerate(x) if axis_size(axis) != axis_size(new[dim])]
    for dim, axis in enumerate(x):
        if dim not in partial:
            axes.append(unify(axis, new[dim]))
            continue
        size, room = axis_size(new[dim]), axis_size(axis) - axis_size(new[dim])
        if 0 <= starts.get(dim, -1) <= room:
            before, middle, after = cut(axis, (starts[dim], size, room - starts[dim]))
            # Of several partial axes some of the operand stays beside the window on each.
            alone = overwritten and partial == [dim]
            axes.append(before + (new[dim] if alone else unify(middle, new[dim])) + after)
            continue
        freeze(axis, equation.cause)
        freeze(new[dim], equation.cause)
        axes.append(mixed_axis(axis_size(axis), equation.cause))
    return tuple(axes)
