"""Walks a function's jaxpr and finds its permutation groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from dimat_jax.symmetries.axes import (
    Atom,
    Axes,
    Axis,
    Sum,
    free_axis,
    freeze,
    frozen_axis,
    join,
    resolve,
    segment_size,
    wild_axis,
)
from dimat_jax.symmetries.groups import Frozen, Group, Place, Site, Symmetries, path_name
from dimat_jax.symmetries.rules import RULES, Contraction, Equation, contractions, freeze_everything
from dimat_jax.types import Model

REPORTED = ("no rule", "a captured", "random bits")
"""Reasons for freezing that are not in the nature of the model, as its inputs and outputs are."""


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """What is known of a value in the jaxpr; compared by identity.

    Attributes:
      axes: one entry an axis.
      steps: the axes of scans inside which the value differs from step to step.
      varies: whether it depends on the inputs, rather than on variables and constants alone.
    """

    axes: Axes
    steps: Axes = ()
    varies: bool = False


class Read(NamedTuple):
    """A tensor where positions of it are mixed.

    Attributes:
      where: the equation, as indices into nested jaxprs.
      operand: which of its inputs.
      tensor: what is read.
      contraction: along which axes.
    """

    where: tuple[int, ...]
    operand: int
    tensor: Tensor
    contraction: Contraction


@dataclass
class Record:
    """What the walk leaves behind, besides what it did to the atoms."""

    carried: list[Axes] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    without_rule: list[str] = field(default_factory=list)


class Analysis(NamedTuple):
    """A function's jaxpr, dead code removed, and what was found in it.

    Attributes:
      jaxpr: reads the used leaves of ``(variables, *inputs)`` only.
      used: for each leaf of ``(variables, *inputs)``, whether it is read.
      leaves: path → axes of the variables' leaves that are read, in the order of reading.
      record: what the walk saw.
    """

    jaxpr: ClosedJaxpr
    used: list[bool]
    leaves: dict[str, Tensor]
    record: Record


def find_symmetries(
    model_or_function: Model | Callable[..., Any], variables: Any, *inputs: Any
) -> Symmetries:
    """Finds the permutation symmetries of a model or of any JAX function.

    The function is traced once with abstract values; nothing is computed. Whatever permutations of
    the groups are applied to the variables, the function's outputs stay what they are. The groups
    may be smaller than they could be where `Symmetries.notes` says so; they are never wrong.

    Args:
      model_or_function: a `Model`, of whose evaluation logits the symmetries are found; or a
        function ``f(variables, *inputs)`` from any library, all of whose outputs must stay as they
        are.
      variables: the pytree to permute; leaves may be `jax.ShapeDtypeStruct`.
      *inputs: example inputs, any pytrees; leaves may be `jax.ShapeDtypeStruct`. Only shapes and
        dtypes matter, and the batch size does not.

    Returns:
      The groups.

    Raises:
      TypeError: what tracing the function raises if it does not accept these arguments.
    """
    return symmetries_of(analyse(model_or_function, variables, *inputs))


def as_function(model_or_function: Model | Callable[..., Any]) -> Callable[..., Any]:
    """A model's evaluation logits as a function of ``(variables, *inputs)``; functions unchanged."""
    if not isinstance(model_or_function, Model):
        return model_or_function
    apply: Callable[..., Any] = model_or_function.apply
    return lambda variables, *inputs: apply(variables, *inputs)[0]


def analyse(
    model_or_function: Model | Callable[..., Any], variables: Any, *inputs: Any
) -> Analysis:
    """Traces the function, removes dead code and walks what is left."""
    closed = jax.make_jaxpr(as_function(model_or_function))(variables, *inputs)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    closed = ClosedJaxpr(jaxpr, closed.consts)
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    paths = [path_name(path) for path, _ in flat]
    arguments: list[Tensor] = []
    leaves: dict[int, str] = {}
    for index, var in zip(np.flatnonzero(used), jaxpr.invars, strict=True):
        if index < len(paths):
            leaves[len(arguments)] = paths[index]
            arguments.append(Tensor(tuple(map(free_axis, _shape(var)))))
        else:
            axes = tuple(frozen_axis(size, "an input") for size in _shape(var))
            arguments.append(Tensor(axes, varies=True))
    record = Record([tensor.axes for tensor in arguments])
    outputs = _walk(record, closed, arguments, ())
    for output in outputs:
        _freeze(output.axes, "an output")
    in_order = {leaves[i]: arguments[i] for i in _reading_order(jaxpr) if i in leaves}
    return Analysis(closed, used, in_order, record)


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _freeze(axes: Axes, why: str) -> None:
    for axis in axes:
        freeze(axis, why)


def _reading_order(jaxpr: Jaxpr) -> list[int]:
    """The indices of the inputs, in the order in which the equations read them."""
    position = {var: i for i, var in enumerate(jaxpr.invars)}
    order: dict[int, None] = {}
    for eqn in jaxpr.eqns:
        inner = called(eqn) or (eqn.params["jaxpr"] if eqn.primitive.name == "scan" else None)
        operands = [eqn.invars[i] for i in _reading_order(inner.jaxpr)] if inner else []
        for var in (*operands, *eqn.invars):
            if not isinstance(var, Literal) and var in position:
                order[position[var]] = None
    return [*order, *(i for i in range(len(position)) if i not in order)]


