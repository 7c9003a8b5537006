"""The walk along a jaxpr: what each equation does to the axes of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from dimat_jax.jaxprs import (
    Path,
    branches_of,
    by_platform,
    called,
    evaluate,
    scan_of,
    solver_of,
    while_of,
)
from dimat_jax.symmetries.axes import (
    Atom,
    Axes,
    Axis,
    atoms,
    freeze,
    frozen_axis,
    resolve,
    unify,
    wild_axis,
)
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules import (
    ELEMENTWISE,
    RULES,
    SCATTER,
    Contraction,
    Equation,
    Kind,
    contractions,
    freeze_everything,
)
from dimat_jax.symmetries.slices import SlicedAxis
from dimat_jax.symmetries.values import Value, known_constant, known_output


class ScanStep(NamedTuple):
    """The position in a scan: an axis that values inside the scan have besides their own.

    Attributes:
      scan: which scan: the path of its equation.
      axis: its steps. Two nested scans may run over the same layers, not in step.
    """

    scan: Path
    axis: Axis


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """What is known of a value in the jaxpr; compared by identity.

    Attributes:
      axes: one entry an axis.
      steps: the scans in which the value differs from step to step.
      varies: whether it depends on the inputs, rather than on variables and constants alone.
      value: what it is, of small arrays of integers that depend on nothing.
    """

    axes: Axes
    steps: tuple[ScanStep, ...] = ()
    varies: bool = False
    value: Value = None

    def carries(self) -> Axes:
        """All axes that the value has, those of scans included."""
        return (*self.axes, *(step.axis for step in self.steps))


class Read(NamedTuple):
    """A tensor where positions of it are mixed.

    Attributes:
      path: of the equation.
      operand: which of its inputs.
      tensor: what is read.
      contraction: along which axes.
      scans: the axes of the scans that it stands in, the outermost first.
    """

    path: Path
    operand: int
    tensor: Tensor
    contraction: Contraction
    scans: Axes


@dataclass
class Record:
    """What the walk leaves behind, besides what it did to the atoms.

    Attributes:
      carried: the axes of every tensor, and what stays aligned where positions are mixed.
      reads: where positions are mixed.
      slices: what slices made copies of.
      scans: the axes of the scans around the equation that is walked.
      consumed: atoms that some equation made something of, and not only handed on or left out.
      callers: the equations around the one that is walked, the outermost first.
      first: for each cause the first equation in which it froze something, and those around it, the
        innermost first.
    """

    carried: list[Axes] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    slices: list[SlicedAxis] = field(default_factory=list)
    scans: Axes = ()
    consumed: set[Atom] = field(default_factory=set)
    callers: list[JaxprEqn] = field(default_factory=list)
    first: dict[Cause, tuple[JaxprEqn, ...]] = field(default_factory=dict)

    def mark(self) -> tuple[int, int, int]:
        """How much there is now, for `forget`."""
        return len(self.carried), len(self.reads), len(self.slices)

    def forget(self, mark: tuple[int, int, int]) -> None:
        """Forgets what a walk left since, because the same equations are walked again."""
        del self.carried[mark[0] :], self.reads[mark[1] :], self.slices[mark[2] :]

    def blame(self, cause: Cause, eqn: JaxprEqn) -> None:
        """Notes that a cause froze something in an equation, unless it did so before."""
        self.first.setdefault(cause, (eqn, *reversed(self.callers)))


def var_shape(var: Any) -> tuple[int, ...]:
    """The shape of a jaxpr's variable; tokens and the like have none."""
    return tuple(getattr(var.aval, "shape", ()))


def freeze_all(axes: Axes, why: Cause) -> None:
    """Freezes every axis of a tensor."""
    for axis in axes:
        freeze(axis, why)


def walk(
    record: Record, closed: ClosedJaxpr, inputs: Sequence[Tensor], path: Path = ()
) -> list[Tensor]:
    """Walks a jaxpr's equations in order and returns what is known of its outputs.

    Args:
      record: what the walk leaves behind.
      closed: the jaxpr.
      inputs: what is known of its inputs.
      path: of the equation that holds this jaxpr.
    """
    needed = _needed(closed.jaxpr)

    def equation(path: Path, eqn: JaxprEqn, operands: list[Tensor]) -> list[Tensor]:
        if path[-1] in needed:
            return _equation(record, eqn, operands, path)
        return [Tensor(tuple(map(wild_axis, var_shape(var)))) for var in eqn.outvars]

    return evaluate(closed, inputs, equation, _constant, path)


