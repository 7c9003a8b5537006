"""Evaluates a jaxpr and keeps operands of some of its equations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from dimat_jax.jaxprs import Path, bind, branches_of, enter_or_bind, evaluate, scan_of, while_of

Tap = tuple[Path, int]
"""An equation, and which of its operands."""


def evaluate_with_taps(
    closed: ClosedJaxpr, inputs: Sequence[Any], wanted: set[Tap], path: Path = ()
) -> tuple[list[Any], dict[Tap, Array]]:
    """Evaluates a jaxpr and keeps the wanted operands.

    Calls, loops and branches are entered only where something in them is wanted.

    Args:
      closed: the jaxpr.
      inputs: an array for each of its inputs.
      wanted: what to keep.
      path: of the equation that holds this jaxpr.

    Returns:
      The outputs, and the operands; those in a scan are stacked over its steps, those in a while
      loop are of its last step, and those in a branch that is not taken are zeros.
    """
    taps: dict[Tap, Array] = {}
    # The equations that hold something wanted: (2, 5, 1) is held by (2,) and (2, 5).
    holders = {to[:depth] for to, _ in wanted for depth in range(1, len(to))}

    def equation(path: Path, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        for position, operand in enumerate(operands):
            if (path, position) in wanted:
                taps[path, position] = jnp.asarray(operand)
        # What holds nothing is evaluated as it is: a call stays one, with its name and its barrier.
        if path not in holders:
            return bind(eqn, operands)
        if eqn.primitive.name not in ENTERED:
            return enter_or_bind(path, eqn, operands, equation)
        outputs, inside = ENTERED[eqn.primitive.name](path, eqn, operands, wanted)
        taps.update(inside)
        return outputs

    return evaluate(closed, inputs, equation, path=path), taps


Evaluated = tuple[list[Any], dict[Tap, Array]]


def _evaluate_scan(
    path: Path, eqn: JaxprEqn, operands: Sequence[Any], wanted: set[Tap]
) -> Evaluated:
    """A scan whose body is evaluated with taps: they are stacked over its steps."""
    scan = scan_of(eqn)
    consts, first, inputs = scan.split(operands)

    # What is kept leaves the scan as one more output of each step.
    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], Any]:
        outputs, taps = evaluate_with_taps(scan.body, [*consts, *carry, *inputs], wanted, path)
        return outputs[: len(carry)], (outputs[len(carry) :], taps)

    carry, (outputs, taps) = lax.scan(
        step, first, inputs, length=scan.length, reverse=scan.reverse, unroll=scan.unroll
    )
    return [*carry, *outputs], taps


def _evaluate_while(
    path: Path, eqn: JaxprEqn, operands: Sequence[Any], wanted: set[Tap]
) -> Evaluated:
    """A while loop whose body is evaluated with taps: those of the last step are carried out."""
    loop = while_of(eqn)
    cond_consts, body_consts, first = loop.split(operands)
    first = [
        jnp.asarray(x, aval.dtype) if np.isscalar(x) else x
        for x, aval in zip(first, loop.body.in_avals[len(body_consts) :], strict=True)
    ]

    def body(carry: list[Any]) -> Evaluated:
        return evaluate_with_taps(loop.body, [*body_consts, *carry], wanted, path)

    def goes_on(state: Evaluated) -> Any:
        return jaxpr_as_fun(loop.cond)(*cond_consts, *state[0])[0]

    # Nobody knows of a first step: until then there are zeros.
    start = first, _zeros(jax.eval_shape(body, first)[1])
    return lax.while_loop(goes_on, lambda state: body(state[0]), start)


def _evaluate_cond(
    path: Path, eqn: JaxprEqn, operands: Sequence[Any], wanted: set[Tap]
) -> Evaluated:
    """A conditional whose branches are evaluated with taps: each gives zeros for the others'."""
    index, *rest = operands
    branches = [
        functools.partial(_evaluate_branch, branch, wanted, (*path, number))
        for number, branch in enumerate(branches_of(eqn))
    ]
    shapes = [jax.eval_shape(branch, *rest)[1] for branch in branches]
    every = {tap: shape for of_branch in shapes for tap, shape in of_branch.items()}

    def filled(branch: Callable[..., Evaluated], *operands: Any) -> Evaluated:
        outputs, taps = branch(*operands)
        return outputs, _zeros(every) | taps

    return lax.switch(index, [functools.partial(filled, branch) for branch in branches], *rest)


def _evaluate_branch(
    branch: ClosedJaxpr, wanted: set[Tap], path: Path, *operands: Any
) -> Evaluated:
    return evaluate_with_taps(branch, operands, wanted, path)


def _zeros(shapes: dict[Tap, Any]) -> dict[Tap, Array]:
    return {tap: jnp.zeros(shape.shape, shape.dtype) for tap, shape in shapes.items()}


ENTERED = {"scan": _evaluate_scan, "while": _evaluate_while, "cond": _evaluate_cond}
