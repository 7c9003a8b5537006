"""The table: what each primitive does to the axes of what it reads.

A rule takes the equation and the axes of its inputs, ties, refines or freezes them, and returns the
axes of its outputs. It is sound if, whatever permutations of the remaining free atoms reorder the
inputs, the primitive's outputs are reordered as their axes say.

To add a primitive, write one function and decorate it with ``@rule("its_name")``. Primitives are
matched by name, since they move between modules from one JAX release to the next. Those that hold
jaxprs (jit, scan, ...) are walked in `dimat_jax.symmetries.discovery`.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

from dimat_jax.symmetries.axes import (
    Axes,
    Axis,
    Sum,
    Wild,
    axis_size,
    cut,
    free_axis,
    freeze,
    frozen_axis,
    join,
    reshape,
    wild_axis,
)


class Equation(NamedTuple):
    """What a rule sees of a jaxpr equation.

    Attributes:
      name: the primitive's name.
      params: the primitive's parameters.
      shapes: the shapes of the outputs.
    """

    name: str
    params: dict[str, Any]
    shapes: Sequence[tuple[int, ...]]


Rule = Callable[..., list[Axes]]
"""``rule(equation, *axes_of_inputs) -> axes_of_outputs``."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a function into the table under the primitives' names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def freeze_everything(equation: Equation, *inputs: Axes, why: str | None = None) -> list[Axes]:
    """The rule of primitives without one: sound for every function of the inputs."""
    why = why or f"no rule for the primitive {equation.name!r}"
    for axis in (axis for axes in inputs for axis in axes):
        freeze(axis, why)
    return [_frozen(shape, why) for shape in equation.shapes]


def _frozen(shape: Sequence[int], why: str) -> Axes:
    return tuple(frozen_axis(size, why) for size in shape)


def _freeze_dims(equation: Equation, axes: Axes, dims: Sequence[int], shape: Sequence[int]) -> Axes:
    """Axes with some of them frozen and replaced by frozen ones of the new shape."""
    why = equation.name
    for dim in dims:
        freeze(axes[dim], why)
    return tuple(
        frozen_axis(shape[dim], why) if dim in dims else axis for dim, axis in enumerate(axes)
    )


