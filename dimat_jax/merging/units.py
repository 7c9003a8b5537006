"""Finds the preactivations of a model: where a bias is added to what a gain multiplies.

A preactivation is the sum of a variable (the bias) and something that is proportional, unit by
unit, to another variable (the gain): the kernel of a dense layer or convolution, or the scale of a
normalisation layer. Scaling the gain and changing the bias then gives it any mean and deviation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from dimat_jax.jaxprs import CONTROL_FLOW, Path, called, evaluate
from dimat_jax.symmetries.analysis import as_function
from dimat_jax.symmetries.groups import Symmetries, path_name
from dimat_jax.symmetries.reasons import Reason
from dimat_jax.symmetries.walk import var_shape

Dims = tuple[int | None, ...]
"""For each axis of a value: the axis of a leaf that stands there, or None."""


class Unit(NamedTuple):
    """One layer's preactivations.

    Attributes:
      path: of the equation whose output they are.
      bias: path of the leaf that is added.
      gain: path of the leaf that they are proportional to.
      dims: for each axis of the bias, which axis of the preactivations it is; None if of size 1.
      axes: for each axis of the bias, which axis of the gain has the same units; None if of size 1.
      shape: of the bias.
    """

    path: Path
    bias: str
    gain: str
    dims: Dims
    axes: Dims
    shape: tuple[int, ...]


class Units(NamedTuple):
    """The preactivations of a model's hidden units.

    Attributes:
      jaxpr: of the model's evaluation, a function of the leaves of ``(variables, inputs)``.
      found: in network order.
      missing: paths of leaves that carry hidden units and mix activations, but whose output is not
        among them: no bias follows, or a leaf is used elsewhere too, or in a loop.
    """

    jaxpr: ClosedJaxpr
    found: tuple[Unit, ...]
    missing: tuple[str, ...]


class Value(NamedTuple):
    """What is known of a value.

    Attributes:
      varies: whether it depends on the inputs.
      leaves: the leaves that it depends on; kept only for what does not vary.
      gains: leaves that it is proportional to, and where their axes stand.
      kernels: leaves that activations were last contracted with.
    """

    varies: bool = False
    leaves: frozenset[str] = frozenset()
    gains: dict[str, Dims] = {}
    kernels: frozenset[str] = frozenset()


def find_units(
    symmetries: Symmetries, model_or_function: Any, variables: Any, *inputs: Any
) -> Units:
    """Finds the preactivations of all hidden units, by one abstract trace.

    Args:
      symmetries: the model's groups: hidden units are what they permute.
      model_or_function: a `Model`, evaluated, or any function of ``(variables, *inputs)``.
      variables: leaves may be `jax.ShapeDtypeStruct`.
      *inputs: the same.
    """
    closed = jax.make_jaxpr(as_function(model_or_function))(variables, *inputs)
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    shapes = {path_name(path): tuple(leaf.shape) for path, leaf in flat}
    # A leaf is proportional to itself, axis by axis.
    values = [
        Value(leaves=frozenset([path]), gains={path: tuple(range(len(shape)))})
        for path, shape in shapes.items()
    ]
    values += [Value(varies=True)] * (len(closed.jaxpr.invars) - len(values))
    record = Findings(shapes, [], Counter(), set())
    _walk(record, closed, values, ())
    carrying = {site.path for group in symmetries.groups.values() for site in group.sites}
    outputs = {f.path for f in symmetries.frozen if f.cause.reason is Reason.OUTPUT}
    # A leaf that activations meet twice cannot be changed for one of the two places only.
    found = tuple(
        unit
        for unit, _ in record.found
        if unit.bias in carrying and record.uses[unit.bias] == record.uses[unit.gain] == 1
    )
    reached = {k for unit, kernels in record.found if unit in found for k in kernels}
    missing = tuple(sorted((record.kernels & carrying) - reached - outputs))
    return Units(closed, found, missing)


class Findings(NamedTuple):
    """What the walk leaves behind.

    Attributes:
      shapes: of the leaves.
      found: candidates, each with the kernels that its activations came from.
      uses: how often each leaf meets something that depends on the inputs.
      kernels: leaves that activations are contracted with, or that loops and branches read.
    """

    shapes: dict[str, tuple[int, ...]]
    found: list[tuple[Unit, frozenset[str]]]
    uses: Counter[str]
    kernels: set[str]


def _walk(
    record: Findings, closed: ClosedJaxpr, inputs: Sequence[Value], path: Path
) -> list[Value]:
    def equation(path: Path, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        inner = called(eqn)
        if inner is not None:
            return _walk(record, inner, operands, path)
        return _equation(record, eqn, operands, path)

    return evaluate(closed, inputs, equation, lambda _: Value(), path)


def _equation(record: Findings, eqn: JaxprEqn, operands: list[Value], path: Path) -> list[Value]:
    varies = any(value.varies for value in operands)
    fixed = [value for value in operands if not value.varies]
    loop = eqn.primitive.name in CONTROL_FLOW
    if varies:
        # In a loop a leaf may be used any number of times.
        record.uses.update(
            leaf for value in fixed for leaf in value.leaves for _ in range(1 + loop)
        )
    contracted = eqn.primitive.name in CONTRACTIONS
    # A layer begins where activations meet a kernel; what follows until the next one is its own.
    if loop or (contracted and varies):
        kernels = frozenset(leaf for value in fixed for leaf in value.leaves)
        record.kernels.update(kernels)
    else:
        kernels = frozenset().union(*(value.kernels for value in operands))
    gains = GAIN_RULES.get(eqn.primitive.name, lambda eqn, operands: {})(eqn, operands)
    if eqn.primitive.name in SUMS and varies:
        record.found.extend((unit, kernels) for unit in _candidates(record, eqn, operands, path))
    leaves = frozenset().union(*(value.leaves for value in fixed)) if not varies else frozenset()
    return [Value(varies, leaves, gains, kernels) for _ in eqn.outvars]


def _candidates(
    record: Findings, eqn: JaxprEqn, operands: list[Value], path: Path
) -> Iterator[Unit]:
    """The preactivations that a sum may be: something that varies, and a leaf by itself."""
    for one, other in (operands, operands[::-1]):
        if not one.varies or other.varies or len(other.leaves) != 1 or not other.gains:
            continue
        # The bias's axes must all stand on the sum, so that each unit has one entry of it; and the
        # gain must have an axis for each of these, so that each unit can be scaled by itself.
        ((bias, standing),) = other.gains.items()
        place = {axis: dim for dim, axis in enumerate(standing) if axis is not None}
        sizes = record.shapes[bias]
        if any(size > 1 and axis not in place for axis, size in enumerate(sizes)):
            continue
        dims = tuple(place[axis] if size > 1 else None for axis, size in enumerate(sizes))
        for gain, axes in one.gains.items():
            at = tuple(None if dim is None else axes[dim] for dim in dims)
            if all(a is not None for a, dim in zip(at, dims, strict=True) if dim is not None):
                yield Unit(path, bias, gain, dims, at, sizes)
                break


# What each primitive does to the leaves that a value is proportional to --------------------------

Gains = dict[str, Dims]


def _each(change: Callable[[JaxprEqn, Dims], Dims]) -> Callable[[JaxprEqn, list[Value]], Gains]:
    """The rule of a primitive that moves the axes of its first operand."""
    return lambda eqn, operands: {
        leaf: change(eqn, dims) for leaf, dims in operands[0].gains.items()
    }


def _broadcast(eqn: JaxprEqn, dims: Dims) -> Dims:
    shape, to = var_shape(eqn.invars[0]), eqn.params["broadcast_dimensions"]
    new: list[int | None] = [None] * len(eqn.params["shape"])
    for size, dim, axis in zip(shape, to, dims, strict=True):
        new[dim] = axis if size == eqn.params["shape"][dim] and size > 1 else None
    return tuple(new)


def _reshape(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    """Axes of size 1 may come and go."""
    # [heads, size] to [heads · size] has no axis that is one of the leaf's: it is given up.
    before, after = var_shape(eqn.invars[0]), var_shape(eqn.outvars[0])
    if [size for size in before if size > 1] != [size for size in after if size > 1]:
        return {}

    def moved(dims: Dims) -> Dims:
        wide = iter([axis for size, axis in zip(before, dims, strict=True) if size > 1])
        return tuple(next(wide) if size > 1 else None for size in after)

    return {leaf: moved(dims) for leaf, dims in operands[0].gains.items()}


def _squeeze(eqn: JaxprEqn, dims: Dims) -> Dims:
    gone = eqn.params["dimensions"]
    return tuple(axis for dim, axis in enumerate(dims) if dim not in gone)


def _product(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    """Proportional to what either is proportional to, but not to what both are."""
    return {
        leaf: _stretched(eqn, eqn.invars[side], dims)
        for side, value in enumerate(operands)
        for leaf, dims in value.gains.items()
        if not _depends(operands[1 - side], leaf)
    }


def _quotient(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    # 1 / w is not proportional to w, but the quotient depends on it.
    above, below = operands
    return _product(eqn, [above, below._replace(gains={}, leaves=below.leaves | {*below.gains})])


def _depends(value: Value, leaf: str) -> bool:
    """Whether a leaf is in a value; one that meets activations twice is not used anyway."""
    return leaf in value.leaves or leaf in value.gains


def _stretched(eqn: JaxprEqn, var: Any, dims: Dims) -> Dims:
    """Axes of size 1 broadcast in elementwise primitives, and scalars do."""
    shape, out = var_shape(var), var_shape(eqn.outvars[0])
    if not shape:
        return (None,) * len(out)
    return tuple(
        axis if before == after else None
        for axis, before, after in zip(dims, shape, out, strict=True)
    )


def _sum(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    """Proportional to what both are proportional to, unit by unit in the same way."""
    # w·x + w·y is proportional to w, w·x + b is not.
    first, second = (value.gains for value in operands)
    return {leaf: dims for leaf, dims in first.items() if second.get(leaf) == dims}


def _dot(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    contract, batch = eqn.params["dimension_numbers"]
    # The output's axes: batch, then the free ones of the left operand, then those of the right.
    found: Gains = {}
    start = len(batch[0])
    for side, value in enumerate(operands):
        ndim = len(var_shape(eqn.invars[side]))
        free = [d for d in range(ndim) if d not in (*contract[side], *batch[side])]
        for leaf, dims in value.gains.items():
            out: list[int | None] = [None] * len(var_shape(eqn.outvars[0]))
            for position, dim in (*enumerate(batch[side]), *enumerate(free, start)):
                out[position] = dims[dim]
            if not _depends(operands[1 - side], leaf):
                found[leaf] = tuple(out)
        start += len(free)
    return found


def _convolution(eqn: JaxprEqn, operands: list[Value]) -> Gains:
    numbers = eqn.params["dimension_numbers"]
    image, kernel, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec

    def outputs(dims: Dims) -> Dims:
        return tuple(dims[kernel[0]] if dim == out[1] else None for dim in range(len(image)))

    return {
        leaf: outputs(dims)
        for leaf, dims in operands[1].gains.items()
        if not _depends(operands[0], leaf)
    }


SUMS = ("add", "add_any")
CONTRACTIONS = ("dot_general", "conv_general_dilated")
GAIN_RULES: dict[str, Callable[[JaxprEqn, list[Value]], Gains]] = {
    "broadcast_in_dim": _each(_broadcast),
    "reshape": _reshape,
    "squeeze": _each(_squeeze),
    "transpose": _each(lambda eqn, dims: tuple(dims[d] for d in eqn.params["permutation"])),
    "convert_element_type": _each(lambda eqn, dims: dims),
    "copy": _each(lambda eqn, dims: dims),
    "neg": _each(lambda eqn, dims: dims),
    "mul": _product,
    "div": _quotient,
    "add": _sum,
    "add_any": _sum,
    "sub": _sum,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
