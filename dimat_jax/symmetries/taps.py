"""Evaluates a jaxpr and keeps operands of some of its equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import Array

from dimat_jax.jaxprs import Path, bind, enter_or_bind, evaluate, scan_of

Tap = tuple[Path, int]
"""An equation, and which of its operands."""


def evaluate_with_taps(
    closed: ClosedJaxpr, inputs: Sequence[Any], wanted: set[Tap], path: Path = ()
) -> tuple[list[Any], dict[Tap, Array]]:
    """Evaluates a jaxpr and keeps the wanted operands.

    Calls and scans are entered only where something in them is wanted. Loops and branches are
    evaluated as they are: nothing can be kept of them.

    Args:
      closed: the jaxpr.
      inputs: an array for each of its inputs.
      wanted: what to keep.
      path: of the equation that holds this jaxpr.

    Returns:
      The outputs, and the operands; those in a scan are stacked over its steps.
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
        if eqn.primitive.name != "scan":
            return enter_or_bind(path, eqn, operands, equation)
        outputs, inside = _evaluate_scan(path, eqn, operands, wanted)
        taps.update(inside)
        return outputs

    return evaluate(closed, inputs, equation, path=path), taps


def _evaluate_scan(
    path: Path, eqn: JaxprEqn, operands: Sequence[Any], wanted: set[Tap]
) -> tuple[list[Any], dict[Tap, Array]]:
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
