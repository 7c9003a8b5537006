"""Primitives that cut an axis into segments or put segments together."""

from functools import reduce

from dimat_jax.symmetries.axes import Axes, Axis, Wild, axis_size, cut, freeze, mixed_axis, unify
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.table import Equation, freeze_dims, rule
from dimat_jax.symmetries.slices import copy_others


@rule("concatenate")
def _concatenate(equation: Equation, *inputs: Axes) -> list[Axes]:
    along = equation.params["dimension"]
    return [
        tuple(
            sum(parts, ()) if dim == along else reduce(unify, parts)
            for dim, parts in enumerate(zip(*inputs, strict=True))
        )
    ]


@rule("stack")
def _stack(equation: Equation, *inputs: Axes) -> list[Axes]:
    axes = [reduce(unify, parts) for parts in zip(*inputs, strict=True)]
    axes.insert(equation.params["axis"], mixed_axis(len(inputs), equation.cause))
    return [tuple(axes)]


@rule("split")
def _split(equation: Equation, x: Axes) -> list[Axes]:
    along, sizes = equation.params["axis"], [int(size) for size in equation.params["sizes"]]
    pieces = cut(x[along], sizes)
    return [take_part(equation, x, along, piece) for piece in pieces]


@rule("unstack")
def _unstack(equation: Equation, x: Axes) -> list[Axes]:
    along = equation.params["axis"]
    pieces = cut(x[along], (1,) * axis_size(x[along]))
    parts = [take_part(equation, x, along, piece) for piece in pieces]
    return [part[:along] + part[along + 1 :] for part in parts]


@rule("slice")
def _slice(equation: Equation, x: Axes) -> list[Axes]:
    params, why = equation.params, Cause(Reason.STRIDED_SLICE)
    strides = params["strides"] or (1,) * len(x)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for dim, (start, stop, stride) in enumerate(bounds):
        if stride != 1:
            freeze(x[dim], why)
            piece = mixed_axis(equation.shapes[0][dim], why)
            x = (*x[:dim], piece, *x[dim + 1 :])
        # One dimension after the other: a slice along two is a slice of a slice.
        else:
            x = take_slice(equation, x, dim, start, stop - start)
    return [x]


def take_slice(equation: Equation, x: Axes, dim: int, start: int, size: int) -> Axes:
    """So many consecutive positions of an axis; the whole axis stays as it is."""
    left = axis_size(x[dim]) - start - size
    return take_part(equation, x, dim, cut(x[dim], (start, size, left))[1]) if start or left else x


def take_part(equation: Equation, x: Axes, along: int, piece: Axis) -> Axes:
    """A slice: its other axes may be permuted in their own way."""
    before = copy_others(equation.slices, x[along], piece, x[:along])
    after = copy_others(equation.slices, x[along], piece, x[along + 1 :])
    return (*before, piece, *after)


@rule("pad")
def _pad(equation: Equation, x: Axes, value: Axes) -> list[Axes]:
    """Padding is one scalar: a wild segment."""
    axes: list[Axis] = []
    for dim, config in enumerate(equation.params["padding_config"]):
        low, high, interior = map(int, config)
        # Cropping and padding in between are rare: the axis is frozen.
        if min(low, high) < 0 or interior:
            axes.append(freeze_dims(equation, x, [dim], Cause(Reason.PADDING))[dim])
        else:
            axes.append(_padding(low) + x[dim] + _padding(high))
    return [tuple(axes)]


def _padding(size: int) -> Axis:
    return ((Wild(size),),) if size else ()
