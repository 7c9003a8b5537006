"""Jaxprs: what the parameters of their primitives mean, from JAX 0.9 to 0.12, and named functions.

Primitives keep their meaning from one JAX release to the next, but not the names of their
parameters: whoever reads a primitive that holds jaxprs does so here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

T = TypeVar("T")

# Calls -------------------------------------------------------------------------------------------

CALLS = {
    "jit": ("jaxpr",),
    "remat2": ("jaxpr",),  # `jax.checkpoint`; printed as "checkpoint"
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vmap_call": ("call",),
    "call": ("call_jaxpr",),  # until JAX 0.10
    "closed_call": ("call_jaxpr",),  # until JAX 0.10
    "eval_jaxpr": ("call_jaxpr", "jaxpr"),  # in the place of those two; renamed in JAX 0.11
    "composite": ("call_jaxpr", "jaxpr"),  # renamed in JAX 0.11
}
"""The primitives that just evaluate a jaxpr on their operands, and the parameter that holds it."""


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that just evaluates it: jit, remat, custom derivatives, calls."""
    names = CALLS.get(eqn.primitive.name, ())
    return next((_closed(eqn.params[name]) for name in names if name in eqn.params), None)


def _closed(jaxpr: Any) -> ClosedJaxpr:
    """From JAX 0.11 on every jaxpr is a closed one."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


# Control flow ------------------------------------------------------------------------------------

CONTROL_FLOW = ("scan", "while", "cond")
"""The primitives that evaluate jaxprs any number of times, or one of several."""


class Scan(NamedTuple):
    """A ``scan``: ``*carry, *outputs[i] = body(*consts, *carry, *inputs[i])`` for each step i.

    Attributes:
      body: what is evaluated at each step.
      num_consts: how many operands are the same at each step; they come first.
      num_carry: how many operands, and results, are carried from step to step; they come next.
      length: how many steps.
      reverse: whether the last step comes first.
      unroll: how many steps an iteration of the loop has.
    """

    body: ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int

    def split(self, operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """The operands as constants, first carry and inputs, which have an axis of steps."""
        consts, first = self.num_consts, self.num_consts + self.num_carry
        return list(operands[:consts]), list(operands[consts:first]), list(operands[first:])


def scan_of(eqn: JaxprEqn) -> Scan:
    """What a ``scan`` does."""
    params = eqn.params
    if "num_consts" in params:
        consts, carry = params["num_consts"], params["num_carry"]
    else:  # From JAX 0.11 on a tree of (constants, carry, inputs) says which operand is which.
        parts = params["ft_in"].update(range(len(eqn.invars))).unpack()
        consts, carry, _ = (len(list(part)) for part in parts)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    return Scan(_closed(params["jaxpr"]), consts, carry, **options)


class While(NamedTuple):
    """A ``while``: ``carry = body(*body_consts, *carry)`` as long as ``cond`` of it is true.

    Attributes:
      cond: what decides whether to go on.
      body: what is evaluated at each step.
      num_cond_consts: how many operands only the condition reads; they come first.
      num_body_consts: how many operands only the body reads; they come next.
    """

    cond: ClosedJaxpr
    body: ClosedJaxpr
    num_cond_consts: int
    num_body_consts: int

    def split(self, operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """The operands as constants of the condition, constants of the body and first carry."""
        cond, first = self.num_cond_consts, self.num_cond_consts + self.num_body_consts
        return list(operands[:cond]), list(operands[cond:first]), list(operands[first:])


def while_of(eqn: JaxprEqn) -> While:
    """What a ``while`` does."""
    params = eqn.params
    jaxprs = _closed(params["cond_jaxpr"]), _closed(params["body_jaxpr"])
    return While(*jaxprs, params["cond_nconsts"], params["body_nconsts"])


def branches_of(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """The branches of a ``cond``; its first operand says which, the others go to any of them."""
    return [_closed(branch) for branch in eqn.params["branches"]]


# Functions whose calls can be found in a jaxpr ---------------------------------------------------

KNOWN = "dimat_jax."
"""What their names begin with in a jaxpr."""


def known(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jits a function under a name by which `dimat_jax.execution.kernels` finds its calls.

    Args:
      function: of arrays.
      **options: of `jax.jit`.
    """

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        return function(*args)

    named.__name__ = KNOWN + function.__name__
    return functools.wraps(function)(jax.jit(named, **options))