# Elementwise ------------------------------------------------------------------------------------

ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz
complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf erf_inv
erfc exp exp2 expm1 floor ge gt igamma igammac igamma_grad_a imag integer_pow is_finite
layout_constraint le le_to lgamma log log1p logistic lt lt_to max mesh_cast min mul name ne neg
nextafter not optimization_barrier or pcast polygamma population_count pow pvary real
reduce_precision regularized_incomplete_beta reshard rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
""".split()


@rule(*ELEMENTWISE)
def _elementwise(equation: Equation, *inputs: Axes) -> list[Axes]:
    """Scalars and axes of size 1 broadcast, in the jaxpr itself."""
    if len(equation.shapes) > 1:  # optimization_barrier: one output an input
        return list(inputs)
    (shape,) = equation.shapes
    full = [axes for axes in inputs if len(axes) == len(shape)]
    return [
        tuple(
            reduce(join, (_stretch(axes[dim], size) for axes in full), wild_axis(size))
            for dim, size in enumerate(shape)
        )
    ]


def _stretch(axis: Axis, size: int) -> Axis:
    return axis if axis_size(axis) == size else wild_axis(size)


@rule("bitcast_convert_type")
def _bitcast_convert_type(equation: Equation, x: Axes) -> list[Axes]:
    same = len(x) == len(equation.shapes[0])
    return [x] if same else freeze_everything(equation, x)


# Shapes -----------------------------------------------------------------------------------------


@rule("broadcast_in_dim")
def _broadcast_in_dim(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    dims = equation.params["broadcast_dimensions"]
    axes = [wild_axis(size) for size in equation.shapes[0]]
    for dim, axis in zip(dims, x, strict=True):
        axes[dim] = _stretch(axis, axis_size(axes[dim]))
    return [tuple(axes)]


@rule("reshape")
def _reshape(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    if equation.params.get("dimensions") is not None:
        x = tuple(x[dim] for dim in equation.params["dimensions"])
    return [reshape(x, equation.shapes[0])]


@rule("squeeze")
def _squeeze(equation: Equation, x: Axes) -> list[Axes]:
    return [reshape(x, equation.shapes[0])]


@rule("transpose")
def _transpose(equation: Equation, x: Axes) -> list[Axes]:
    return [tuple(x[dim] for dim in equation.params["permutation"])]


@rule("tile")
def _tile(equation: Equation, x: Axes) -> list[Axes]:
    """Copies of an axis are a product with a wild factor: constant from copy to copy."""
    reps = equation.params["reps"]
    pairs = zip(reps, x, strict=True)
    return [tuple(axis if n == 1 else ((Wild(n), Sum(axis)),) for n, axis in pairs)]


@rule("iota")
def _iota(equation: Equation, *_: Axes) -> list[Axes]:
    """Positions along its own dimension, constant along the others."""
    (shape,) = equation.shapes
    axes = [wild_axis(size) for size in shape]
    dim = equation.params["dimension"]
    axes[dim] = frozen_axis(shape[dim], "iota")
    return [tuple(axes)]


# Segments ---------------------------------------------------------------------------------------


@rule("concatenate")
def _concatenate(equation: Equation, *inputs: Axes) -> list[Axes]:
    along = equation.params["dimension"]
    return [
        tuple(
            sum(parts, ()) if dim == along else reduce(join, parts)
            for dim, parts in enumerate(zip(*inputs, strict=True))
        )
    ]


@rule("stack")
def _stack(equation: Equation, *inputs: Axes) -> list[Axes]:
    axes = [reduce(join, parts) for parts in zip(*inputs, strict=True)]
    axes.insert(equation.params["axis"], frozen_axis(len(inputs), "stack"))
    return [tuple(axes)]


@rule("split")
def _split(equation: Equation, x: Axes) -> list[Axes]:
    along, sizes = equation.params["axis"], equation.params["sizes"]
    return [(*x[:along], piece, *x[along + 1 :]) for piece in cut(x[along], sizes)]


@rule("unstack")
def _unstack(equation: Equation, x: Axes) -> list[Axes]:
    along = equation.params["axis"]
    pieces = cut(x[along], (1,) * axis_size(x[along]))
    return [x[:along] + x[along + 1 :]] * len(pieces)


@rule("slice")
def _slice(equation: Equation, x: Axes) -> list[Axes]:
    params = equation.params
    strides = params["strides"] or (1,) * len(x)
    axes: list[Axis] = []
    for axis, start, stop, stride in zip(
        x, params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        if stride != 1:
            freeze(axis, "slice with a stride")
            axes.append(frozen_axis(-(-(stop - start) // stride), "slice with a stride"))
        else:
            axes.append(cut(axis, (start, stop - start, axis_size(axis) - stop))[1])
    return [tuple(axes)]


@rule("pad")
def _pad(equation: Equation, x: Axes, value: Axes) -> list[Axes]:
    """Padding is one scalar: a wild segment."""
    axes: list[Axis] = []
    for dim, (low, high, interior) in enumerate(equation.params["padding_config"]):
        if min(low, high) < 0 or interior:
            axes.append(_freeze_dims(equation, x, [dim], equation.shapes[0])[dim])
        else:
            axes.append(wild_segment(low) + x[dim] + wild_segment(high))
    return [tuple(axes)]


def wild_segment(size: int) -> Axis:
    """A segment of equal values, none if there is no position."""
    return ((Wild(size),),) if size else ()


# Contractions -----------------------------------------------------------------------------------


class Contraction(NamedTuple):
    """That a primitive mixes positions of an operand.

    Attributes:
      operand: which one.
      dims: the axes along which positions are mixed.
      batch: the axes along which the other operand keeps in step.
      kind: ``"product"`` with another operand, ``"reduction"``, or ``"lookup"`` by index.
    """

    operand: int
    dims: tuple[int, ...]
    batch: tuple[int, ...] = ()
    kind: str = "product"


def contractions(equation: Equation, *inputs: Axes) -> list[Contraction]:
    """Where the equation mixes positions: what it leaves of an operand no longer has those axes."""
    params, name = equation.params, equation.name
    if name == "dot_general":
        (left, right), (left_batch, right_batch) = params["dimension_numbers"]
        return [
            Contraction(0, tuple(left), tuple(left_batch)),
            Contraction(1, tuple(right), tuple(right_batch)),
        ]
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        return [
            Contraction(0, tuple(numbers.lhs_spec[1:])),
            Contraction(1, tuple(numbers.rhs_spec[1:])),
        ]
    if name.startswith("reduce_") and "axes" in params:
        return [Contraction(0, tuple(params["axes"]), kind="reduction")]
    if name == "gather":
        dims = params["dimension_numbers"].start_index_map
        return [Contraction(0, tuple(map(int, dims)), kind="lookup")]
    return []


@rule("dot_general")
def _dot_general(equation: Equation, x: Axes, y: Axes) -> list[Axes]:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, j in zip(left, right, strict=True):
        join(x[i], y[j])
    batch = [join(x[i], y[j]) for i, j in zip(left_batch, right_batch, strict=True)]
    free_x = [axis for i, axis in enumerate(x) if i not in (*left, *left_batch)]
    free_y = [axis for j, axis in enumerate(y) if j not in (*right, *right_batch)]
    return [(*batch, *free_x, *free_y)]


@rule("conv_general_dilated")
def _conv_general_dilated(equation: Equation, x: Axes, kernel: Axes) -> list[Axes]:
    params, (shape,) = equation.params, equation.shapes
    if params["batch_group_count"] > 1:
        return freeze_everything(equation, x, kernel, why="a convolution in batch groups")
    lhs, rhs, out = params["dimension_numbers"]
    channels = _tie_channels(
        x[lhs[1]], kernel[rhs[1]], kernel[rhs[0]], params["feature_group_count"]
    )
    axes = dict(zip(out, (x[lhs[0]], channels), strict=False))
    for i, (dim, window) in enumerate(zip(lhs[2:], rhs[2:], strict=True)):
        alone = axis_size(kernel[window]) == 1 and params["padding"][i] == (0, 0)
        if alone and params["window_strides"][i] == params["lhs_dilation"][i] == 1:
            axes[out[2 + i]] = x[dim]
            continue
        freeze(x[dim], "the window of a convolution")
        freeze(kernel[window], "the window of a convolution")
        axes[out[2 + i]] = frozen_axis(shape[out[2 + i]], "the window of a convolution")
    return [tuple(axes[dim] for dim in range(len(shape)))]


def _tie_channels(inputs: Axis, kernel_inputs: Axis, outputs: Axis, groups: int) -> Axis:
    """Groups are the outermost factor of input and output channels and share the kernel's inputs."""
    group = free_axis(groups)
    join(inputs, ((Sum(group), Sum(kernel_inputs)),))
    per_group = axis_size(outputs) // groups
    return join(outputs, ((Sum(group), Wild(per_group)),))


