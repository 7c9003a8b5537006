"""Primitives that cut an axis into segments or put segments together."""

from functools import reduce

from dimat_jax.symmetries.axes import Axes, Axis, Wild, axis_size, cut, freeze, frozen_axis, join
from dimat_jax.symmetries.rules.table import Equation, freeze_dims, rule


@rule("concatenate")
def _concatenate(equation: Equation, *inputs: Axes) -> list[Axes]:
    along = equation.params["dimension"]
    return [
        tuple(
            sum(parts, ()) if dim == along else reduce(join, parts)
            for dim, parts in enumerate(zip(*inputs, strict=True))
        )
    ]


@rule("stack")
def _stack(equation: Equation, *inputs: Axes) -> list[Axes]:
    axes = [reduce(join, parts) for parts in zip(*inputs, strict=True)]
    axes.insert(equation.params["axis"], frozen_axis(len(inputs), "stack"))
    return [tuple(axes)]


@rule("split")
def _split(equation: Equation, x: Axes) -> list[Axes]:
    along, sizes = equation.params["axis"], [int(size) for size in equation.params["sizes"]]
    return [(*x[:along], piece, *x[along + 1 :]) for piece in cut(x[along], sizes)]


@rule("unstack")
def _unstack(equation: Equation, x: Axes) -> list[Axes]:
    along = equation.params["axis"]
    pieces = cut(x[along], (1,) * axis_size(x[along]))
    return [x[:along] + x[along + 1 :]] * len(pieces)


@rule("slice")
def _slice(equation: Equation, x: Axes) -> list[Axes]:
    params = equation.params
    strides = params["strides"] or (1,) * len(x)
    axes: list[Axis] = []
    for axis, start, stop, stride in zip(
        x, params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        if stride != 1:
            freeze(axis, "slice with a stride")
            axes.append(frozen_axis(-(-(stop - start) // stride), "slice with a stride"))
        else:
            axes.append(cut(axis, (start, stop - start, axis_size(axis) - stop))[1])
    return [tuple(axes)]


@rule("pad")
def _pad(equation: Equation, x: Axes, value: Axes) -> list[Axes]:
    """Padding is one scalar: a wild segment."""
    axes: list[Axis] = []
    for dim, config in enumerate(equation.params["padding_config"]):
        low, high, interior = map(int, config)
        if min(low, high) < 0 or interior:
            axes.append(freeze_dims(equation, x, [dim])[dim])
        else:
            axes.append(_padding(low) + x[dim] + _padding(high))
    return [tuple(axes)]


def _padding(size: int) -> Axis:
    return ((Wild(size),),) if size else ()
