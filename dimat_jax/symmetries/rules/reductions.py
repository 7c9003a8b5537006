"""Reductions, windows, cumulative operations and sorting."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from jax.extend.core import Jaxpr, Literal

from dimat_jax.jaxprs import reducer_of
from dimat_jax.symmetries.axes import Axes, axis_size, freeze, mixed_axis, unify
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.contractions import REDUCTIONS
from dimat_jax.symmetries.rules.table import Equation, freeze_dims, rule


@rule(*REDUCTIONS)
def _reduce(equation: Equation, x: Axes) -> list[Axes]:
    """Symmetric in what it reduces: nothing freezes."""
    return [tuple(axis for dim, axis in enumerate(x) if dim not in equation.params["axes"])]


@rule("unvmap_all", "unvmap_any", "unvmap_max")
def _unvmap(equation: Equation, x: Axes) -> list[Axes]:
    """Equinox's reductions over all that there is."""
    return [()]


@rule("reduce")
def _reduce_by(equation: Equation, *inputs: Axes) -> list[Axes]:
    """By a function of one's own: only of some it is known that they do not ask for the order."""
    number, dims = len(equation.shapes), equation.params["dimensions"]
    # The initial values, scalars, come after the operands.
    axes = [reduce(unify, parts) for parts in zip(*inputs[:number], strict=True)]
    if not _commutes(reducer_of(equation.params)):
        for dim in dims:
            freeze(axes[dim], equation.cause)
    return [tuple(axis for dim, axis in enumerate(axes) if dim not in dims)] * number


@rule("argmax", "argmin")
def _arg_reduce(equation: Equation, x: Axes) -> list[Axes]:
    dims = equation.params["axes"]
    for dim in dims:
        freeze(x[dim], equation.cause)
    return [tuple(axis for dim, axis in enumerate(x) if dim not in dims)]


COMMUTATIVE = "add mul max min and or xor".split()


def _commutes(jaxpr: Jaxpr) -> bool:
    """Whether each output is a symmetric primitive of its two inputs: ``(a, b), (c, d)`` of two."""
    makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    pairs = zip(jaxpr.outvars, zip(*_halves(jaxpr.invars), strict=True), strict=True)
    return all(
        not isinstance(var, Literal)
        and var in makers
        and makers[var].primitive.name in COMMUTATIVE
        and {*map(id, makers[var].invars)} == {*map(id, pair)}
        for var, pair in pairs
    )


def _halves(items: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


@rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(equation: Equation, *inputs: Axes) -> list[Axes]:
    """Axes with a window of their own freeze."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation")
    windows = zip(*(equation.params[name] for name in names), strict=True)
    # A window of one without stride or padding leaves an axis alone: batch and channels in pooling.
    dims = [dim for dim, window in enumerate(windows) if window != (1, 1, (0, 0), 1)]
    # By a function of one's own there may be several operands; initial values come after them.
    number = len(equation.shapes)
    axes = tuple(reduce(unify, parts) for parts in zip(*inputs[:number], strict=True))
    return [freeze_dims(equation, axes, dims)] * number


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(equation: Equation, x: Axes) -> list[Axes]:
    return [freeze_dims(equation, x, [equation.params["axis"]])]


@rule("fft")
def _fft(equation: Equation, x: Axes) -> list[Axes]:
    """The last axes are transformed; each of their positions becomes a frequency."""
    transformed = len(equation.params["fft_lengths"])
    return [freeze_dims(equation, x, range(len(x) - transformed, len(x)))]


@rule("rev")
def _rev(equation: Equation, x: Axes) -> list[Axes]:
    return [freeze_dims(equation, x, equation.params["dimensions"], Cause(Reason.REVERSAL))]


@rule("sort")
def _sort(equation: Equation, *inputs: Axes) -> list[Axes]:
    """sort(P x) = sort(x): one operand alone freezes its result only."""
    # Several operands, as in argsort: the others are reordered as the first one asks, so that what
    # they are in the end depends on which position goes with which.
    dim = equation.params["dimension"]
    axes = [reduce(unify, parts) for parts in zip(*inputs, strict=True)]
    if len(inputs) > 1:
        freeze(axes[dim], equation.cause)
    axes[dim] = mixed_axis(axis_size(axes[dim]), equation.cause)
    return [tuple(axes)] * len(inputs)


@rule("top_k", "approx_top_k")
def _top_k(equation: Equation, x: Axes) -> list[Axes]:
    # The last axis, where no parameter names one; which one does depends on the primitive.
    dim = equation.params.get("axis", equation.params.get("reduction_dimension", len(x) - 1))
    return [freeze_dims(equation, x, [dim % len(x)])] * len(equation.shapes)