# The walk ---------------------------------------------------------------------------------------


def _walk(
    record: Record, closed: ClosedJaxpr, inputs: Sequence[Tensor], where: tuple[int, ...]
) -> list[Tensor]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> Tensor:
        return _constant(var.val) if isinstance(var, Literal) else env[var]

    for index, eqn in enumerate(jaxpr.eqns):
        operands = [read(var) for var in eqn.invars]
        outputs = _equation(record, eqn, operands, (*where, index))
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _constant(value: Any) -> Tensor:
    """A captured array: wild along the axes along which it is constant, frozen along the others."""
    shape = np.shape(value)
    if not shape:
        return Tensor(())
    concrete = not isinstance(value, jax.core.Tracer) and not jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.extended
    )
    array = np.asarray(value) if concrete else None
    why = f"a captured constant {value.dtype}[{','.join(map(str, shape))}]"
    return Tensor(
        tuple(
            wild_axis(size)
            if array is not None and bool(np.all(array == array.take([0], axis)))
            else frozen_axis(size, why)
            for axis, size in enumerate(shape)
            if size or True
        )
    )


def _equation(
    record: Record, eqn: JaxprEqn, inputs: list[Tensor], where: tuple[int, ...]
) -> list[Tensor]:
    name = eqn.primitive.name
    if inner := called(eqn):
        return _walk(record, inner, inputs, where)
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name](record, eqn, inputs, where)
    if name not in RULES:
        record.without_rule.append(name)
    equation = Equation(name, dict(eqn.params), [_shape(var) for var in eqn.outvars])
    axes = [tensor.axes for tensor in inputs]
    steps = tuple(dict.fromkeys(step for tensor in inputs for step in tensor.steps))
    varies = any(tensor.varies for tensor in inputs)
    outputs = RULES.get(name, freeze_everything)(equation, *axes)
    for contraction in contractions(equation):
        tensor = inputs[contraction.operand]
        _contract(record, tensor, contraction)
        record.reads.append(Read(where, contraction.operand, tensor, contraction))
    record.carried.extend((*output, *steps) for output in outputs)
    return [Tensor(output, steps, varies) for output in outputs]


def _contract(record: Record, tensor: Tensor, contraction: Contraction) -> None:
    """Records what is aligned with what where positions are mixed, as if it were a tensor."""
    dims, batch = contraction.dims, contraction.batch
    left = [axis for dim, axis in enumerate(tensor.axes) if dim not in dims]
    record.carried.append((*left, *tensor.steps))
    if contraction.kind == "product":
        mixed = [tensor.axes[dim] for dim in (*dims, *batch)]
        record.carried.append((*mixed, *tensor.steps))


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that just evaluates it: jit, remat, custom derivatives, calls."""
    if eqn.primitive.name not in CALLS:
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next(eqn.params[name] for name in names if name in eqn.params)
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


CALLS = """
jit pjit closed_call core_call call remat remat2 checkpoint custom_jvp_call custom_vjp_call
custom_vjp_call_jaxpr
""".split()


# Control flow -----------------------------------------------------------------------------------


def _scan(
    record: Record, eqn: JaxprEqn, inputs: list[Tensor], where: tuple[int, ...]
) -> list[Tensor]:
    """Layers under one scan: the leading axis is no group, but groups may vary along it."""
    params = eqn.params
    body, first, last = (
        params["jaxpr"],
        params["num_consts"],
        params["num_consts"] + params["num_carry"],
    )
    consts, init, stacked = inputs[:first], inputs[first:last], inputs[last:]
    step = frozen_axis(params["length"], "the steps of a scan")
    step = reduce(join, (tensor.axes[0] for tensor in stacked), step)
    slices = [Tensor(t.axes[1:], (*t.steps, step), t.varies) for t in stacked]
    record.carried.extend((*t.axes, *t.steps) for t in slices)
    carry, outputs = _fixpoint(
        record, lambda carry: _walk(record, body, [*consts, *carry, *slices], where), init
    )
    return [*carry, *(_stack(tensor, step) for tensor in outputs[len(carry) :])]


def _stack(tensor: Tensor, step: Axis) -> Tensor:
    steps = tuple(other for other in tensor.steps if other is not step)
    return Tensor((step, *tensor.axes), steps, tensor.varies)


def _while(
    record: Record, eqn: JaxprEqn, inputs: list[Tensor], where: tuple[int, ...]
) -> list[Tensor]:
    params = eqn.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond_consts, body_consts, init = inputs[:first], inputs[first:last], inputs[last:]
    reads = len(record.reads)
    carry, _ = _fixpoint(
        record,
        lambda carry: _walk(record, params["body_jaxpr"], [*body_consts, *carry], where),
        init,
    )
    for predicate in _walk(record, params["cond_jaxpr"], [*cond_consts, *carry], where):
        _freeze(predicate.axes, "the condition of a loop")
    del record.reads[reads:]
    return carry


def _cond(
    record: Record, eqn: JaxprEqn, inputs: list[Tensor], where: tuple[int, ...]
) -> list[Tensor]:
    reads = len(record.reads)
    branches = [_walk(record, branch, inputs[1:], where) for branch in eqn.params["branches"]]
    del record.reads[reads:]
    return [reduce(_join_tensors, outputs) for outputs in zip(*branches, strict=True)]


def _join_tensors(x: Tensor, y: Tensor) -> Tensor:
    """A value that is sometimes one, sometimes the other."""
    axes = tuple(join(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    return Tensor(axes, tuple(step for step in x.steps if step in y.steps), x.varies or y.varies)


def _fixpoint(
    record: Record, body: Callable[[list[Tensor]], list[Tensor]], carry: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Walks a loop's body until what it carries out is what it carries in.

    A carry that starts as zeros is wild at first; what it becomes must hold from the first step on.
    Each round makes wild positions concrete or ties atoms, so it ends.
    """
    while True:
        reads, carried = len(record.reads), len(record.carried)
        outputs = body(carry)
        joined = [_join_tensors(x, y) for x, y in zip(carry, outputs, strict=False)]
        if all(map(_same, carry, joined)):
            record.carried.extend((*tensor.axes, *tensor.steps) for tensor in joined)
            return joined, outputs
        del record.reads[reads:], record.carried[carried:]
        carry = joined


