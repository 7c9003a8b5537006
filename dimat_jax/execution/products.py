"""Convolutions as matrix products of patches, for accelerators that compute many agents at once.

Each agent has kernels of its own, so a vmapped convolution becomes a grouped one, with a group for
each agent; a vmapped matrix product becomes a batched one, which GPUs run faster where an agent's
layers are narrow (docs/results/gpu.md). Patches take memory: for a 3 × 3 kernel nine times that of
the images. Where they do not fit they are made again for the gradient instead of kept, which moves
more bytes (docs/results/estimates.md).
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from dimat_jax.jaxprs import (
    Path,
    bind,
    called,
    checkpoint_again,
    enter_or_bind,
    is_checkpoint,
    rewrite,
)
from dimat_jax.types import Task


def multiplying(task: Task, recompute: bool = False) -> Task:
    """The same task, the convolutions of its loss computed as matrix products.

    The gradient of a product of patches is one product for the kernel and one for the images, whose
    parts are then added up where the patches came from: faster than to make products of the
    convolutions of a gradient, which take patches of their own (docs/results/gpu.md).

    Args:
      task: what an agent learns.
      recompute: whether patches are made again for the gradient, else they are kept for it.
    """

    def loss(variables: Any, batch: Any, key: Any = None, train: bool = False) -> Any:
        def function(variables: Any, batch: Any, key: Any) -> Any:
            return task.loss(variables, batch, key=key, train=train)

        return with_products(function, recompute)(variables, batch, key)

    return task._replace(loss=loss)


def with_products(function: Callable[..., Any], recompute: bool = False) -> Callable[..., Any]:
    """The same function, its convolutions, gradients among them, computed as matrix products.

    Grouped convolutions stay, and so does all that is in loops, in branches and in functions with
    a derivative of their own. What is returned can be differentiated, vmapped, jitted and sharded.

    Args:
      function: of pytrees of arrays.
      recompute: whether a gradient makes patches again, else they are kept for it.
    """

    def equation(path: Path, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        if is_ungrouped(eqn):
            of_patches = functools.partial(product, eqn)
            return [(jax.checkpoint(of_patches) if recompute else of_patches)(*operands)]
        if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
            return bind(eqn, operands)
        if is_checkpoint(eqn):
            return checkpoint_again(path, eqn, operands, equation)
        return enter_or_bind(path, eqn, operands, equation)

    return rewrite(function, equation)


def is_ungrouped(eqn: JaxprEqn) -> bool:
    """Whether an equation is a convolution that `product` can compute."""
    p = eqn.params
    return eqn.primitive.name == "conv_general_dilated" and (
        p["feature_group_count"] == p["batch_group_count"] == 1
    )


def patch_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Bytes of the patches of all convolutions of a function, which are kept for its gradient.

    Args:
      function: of pytrees of arrays.
      *args: arrays, or their shapes.
    """

    def of_jaxpr(jaxpr: Jaxpr) -> int:
        return sum(map(of_equation, jaxpr.eqns))

    def of_equation(eqn: JaxprEqn) -> int:
        if not is_ungrouped(eqn):
            inner = called(eqn)
            return 0 if inner is None else of_jaxpr(inner.jaxpr)
        _, (outputs, *others), (_, features, *_) = eqn.params["dimension_numbers"]
        of_kernel, result = cast(Any, eqn.invars[1].aval), cast(Any, eqn.outvars[0].aval)
        kernel = of_kernel.shape
        window = math.prod(kernel[axis] for axis in others[1:])
        # Patches of a window of one are the images.
        of_each = window * kernel[others[0]] if window > 1 else 0
        return of_each * math.prod(result.shape) // result.shape[features] * result.dtype.itemsize

    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def product(eqn: JaxprEqn, images: Array, kernel: Array) -> Array:
    """What an ungrouped convolution computes, by one matrix product.

    Args:
      eqn: the convolution, of any number of dimensions, strides, padding and dilations.
      images: its left operand.
      kernel: its right operand.
    """
    p = eqn.params
    (batch, feature, *space), (outputs, inputs, *window), out = p["dimension_numbers"]
    result: Any = eqn.outvars[0].aval
    reach = [kernel.shape[axis] for axis in window]
    positions = [result.shape[axis] for axis in out[2:]]

    padding = [(0, 0, 0)] * images.ndim
    for axis, (low, high), dilation in zip(space, p["padding"], p["lhs_dilation"], strict=True):
        padding[axis] = (low, high, dilation - 1)
    framed = lax.pad(images, np.zeros((), images.dtype), padding)

    # Element i of the window meets the image at  position * stride + i * dilation.  Slices are
    # taken for each i, along all positions; or for each position, along all i, where there are
    # fewer positions, as in the gradient of a kernel: there the "window" is as large as an image.
    of_window = math.prod(reach) <= math.prod(positions)
    along = (positions, p["window_strides"]), (reach, p["rhs_dilation"])
    (count, step), (few, apart) = along if of_window else along[::-1]
    slices = []
    for index in itertools.product(*map(range, few)):
        start, limit, strides = [0] * images.ndim, list(framed.shape), [1] * images.ndim
        for axis, i, between, n, stride in zip(space, index, apart, count, step, strict=True):
            start[axis], strides[axis] = i * between, stride
            limit[axis] = start[axis] + (n - 1) * stride + 1
        slices.append(lax.slice(framed, start, limit, strides))
    # The same patches for a layer's forward pass and its kernel's gradient: XLA makes them once.
    patches = jnp.concatenate(slices, feature if of_window else batch)

    options = {"precision": p["precision"], "preferred_element_type": p["preferred_element_type"]}
    if of_window:
        flat = jnp.transpose(kernel, (*window, inputs, outputs)).reshape(-1, kernel.shape[outputs])
        y = lax.dot_general(patches, flat, (((feature,), (0,)), ((), ())), **options)
        # Its axes are those of the images without features, in order, then the outputs.
        rest = [axis for axis in range(images.ndim) if axis != feature]
        order = [rest.index(axis) for axis in (batch, *space)]
        return _arranged(y, [order[0], y.ndim - 1, *order[1:]], out)
    contracted = (feature, *space), (inputs, *window)
    y = lax.dot_general(patches, kernel, (contracted, ((), ())), **options)
    y = y.reshape(*few, images.shape[batch], kernel.shape[outputs])
    return _arranged(y, [y.ndim - 2, y.ndim - 1, *range(len(few))], out)


def _arranged(y: Array, axes: list[int], out: tuple[int, ...]) -> Array:
    """Transposes ``axes`` (batch, features, space) of an array to where ``out`` has them."""
    order = dict(zip(out, axes, strict=True))
    return jnp.transpose(y, [order[place] for place in range(y.ndim)])
