"""How much a program computes and moves at least, counted in its jaxpr.

Only matrix products and convolutions are counted: their multiplications and additions, and the
bytes of their operands and results; and what a loop carries from step to step. All else could be
computed on the way. An accelerator that does
its best needs the time for the more of both: the roofline of Williams et al. 2009.
"""

import math
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, JaxprEqn

from dimat_jax.jaxprs import branches_of, called, scan_of, while_of


class Work(NamedTuple):
    """What is computed and moved, on all devices together.

    Attributes:
      operations: floating-point multiplications and additions.
      moved: bytes.
    """

    operations: float = 0.0
    moved: float = 0.0


def add(first: Work, second: Work) -> Work:
    """Both."""
    return Work(*map(sum, zip(first, second, strict=True)))


def times(number: int | float, work: Work) -> Work:
    """So many times the same."""
    return Work(*(number * x for x in work))


def work_of(closed: ClosedJaxpr) -> Work:
    """The work of a jaxpr, loops included. A ``while`` is counted as one turn, at least."""
    total = Work()
    for eqn in closed.jaxpr.eqns:
        total = add(total, work_of_equation(eqn))
    return total


def work_of_equation(eqn: JaxprEqn) -> Work:
    """The work of an equation, and of the jaxprs that it holds."""
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = shape_of(eqn.invars[0])
            return product(eqn, math.prod(shape[axis] for axis in contracted))
        case "conv_general_dilated":
            numbers, kernel = eqn.params["dimension_numbers"], shape_of(eqn.invars[1])
            # A kernel is [features out, features in of a group, *window], in any order; where the
            # images are spread out by zeros, most of the window meets zeros.
            zeros = math.prod(eqn.params["lhs_dilation"])
            return product(eqn, math.prod(kernel) / kernel[numbers.rhs_spec[0]] / zeros)
        case "scan":
            scan = scan_of(eqn)
            _, carry, _ = scan.split(eqn.invars)
            # What is carried from step to step is read and written in each.
            carried = Work(0, 2 * sum(bytes_of_aval(var) for var in carry))
            return times(scan.length, add(carried, work_of(scan.body)))
        case "while":
            return work_of(while_of(eqn).body)
        case "cond":
            return max(map(work_of, branches_of(eqn)))
        case "shard_map":
            # Its jaxpr is that of one device.
            return times(eqn.params["mesh"].size, work_of(closed(eqn.params["jaxpr"])))
    inner = called(eqn)
    return Work() if inner is None else work_of(inner)


def closed(jaxpr: object) -> ClosedJaxpr:
    """A jaxpr with the constants that it holds; it may have them already."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())  # pyrefly: ignore


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr."""
    return var.aval.shape


def bytes_of_aval(var: Any) -> int:
    """Bytes of a variable of a jaxpr."""
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize


def product(eqn: JaxprEqn, summed: int | float) -> Work:
    """The work of sums of so many products, one for each entry of an equation's result."""
    moved = sum(map(bytes_of_aval, (*eqn.invars, *eqn.outvars)))
    return Work(2.0 * summed * math.prod(shape_of(eqn.outvars[0])), moved)
