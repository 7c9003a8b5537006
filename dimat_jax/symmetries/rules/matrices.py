"""Linear algebra: batches of matrices, of whose own axes nothing is known."""

from collections.abc import Sequence
from functools import reduce

from dimat_jax.symmetries.axes import Axes, axis_size, freeze, mixed_axis, unify
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.table import Equation, rule

OF_MATRICES = """
cholesky eig eigh hessenberg householder_product lu qr schur svd
""".split()


@rule(*OF_MATRICES)
def _of_matrices(equation: Equation, *inputs: Axes) -> list[Axes]:
    """The axes of the batch pass."""
    return _of_batch(equation, len(inputs[0]) - 2, inputs)


@rule("lu_pivots_to_permutation")
def _of_vectors(equation: Equation, pivots: Axes) -> list[Axes]:
    return _of_batch(equation, len(pivots) - 1, (pivots,))


def _of_batch(equation: Equation, batch: int, inputs: Sequence[Axes]) -> list[Axes]:
    why = Cause(Reason.NO_RULE, equation.name)
    for axis in (axis for axes in inputs for axis in axes[batch:]):
        freeze(axis, why)
    leading = [reduce(unify, parts) for parts in zip(*(x[:batch] for x in inputs), strict=True)]
    return [
        (*leading, *(mixed_axis(size, why) for size in shape[batch:])) for shape in equation.shapes
    ]


@rule("triangular_solve")
def _triangular_solve(equation: Equation, a: Axes, b: Axes) -> list[Axes]:
    """The right-hand sides are independent of each other, and pass."""
    why = Cause(Reason.NO_RULE, equation.name)
    solved = len(b) - (2 if equation.params["left_side"] else 1)
    for axis in (*a[-2:], b[solved]):
        freeze(axis, why)
    axes = [unify(x, y) for x, y in zip(a[:-2], b[:-2], strict=True)] + list(b[-2:])
    axes[solved] = mixed_axis(axis_size(b[solved]), why)
    return [tuple(axes)]
