"""Jaxprs: one loop that evaluates them, and what primitives that hold jaxprs mean.

`evaluate` goes through a jaxpr's equations and asks a hook what each of them does, to arrays or to
whatever is known of them: `dimat_jax.symmetries` finds permutation groups so, taps activations, and
`dimat_jax.execution` puts compiled kernels or matrix products in the place of convolutions.

Primitives keep their meaning from one JAX release to the next, but not the names of their
parameters: those that hold jaxprs are read here only, for JAX 0.9 to 0.12.
"""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

T = TypeVar("T")

Path = tuple[int, ...]
"""Where an equation stands: its index in the outermost jaxpr, then its index in the jaxpr that the
equation there holds, and so on."""

Hook = Callable[[Path, JaxprEqn, list[T]], list[T]]
"""``(path, eqn, operands) -> outputs``: what an equation does to values of some kind."""

# Evaluation --------------------------------------------------------------------------------------


def evaluate(
    closed: ClosedJaxpr,
    inputs: Sequence[T],
    equation: Hook[T],
    constant: Callable[[Any], Any] = lambda value: value,
    path: Path = (),
) -> list[T]:
    """Evaluates a jaxpr on values of any kind.

    Args:
      closed: the jaxpr.
      inputs: a value for each of its inputs.
      equation: what each equation does; `enter_or_bind` is what it does to arrays.
      constant: makes a value of a captured constant or a literal.
      path: of the equation that holds this jaxpr.

    Returns:
      A value for each output.
    """
    jaxpr = closed.jaxpr
    values: dict[Var, T] = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    # Nothing is forgotten when it was read for the last time: under `jit`, where this runs, values
    # are tracers, and XLA sees to memory.
    def read(var: Any) -> T:
        return constant(var.val) if isinstance(var, Literal) else values[var]

    for index, eqn in enumerate(jaxpr.eqns):
        outputs = equation((*path, index), eqn, [read(var) for var in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def enter_or_bind(path: Path, eqn: JaxprEqn, operands: list[Any], equation: Hook[Any]) -> list[Any]:
    """What an equation does to arrays; of a call, ``equation`` says it for all that is inside."""
    inner = called(eqn)
    if inner is None:
        return bind(eqn, operands)
    return evaluate(inner, _behind_barrier(eqn, operands), equation, path=path)


def rewrite(function: Callable[..., Any], equation: Hook[Any]) -> Callable[..., Any]:
    """The same function of pytrees of arrays, but each equation of its jaxpr does as the hook says.

    Args:
      function: what is traced whenever the rewritten function is called.
      equation: what each equation does to arrays, as of `evaluate`.
    """

    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(closed, jax.tree.leaves(args), equation)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _behind_barrier(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """The operands of a call, as JAX's own lowering hands them on.

    `jax.checkpoint` leaves an equation in the backward pass that computes once more what the
    forward pass did. XLA would see that both are the same and keep the first result in memory, but
    for a barrier around the operands.
    """
    if eqn.primitive.name != "remat2" or not eqn.params["differentiated"]:
        return operands
    prevent_cse = eqn.params["prevent_cse"]
    if isinstance(prevent_cse, bool):
        prevent_cse = (prevent_cse,) * len(operands)
    # A tuple says it operand by operand: those that are parameters, say, need no barrier.
    barred = [x for x, barrier in zip(operands, prevent_cse, strict=True) if barrier]
    behind = iter(lax.optimization_barrier(barred) if barred else ())
    return [
        next(behind) if barrier else x for x, barrier in zip(operands, prevent_cse, strict=True)
    ]


def bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluates one equation on arrays, as a jaxpr of its own: `eval_jaxpr` knows how."""
    # Literals stay in the equation; a variable that is read twice is one input.
    given = {var: x for var, x in zip(eqn.invars, operands, strict=True) if isinstance(var, Var)}
    alone = _empty().replace(invars=[*given], outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return eval_jaxpr(alone, (), *given.values())


@functools.cache
def _empty() -> Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr


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


IMPLEMENTED = {"maybe_set": "impl", "vprim": "impl", "call_hi_primitive": "to_lojax"}
"""Primitives written in others (of Equinox; `lax.custom_root` from JAX 0.11 on), and the attribute
that is the function of arrays."""


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that just evaluates it: jit, remat, custom derivatives, calls."""
    if eqn.primitive.name in IMPLEMENTED:
        function = getattr(eqn.primitive, IMPLEMENTED[eqn.primitive.name])
        implementation = functools.partial(function, **eqn.params)
        avals: list[Any] = [var.aval for var in eqn.invars]
        return jax.make_jaxpr(implementation)(
            *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
        )
    names = CALLS.get(eqn.primitive.name, ())
    return next((_closed(eqn.params[name]) for name in names if name in eqn.params), None)


def is_checkpoint(eqn: JaxprEqn) -> bool:
    """Whether an equation is a `jax.checkpoint` of which no derivative has been taken."""
    return eqn.primitive.name == "remat2" and not eqn.params["differentiated"]


def checkpoint_again(
    path: Path, eqn: JaxprEqn, operands: list[Any], equation: Hook[Any]
) -> list[Any]:
    """As `enter_or_bind` of a `jax.checkpoint`, which stays around what the hook makes of it."""
    inner = called(eqn)
    assert inner is not None

    def function(*operands: Any) -> list[Any]:
        return evaluate(inner, operands, equation, path=path)

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(function, **options)(*operands)


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


def by_platform(eqn: JaxprEqn) -> bool:
    """Whether the branches of a ``cond`` are for different platforms: only one may compile here."""
    return eqn.params.get("branches_platforms") is not None


def reducer_of(params: Mapping[str, Any]) -> Jaxpr:
    """The function by which a ``reduce`` with these parameters reduces."""
    return _closed(params["jaxpr"]).jaxpr


def overwrites(params: Mapping[str, Any]) -> bool:
    """Whether a ``scatter`` with these parameters writes its updates over what was there.

    That of ``.at[...].apply(f)`` is called so too, but writes f of what was there.
    """
    return params["update_jaxpr"] is None


class Solver(NamedTuple):
    """What a ``custom_linear_solve`` evaluates: ``x = jaxpr(*consts, *b)``.

    Attributes:
      jaxpr: what is evaluated.
      consts: at which of the operands its own constants are.
      first: at which of the operands ``b`` begins; those between are for derivatives.
    """

    jaxpr: ClosedJaxpr
    consts: slice
    first: int

    def split(self, operands: Sequence[T]) -> list[T]:
        """The operands that the jaxpr reads."""
        return [*operands[self.consts], *operands[self.first :]]


def solver_of(eqn: JaxprEqn) -> Solver:
    """What a ``custom_linear_solve`` does."""
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    consts = slice(start, start + lengths.solve)
    return Solver(_closed(eqn.params["jaxprs"].solve), consts, sum(lengths))


# Where an equation comes from ---------------------------------------------------------------------

LIBRARIES = "jax jaxlib flax haiku equinox dimat_jax".split()
"""Whose lines say less than those of the code that calls them."""


def source_line(eqn: JaxprEqn) -> str | None:
    """The line of the user's code that an equation comes from, as ``"path/model.py:12"``.

    None if only lines of libraries are known, as within a function that they have jitted.
    """
    folders = [
        os.path.dirname(file) + os.sep
        for file in (getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES)
        if file
    ]
    traceback = eqn.source_info.traceback
    frames = list(traceback.frames) if traceback else []
    own = [frame for frame in frames if not frame.file_name.startswith(tuple(folders))]
    return f"{own[0].file_name}:{own[0].line_num}" if own else None


# Functions whose calls can be found in a jaxpr ---------------------------------------------------

NAME_PREFIX = "dimat_jax."
"""What the names of these functions begin with in a jaxpr, so that they are nobody else's."""


def named_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jits a function under a name by which `named_call` finds its calls.

    Args:
      function: of arrays.
      **options: of `jax.jit`.
    """

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        return function(*args)

    named.__name__ = NAME_PREFIX + function.__name__
    return functools.wraps(function)(jax.jit(named, **options))


def named_call(eqn: JaxprEqn) -> str | None:
    """The name of the `named_jit` function that an equation calls, None if it calls none.

    A call keeps its name when it is vmapped or differentiated.
    """
    name = eqn.params.get("name") if eqn.primitive.name == "jit" else None
    if name is None or not name.startswith(NAME_PREFIX):
        return None
    return name.removeprefix(NAME_PREFIX)
