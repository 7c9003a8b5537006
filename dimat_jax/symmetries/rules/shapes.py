"""Primitives that only rearrange: broadcast, reshape, transpose."""

from dimat_jax.symmetries.axes import Axes, Sum, Wild, axis_size, frozen_axis, reshape, wild_axis
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.elementwise import stretch
from dimat_jax.symmetries.rules.table import Equation, rule


@rule("broadcast_in_dim")
def _broadcast_in_dim(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    # A bias [10] broadcast to [4, 10] with dimensions (1,): the new axis 0 is wild.
    dims = equation.params["broadcast_dimensions"]
    axes = [wild_axis(size) for size in equation.shapes[0]]
    for dim, axis in zip(dims, x, strict=True):
        axes[dim] = stretch(axis, axis_size(axes[dim]))
    return [tuple(axes)]


@rule("reshape")
def _reshape(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    # The operator's own transposition, that `lax.reshape` may ask for, comes first.
    if equation.params.get("dimensions") is not None:
        x = tuple(x[dim] for dim in equation.params["dimensions"])
    return [reshape(x, equation.shapes[0])]


@rule("squeeze")
def _squeeze(equation: Equation, x: Axes) -> list[Axes]:
    return [reshape(x, equation.shapes[0])]


@rule("transpose")
def _transpose(equation: Equation, x: Axes) -> list[Axes]:
    return [tuple(x[dim] for dim in equation.params["permutation"])]


@rule("tile")
def _tile(equation: Equation, x: Axes) -> list[Axes]:
    """Copies of an axis are a product with a wild factor: constant from copy to copy."""
    reps = equation.params["reps"]
    pairs = zip(reps, x, strict=True)
    return [tuple(axis if n == 1 else ((Wild(n), Sum(axis)),) for n, axis in pairs)]


@rule("iota")
def _iota(equation: Equation, *_: Axes) -> list[Axes]:
    """Positions along its own dimension, constant along the others."""
    (shape,) = equation.shapes
    axes = [wild_axis(size) for size in shape]
    dim = equation.params["dimension"]
    axes[dim] = frozen_axis(shape[dim], Cause(Reason.NUMBERED))
    return [tuple(axes)]
