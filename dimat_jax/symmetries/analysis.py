"""Traces a function, removes dead code and walks what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from dimat_jax.jaxprs import called, scan_of
from dimat_jax.registry import attempt, expect
from dimat_jax.symmetries.axes import atoms, free_axis, frozen_axis
from dimat_jax.symmetries.groups import path_name
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.slices import PerSlice, blocks, settle
from dimat_jax.symmetries.walk import Record, Tensor, freeze_all, var_shape, walk
from dimat_jax.types import Model


class Analysis(NamedTuple):
    """A function's jaxpr, dead code removed, and what was found in it.

    Attributes:
      jaxpr: reads the used leaves of ``(variables, *inputs)`` only.
      used: for each leaf of ``(variables, *inputs)``, whether it is read.
      leaves: path → axes of the variables' leaves that are read, in the order of reading.
      record: what the walk saw.
      per_slice: the atoms that stand for different permutations in different slices.
    """

    jaxpr: ClosedJaxpr
    used: list[bool]
    leaves: dict[str, Tensor]
    record: Record
    per_slice: PerSlice


FAILS = "The function does not take these variables and inputs"
"""What is said where it fails on them."""


def as_function(model_or_function: Model | Callable[..., Any]) -> Callable[..., Any]:
    """A model's evaluation logits as a function ``f(variables, *inputs)``; functions unchanged."""
    if not isinstance(model_or_function, Model):
        expect("model_or_function", model_or_function, Callable, "a dj.Model or a function")
        return model_or_function
    expect("The model's apply", model_or_function.apply, Callable, "a function")
    apply: Callable[..., Any] = model_or_function.apply
    return lambda variables, *inputs: apply(variables, *inputs)[0]


def analyse(
    model_or_function: Model | Callable[..., Any], variables: Any, *inputs: Any
) -> Analysis:
    """Traces the function, removes dead code and walks what is left."""
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    paths = [path_name(path) for path, _ in flat]
    _check_leaves(paths, [leaf for _, leaf in flat])
    trace = jax.make_jaxpr(as_function(model_or_function))
    closed = attempt(FAILS, trace, variables, *inputs)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    closed = ClosedJaxpr(jaxpr, closed.consts)
    arguments: list[Tensor] = []
    leaves: dict[int, str] = {}
    for index, var in zip(np.flatnonzero(used), jaxpr.invars, strict=True):
        if index < len(paths):
            leaves[len(arguments)] = paths[index]
            arguments.append(Tensor(tuple(map(free_axis, var_shape(var)))))
        else:
            axes = tuple(frozen_axis(size, Cause(Reason.INPUT)) for size in var_shape(var))
            arguments.append(Tensor(axes, varies=True))
    record = Record([tensor.axes for tensor in arguments])
    outputs = walk(record, closed, arguments)
    for output in outputs:
        freeze_all(output.axes, Cause(Reason.OUTPUT))
    in_order = {leaves[i]: arguments[i] for i in _reading_order(jaxpr) if i in leaves}
    per_slice = settle(record.slices, record.carried)
    _freeze_unread(record, in_order, per_slice)
    return Analysis(closed, used, in_order, record, per_slice)


def _freeze_unread(record: Record, leaves: dict[str, Tensor], per_slice: PerSlice) -> None:
    """Freezes the positions of leaves that are only handed on, or left out by slices.

    Those of a table of positions beyond the example's length: longer inputs may read them.
    """
    # What was consumed may have been cut or unified since: its roots are asked for now.
    read = {atom for consumed in record.consumed for atom in atoms(((consumed,),))}
    for tensor in leaves.values():
        for block, _ in blocks(tensor.axes, per_slice):
            for atom in (atom for axis in block for atom in atoms(axis)):
                if atom not in read:
                    atom.frozen = atom.frozen or Cause(Reason.UNREAD)


def _check_leaves(paths: list[str], leaves: list[Any]) -> None:
    """Two leaves of one name could not be told apart; what is no array cannot be traced."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"Two leaves of the variables have the path {twice!r}; rename one.")
    for path, leaf in zip(paths, leaves, strict=True):
        if callable(leaf):
            raise ValueError(
                f"The leaf {path!r} of the variables is a function. Of an Equinox module, pass the "
                f"arrays: `arrays, static = eqx.partition(module, eqx.is_array)`, and a function "
                f"that calls `eqx.combine(arrays, static)`."
            )


def _reading_order(jaxpr: Jaxpr) -> list[int]:
    """The indices of the inputs, in the order in which the equations read them."""
    # A call or a scan reads in the order of its own equations, not in that of its operands.
    position = {var: i for i, var in enumerate(jaxpr.invars)}
    order: dict[int, None] = {}
    for eqn in jaxpr.eqns:
        inner = called(eqn) or (scan_of(eqn).body if eqn.primitive.name == "scan" else None)
        operands = [eqn.invars[i] for i in _reading_order(inner.jaxpr)] if inner else []
        for var in (*operands, *eqn.invars):
            if not isinstance(var, Literal) and var in position:
                order[position[var]] = None
    return [*order, *(i for i in range(len(position)) if i not in order)]
