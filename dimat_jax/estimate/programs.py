"""The programs of a run, compiled and not run: its own Python code, on shapes instead of arrays."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from dimat_jax.estimate.work import Work, add, work_of
from dimat_jax.execution.placement import Execution
from dimat_jax.execution.timing import Compile
from dimat_jax.simulation.memory import bytes_of


class Program(NamedTuple):
    """A program that a run calls.

    Attributes:
      work: of one call, on all devices.
      arguments: bytes, of all devices.
      results: bytes, of all devices.
      compiled: for the devices; None where nothing has been compiled.
    """

    work: Work
    arguments: int
    results: int
    compiled: jax.stages.Compiled | None


class Memory(NamedTuple):
    """Bytes of a program on one device, as its compiler says.

    Attributes:
      arguments: what it is given.
      results: what it gives back, where it does not lie in the memory of an argument.
      temporaries: what it computes with.
    """

    arguments: int
    results: int
    temporaries: int


def recorder(compiles: bool, options: Mapping[str, Any], calls: list[Program]) -> Compile:
    """How a `dimat_jax.execution.timing.Stopwatch` compiles what is not to be run.

    Args:
      compiles: whether programs are compiled; else they are only traced.
      options: of XLA.
      calls: a list to which the program of every call is added.
    """

    def compile(function: jax.stages.Wrapped, args: tuple[Any, ...]) -> Callable[..., Any]:
        traced = function.trace(*args)
        compiled = None
        if compiles and on_a_mesh(args):  # Else it runs elsewhere: the order of an epoch, say.
            with warnings.catch_warnings():
                # For devices that are not here nothing can be taken from a cache.
                message = "Error reading persistent compilation cache"
                warnings.filterwarnings("ignore", message=message)
                compiled = traced.lower().compile(compiler_options=dict(options) or None)
        work = add(work_of(traced.jaxpr), Work(0, bytes_of(args) + bytes_of(traced.out_info)))
        program = Program(work, bytes_of(args), bytes_of(traced.out_info), compiled)
        results = traced.out_info if compiled is None else laid_out(compiled, traced.out_info)

        def call(*args: Any) -> Any:
            calls.append(program)
            return results

        return call

    return compile


def on_a_mesh(args: Any) -> bool:
    """Whether arguments lie on the devices of a mesh."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(args))
    return any(isinstance(sharding, NamedSharding) for sharding in shardings)


def laid_out(compiled: jax.stages.Compiled, shapes: Any) -> Any:
    """The shapes of a program's results, where they lie."""

    def with_sharding(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, shapes, compiled.output_shardings)


def memory_of(program: Program) -> Memory | None:
    """What a program needs on one device; None where it has not been compiled."""
    if program.compiled is None:
        return None
    found: Any = program.compiled.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, max(0, results), found.temp_size_in_bytes)


def total_work(calls: list[Program]) -> Work:
    """The work of several calls."""
    total = Work()
    for program in calls:
        total = add(total, program.work)
    return total


def seconds_at_least(
    work: Work, execution: Execution, operations: float, bandwidth: float | None
) -> float:
    """The roofline of some work on all devices: the more of computing and of moving."""
    devices = execution.mesh.size
    moving = work.moved / (devices * bandwidth) if bandwidth else 0.0
    return max(work.operations / (devices * operations), moving)
