"""The table of rules, and the rule of primitives that have none."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dimat_jax.symmetries.axes import Axes, freeze, mixed_axis
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.slices import SlicedAxis
from dimat_jax.symmetries.values import Value


class Equation(NamedTuple):
    """What a rule sees of a jaxpr equation.

    Attributes:
      name: the primitive's name.
      params: the primitive's parameters.
      shapes: the shapes of the outputs.
      slices: where rules that slice leave what `dimat_jax.symmetries.slices` needs.
      values: those of the inputs, where they are known: of small arrays of integers.
    """

    name: str
    params: dict[str, Any]
    shapes: Sequence[tuple[int, ...]]
    slices: list[SlicedAxis]
    values: Sequence[Value] = ()

    @property
    def cause(self) -> Cause:
        """Why positions whose order the primitive depends on are frozen."""
        return Cause(Reason.PRIMITIVE, self.name)


Rule = Callable[..., list[Axes]]
"""``rule(equation, *axes_of_inputs) -> axes_of_outputs``."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a function into the table under the primitives' names, from anywhere.

    Args:
      *names: of primitives, as a jaxpr prints them; a rule of the same name is replaced.
    """

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def freeze_everything(equation: Equation, *inputs: Axes, why: Cause | None = None) -> list[Axes]:
    """The rule of primitives without one: sound for every function of the inputs."""
    why = why or Cause(Reason.NO_RULE, equation.name)
    for axis in (axis for axes in inputs for axis in axes):
        freeze(axis, why)
    return [tuple(mixed_axis(size, why) for size in shape) for shape in equation.shapes]


def freeze_dims(
    equation: Equation, axes: Axes, dims: Sequence[int], why: Cause | None = None
) -> Axes:
    """Freezes some axes of an operand; the output has new, frozen ones in their places."""
    why = why or equation.cause
    for dim in dims:
        freeze(axes[dim], why)
    return tuple(
        mixed_axis(size, why) if dim in dims else axis
        for dim, (axis, size) in enumerate(zip(axes, equation.shapes[0], strict=True))
    )