def _needed(jaxpr: Jaxpr) -> set[int]:
    """The equations on which the outputs' elements depend.

    Not those that only make arrays without elements, as `jnp.pad` does where it pads by nothing.
    """
    # Dead code was removed before the walk, but not what a custom derivative holds, and not what
    # only gives a shape: jnp.pad(x, 0, "mean") computes a mean, of which it takes no element. The
    # rules would freeze and mix for nothing.
    live = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    needed: set[int] = set()
    for index, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if eqn.effects or any(var in live and 0 not in var_shape(var) for var in eqn.outvars):
            needed.add(index)
            live.update(var for var in eqn.invars if not isinstance(var, Literal))
    return needed


def _constant(value: Any) -> Tensor:
    """A captured array: wild along the axes along which it is constant, frozen along the others."""
    shape = np.shape(value)
    if not shape:
        return Tensor((), value=known_constant(value))
    # Under an outer jit a captured array may be a tracer, and typed keys have no bytes to look at.
    concrete = not isinstance(value, jax.core.Tracer) and not jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.extended
    )
    uniform = _uniform(np.asarray(value)) if concrete else (False,) * len(shape)
    why = Cause(Reason.CONSTANT, f"{value.dtype}[{','.join(map(str, shape))}]")
    axes = tuple(
        wild_axis(size) if same else frozen_axis(size, why)
        for size, same in zip(shape, uniform, strict=True)
    )
    return Tensor(axes, value=known_constant(value))