# Reductions and windows -------------------------------------------------------------------------


@rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"
)
def _reduce(equation: Equation, x: Axes) -> list[Axes]:
    """Symmetric in what it reduces: nothing freezes."""
    return [tuple(axis for dim, axis in enumerate(x) if dim not in equation.params["axes"])]


@rule("argmax", "argmin")
def _arg_reduce(equation: Equation, x: Axes) -> list[Axes]:
    dims = equation.params["axes"]
    for dim in dims:
        freeze(x[dim], equation.name)
    return [tuple(axis for dim, axis in enumerate(x) if dim not in dims)]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(equation: Equation, x: Axes) -> list[Axes]:
    params = equation.params
    windows = zip(
        params["window_dimensions"], params["window_strides"], params["padding"],
        params["base_dilation"], strict=True,
    )  # fmt: skip
    dims = [
        dim
        for dim, (window, stride, padding, dilation) in enumerate(windows)
        if (window, stride, tuple(padding), dilation) != (1, 1, (0, 0), 1)
    ]
    return [_freeze_dims(equation, x, dims, equation.shapes[0])]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(equation: Equation, x: Axes) -> list[Axes]:
    return [_freeze_dims(equation, x, [equation.params["axis"]], equation.shapes[0])]


@rule("rev")
def _rev(equation: Equation, x: Axes) -> list[Axes]:
    return [_freeze_dims(equation, x, equation.params["dimensions"], equation.shapes[0])]


