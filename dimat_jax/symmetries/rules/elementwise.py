"""Elementwise primitives, and random bits."""

from functools import reduce

from dimat_jax.symmetries.axes import Axes, Axis, axis_size, unify, wild_axis
from dimat_jax.symmetries.reasons import Cause, Reason
from dimat_jax.symmetries.rules.table import Equation, freeze_everything, rule

ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz
complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf erf_inv
erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite
layout_constraint le le_to lgamma log log1p log2 logistic lt lt_to max mesh_cast min mul mulhi name
ne neg nextafter nonbatchable nondifferentiable_backward nontraceable not one_minus_square
optimization_barrier or pcast polygamma polynomial population_count pow pvary real reduce_precision
regularized_incomplete_beta rem reshard round rsqrt select_n select_if_vmap sharding_constraint
shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor zeta
""".split()


@rule(*ELEMENTWISE)
def _elementwise(equation: Equation, *inputs: Axes) -> list[Axes]:
    """Scalars and axes of size 1 broadcast, in the jaxpr itself."""
    if len(equation.shapes) > 1:  # optimization_barrier: one output an input
        return list(inputs)
    (shape,) = equation.shapes
    # `clamp` and `select_n` take scalars besides full operands, `polynomial` for coefficients.
    full = [axes for axes in inputs if len(axes) == len(shape)]
    return [
        tuple(
            reduce(unify, (stretch(axes[dim], size) for axes in full), wild_axis(size))
            for dim, size in enumerate(shape)
        )
    ]


def stretch(axis: Axis, size: int) -> Axis:
    """The axis, broadcast to this size."""
    return axis if axis_size(axis) == size else wild_axis(size)


@rule("bitcast_convert_type")
def _bitcast_convert_type(equation: Equation, x: Axes) -> list[Axes]:
    same = len(x) == len(equation.shapes[0])
    return [x] if same else freeze_everything(equation, x)


RANDOM = """
random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap
random_wrap rng_bit_generator rng_uniform threefry2x32
""".split()


@rule(*RANDOM)
def _random(equation: Equation, *inputs: Axes) -> list[Axes]:
    """Random bits are bound to their positions."""
    return freeze_everything(equation, *inputs, why=Cause(Reason.RANDOM_BITS))