def _uniform(array: np.ndarray) -> tuple[bool, ...]:
    """Whether the array is constant along each axis, bit by bit: 0 and −0 are not the same."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    bits = flat.reshape(*array.shape, array.itemsize)
    sides = (np.moveaxis(bits, axis, 0) for axis in range(array.ndim))
    return tuple(bool((side == side[:1]).all()) for side in sides)


def _equation(record: Record, eqn: JaxprEqn, inputs: list[Tensor], path: Path) -> list[Tensor]:
    name = eqn.primitive.name
    if (inner := called(eqn)) or name in CONTROL_FLOW:
        record.callers.append(eqn)
        if inner:
            outputs = walk(record, inner, inputs, path)
        else:
            outputs = CONTROL_FLOW[name](record, eqn, inputs, path)
        record.callers.pop()
        return outputs
    axes = [tensor.axes for tensor in inputs]
    values = [tensor.value for tensor in inputs]
    shapes = [var_shape(var) for var in eqn.outvars]
    equation = Equation(name, dict(eqn.params), shapes, record.slices, values)
    steps = tuple(dict.fromkeys(step for tensor in inputs for step in tensor.steps))
    varies = any(tensor.varies for tensor in inputs)
    value = known_output(name, eqn.params, values)
    if name not in RULES:
        record.blame(Cause(Reason.NO_RULE, name), eqn)
    rule = RULES.get(name, freeze_everything)
    before = {atom: atom.frozen for atom in _atoms_of(inputs)}
    outputs = [Tensor(output, steps, varies, value) for output in rule(equation, *axes)]
    _account(record, eqn, before, inputs, outputs)
    record.carried.extend(tensor.carries() for tensor in outputs)
    for contraction in contractions(equation, axes):
        tensor = inputs[contraction.operand]
        _contract(record, tensor, contraction)
        record.reads.append(Read(path, contraction.operand, tensor, contraction, record.scans))
    return outputs


CONSUME_NOTHING = {"slice", "split", "unstack", "dynamic_slice", "gather"}
CONSUME_NOTHING |= {"dynamic_update_slice", *SCATTER, *ELEMENTWISE}
"""Primitives that hand on what they read, or leave out or write over parts of it: those parts are
not read by that."""


def _account(
    record: Record,
    eqn: JaxprEqn,
    before: dict[Atom, Cause | None],
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> None:
    """What an equation consumes, and for which causes it is the first.

    Args:
      record: what is added to.
      eqn: the equation.
      before: why the atoms of the inputs were frozen before it, if they were.
      inputs: of the equation.
      outputs: of the equation.
    """
    for atom, cause in before.items():
        if atom.link is None and atom.frozen is cause:
            continue  # Nothing has happened to it.
        for root in atoms(((atom,),)):
            if root.frozen and root.frozen != cause:
                record.blame(root.frozen, eqn)
    if eqn.primitive.name not in CONSUME_NOTHING:
        record.consumed |= _atoms_of(inputs) - _atoms_of(outputs)


def _atoms_of(tensors: list[Tensor]) -> set[Atom]:
    return {atom for tensor in tensors for axis in tensor.axes for atom in atoms(axis)}


def _contract(record: Record, tensor: Tensor, contraction: Contraction) -> None:
    """Records what is aligned with what where positions are mixed, as if it were a tensor."""
    # x [t, h, u] of which u is summed over: what is left, t and h, stays aligned. In a product u
    # stays aligned with the batch axes as well, since the other operand has both. Not in a sum: the
    # mean over u is the same however u is permuted at each h, or for all h at once.
    axes, steps = tensor.axes, tensor.steps
    left = tuple(axis for dim, axis in enumerate(axes) if dim not in contraction.dims)
    record.carried.append(Tensor(left, steps).carries())
    if contraction.kind is Kind.PRODUCT:
        mixed = tuple(axes[dim] for dim in (*contraction.dims, *contraction.batch))
        record.carried.append(Tensor(mixed, steps).carries())


# Control flow -----------------------------------------------------------------------------------


def _scan(record: Record, eqn: JaxprEqn, inputs: list[Tensor], path: Path) -> list[Tensor]:
    """Layers under one scan: the leading axis is no group, but groups may vary along it."""
    scan = scan_of(eqn)
    consts, init, stacked = scan.split(inputs)
    # A stacked kernel [layers, d, u] is, in the body, [d, u] with the steps beside it: u may be
    # another permutation in each layer, if everything that carries u differs from step to step.
    axis = frozen_axis(scan.length, Cause(Reason.SCAN_STEPS))
    step = ScanStep(path, reduce(unify, (tensor.axes[0] for tensor in stacked), axis))
    slices = [Tensor(t.axes[1:], (*t.steps, step), t.varies) for t in stacked]
    record.carried.extend(tensor.carries() for tensor in slices)
    record.scans += (step.axis,)
    carry, outputs = _fixpoint(
        record, lambda carry: walk(record, scan.body, [*consts, *carry, *slices], path), init
    )
    record.scans = record.scans[:-1]
    return [*carry, *(_stack(tensor, step) for tensor in outputs[len(carry) :])]


def _stack(tensor: Tensor, step: ScanStep) -> Tensor:
    # The steps of this scan are an axis again; those of scans around it stay beside the value.
    steps = tuple(other for other in tensor.steps if other != step)
    return Tensor((step.axis, *tensor.axes), steps, tensor.varies)


def _while(record: Record, eqn: JaxprEqn, inputs: list[Tensor], path: Path) -> list[Tensor]:
    loop = while_of(eqn)
    cond_consts, body_consts, init = loop.split(inputs)
    carry, _ = _fixpoint(
        record, lambda carry: walk(record, loop.body, [*body_consts, *carry], path), init
    )
    reads = len(record.reads)
    for predicate in walk(record, loop.cond, [*cond_consts, *carry], path):
        freeze_all(predicate.axes, Cause(Reason.LOOP_CONDITION))
    del record.reads[reads:]  # they cannot leave the loop
    return carry


def _cond(record: Record, eqn: JaxprEqn, inputs: list[Tensor], path: Path) -> list[Tensor]:
    reads = len(record.reads)
    branches = [
        walk(record, branch, inputs[1:], (*path, number))
        for number, branch in enumerate(branches_of(eqn))
    ]
    if by_platform(eqn):
        del record.reads[reads:]  # not all of the branches can be evaluated here
    unified = [reduce(_unify_tensors, outputs) for outputs in zip(*branches, strict=True)]
    record.carried.extend(tensor.carries() for tensor in unified)
    return unified


def _linear_solve(record: Record, eqn: JaxprEqn, inputs: list[Tensor], path: Path) -> list[Tensor]:
    solver, reads = solver_of(eqn), len(record.reads)
    outputs = walk(record, solver.jaxpr, solver.split(inputs), path)
    del record.reads[reads:]  # it is evaluated as a whole
    return outputs


def _unify_tensors(x: Tensor, y: Tensor) -> Tensor:
    """A value that is sometimes one, sometimes the other."""
    # It varies with a scan's steps only if it does so either way: else one value goes for all.
    axes = tuple(unify(a, b) for a, b in zip(x.axes, y.axes, strict=True))
    return Tensor(axes, tuple(step for step in x.steps if step in y.steps), x.varies or y.varies)


def _fixpoint(
    record: Record, body: Callable[[list[Tensor]], list[Tensor]], carry: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Walks a loop's body until what it carries out is what it carries in.

    A carry that starts as zeros is wild at first; what it becomes must hold from the first step on.
    Each round makes wild positions concrete or unifies atoms, so it ends.
    """
    # A counter that starts at 0 is not 0 in the second step.
    carry = [replace(tensor, value=None) for tensor in carry]
    while True:
        # `h = zeros(5)` before a loop `h = tanh(x @ a + h @ w)`: the first round sees a wild carry,
        # and w's rows free; the second one carries what `x @ a` has, and unifies w's rows with it.
        mark = record.mark()
        outputs = body(carry)
        unified = [_unify_tensors(x, y) for x, y in zip(carry, outputs, strict=False)]
        if all(map(_same, carry, unified)):
            record.carried.extend(tensor.carries() for tensor in unified)
            return unified, outputs
        record.forget(mark)
        carry = unified


def _same(x: Tensor, y: Tensor) -> bool:
    same_axes = all(resolve(a) == resolve(b) for a, b in zip(x.axes, y.axes, strict=True))
    return same_axes and x.steps == y.steps and x.varies == y.varies


CONTROL_FLOW = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}