def _same(x: Tensor, y: Tensor) -> bool:
    same_axes = all(resolve(a) == resolve(b) for a, b in zip(x.axes, y.axes, strict=True))
    return same_axes and x.steps == y.steps and x.varies == y.varies


CONTROL_FLOW = {"scan": _scan, "while": _while, "cond": _cond}


# The groups -------------------------------------------------------------------------------------


def symmetries_of(analysis: Analysis) -> Symmetries:
    """What stayed free, as named groups."""
    frozen = [
        Frozen(path, place.axis, atom.size, atom.frozen)
        for path, atom, place in _standing(analysis)
        if atom.frozen
    ]
    sites: dict[str, list[Site]] = {}
    names = group_names(analysis)
    for path, atom, place in _standing(analysis):
        if atom in names:
            sites.setdefault(names[atom], []).append(Site(path, *place))
    groups = {names[atom]: Group(atom.size, tuple(sites[names[atom]])) for atom in names}
    return Symmetries(groups, {}, tuple(frozen), _notes(analysis, frozen))


def _standing(analysis: Analysis) -> Iterator[tuple[str, Atom, Place]]:
    """Every atom of the leaves with where it stands, in the order of reading."""
    for path, tensor in analysis.leaves.items():
        for dim, axis in enumerate(tensor.axes):
            for atom, place in places(dim, axis):
                yield path, atom, place


def group_names(analysis: Analysis) -> dict[Atom, str]:
    """The free atoms of the leaves, named after the leaf they begin at.

    Where a leaf begins several, the axis is added, and the position on it if need be.
    """
    begin: dict[str, dict[Atom, int]] = {}
    seen: set[Atom] = set()
    for path, atom, place in _standing(analysis):
        if not atom.frozen and atom.size > 1 and atom not in seen:
            seen.add(atom)
            begin.setdefault(path, {})[atom] = place.axis
    names = {}
    for path, axis_of in begin.items():
        axes = list(axis_of.values())
        for i, (atom, axis) in enumerate(axis_of.items()):
            several = f".{axes[:i].count(axis)}" if axes.count(axis) > 1 else ""
            names[atom] = path if len(axes) == 1 else f"{path}[{axis}{several}]"
    return names


def _notes(analysis: Analysis, frozen: list[Frozen]) -> tuple[str, ...]:
    why = [f"no rule for the primitive {name!r}" for name in analysis.record.without_rule]
    for part in frozen:
        if part.why.startswith(REPORTED):
            why.append(f"{part.path}, axis {part.axis}, is frozen by {part.why}")
    return tuple(dict.fromkeys(why))


def places(dim: int, axis: Axis, start: int = 0, after: int = 1) -> Iterator[tuple[Atom, Place]]:
    """The root atoms on an axis with the places where they stand, in order.

    Args:
      dim: which axis of the tensor it is.
      axis: what stands on it.
      start: where it starts, as a part of a longer axis.
      after: how many positions each of its own stands for, as an outer part of a product.
    """
    for segment in resolve(axis):
        length = segment_size(segment) * after
        for i, factor in enumerate(segment):
            before, inner = segment_size(segment[:i]), segment_size(segment[i + 1 :]) * after
            if isinstance(factor, Atom):
                yield factor, Place(dim, (start, length), (before, factor.size, inner))
            elif isinstance(factor, Sum):
                for k in range(before):
                    offset = start + k * factor.size * inner
                    yield from places(dim, factor.segments, offset, inner)
        start += length