@rule("sort")
def _sort(equation: Equation, *inputs: Axes) -> list[Axes]:
    """sort(P x) = sort(x): one operand alone freezes its result only."""
    dim = equation.params["dimension"]
    axes = [reduce(join, parts) for parts in zip(*inputs, strict=True)]
    if len(inputs) > 1:
        freeze(axes[dim], "sort")
    axes[dim] = frozen_axis(axis_size(axes[dim]), "sort")
    return [tuple(axes)] * len(inputs)


@rule("top_k", "approx_top_k")
def _top_k(equation: Equation, x: Axes) -> list[Axes]:
    dim = equation.params.get("axis", equation.params.get("reduction_dimension", len(x) - 1))
    return [_freeze_dims(equation, x, [dim % len(x)], equation.shapes[0])] * len(equation.shapes)


# Indices ----------------------------------------------------------------------------------------


@rule("dynamic_slice")
def _dynamic_slice(equation: Equation, x: Axes, *_: Axes) -> list[Axes]:
    (shape,) = equation.shapes
    dims = [dim for dim, axis in enumerate(x) if axis_size(axis) != shape[dim]]
    return [_freeze_dims(equation, x, dims, shape)]


@rule("dynamic_update_slice")
def _dynamic_update_slice(equation: Equation, x: Axes, update: Axes, *_: Axes) -> list[Axes]:
    axes: list[Axis] = []
    for old, new in zip(x, update, strict=True):
        if axis_size(old) == axis_size(new):
            axes.append(join(old, new))
            continue
        freeze(old, equation.name)
        freeze(new, equation.name)
        axes.append(frozen_axis(axis_size(old), equation.name))
    return [tuple(axes)]


@rule("gather")
def _gather(equation: Equation, x: Axes, indices: Axes) -> list[Axes]:
    """Whole axes pass; axes that are indexed, and the axis of index vectors, freeze."""
    numbers, (shape,) = equation.params["dimension_numbers"], equation.shapes
    freeze(indices[-1], "gather")
    for dim in numbers.start_index_map:
        freeze(x[dim], "gather")
    batch = list(indices[:-1])
    for i, j in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        batch[j] = join(x[i], batch[j])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = iter([axis for dim, axis in enumerate(x) if dim not in gone])
    batches = iter(batch)
    axes: list[Axis] = []
    for dim, size in enumerate(shape):
        axis = next(windows) if dim in numbers.offset_dims else next(batches)
        if axis_size(axis) != size:
            freeze(axis, "gather")
            axis = frozen_axis(size, "gather")
        axes.append(axis)
    return [tuple(axes)]


@rule(
    "scatter",
    "scatter_add",
    "scatter_mul",
    "scatter_min",
    "scatter_max",
    "scatter-add",
    "scatter-mul",
    "scatter-min",
    "scatter-max",
)
def _scatter(equation: Equation, x: Axes, indices: Axes, updates: Axes) -> list[Axes]:
    """Whole window axes pass; everything that is indexed, or indexes, freezes."""
    numbers = equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    whole: dict[int, Axis] = {}
    kept = [dim for dim in range(len(x)) if dim not in gone]
    for dim, window in zip(kept, sorted(numbers.update_window_dims), strict=True):
        if (
            axis_size(x[dim]) == axis_size(updates[window])
            and dim not in numbers.scatter_dims_to_operand_dims
        ):
            whole[dim] = join(x[dim], updates[window])
        else:
            freeze(updates[window], equation.name)
    for axis in (
        *indices,
        *(a for d, a in enumerate(updates) if d not in numbers.update_window_dims),
    ):
        freeze(axis, equation.name)
    dims = [dim for dim in range(len(x)) if dim not in whole]
    frozen = _freeze_dims(equation, x, dims, equation.shapes[0])
    return [tuple(whole.get(dim, axis) for dim, axis in enumerate(frozen))]


# Random bits ------------------------------------------------------------------------------------


@rule(
    "random_bits",
    "random_seed",
    "random_wrap",
    "random_unwrap",
    "random_split",
    "random_fold_in",
    "random_clone",
    "random_gamma",
    "threefry2x32",
    "rng_bit_generator",
    "rng_uniform",
)
def _random(equation: Equation, *inputs: Axes) -> list[Axes]:
    """Random bits are bound to their positions."""
    return freeze_everything(equation, *inputs, why="random bits")
