"""The compiled kernels of `dimat_jax_cpu` in the place of what XLA's CPU backend does slowly.

XLA's convolutions are far from the machine's limit for few channels, above all in the gradients.
`dimat_jax_cpu` is a distribution of its own (``cpu_kernels/``), because it has to be compiled, and
is used where it is installed. Any function's convolutions are found in its jaxpr, gradients among
them, as are functions of ours that it has, too: neither models nor data sets know of it.
"""

import functools
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from dimat_jax.jaxprs import Path, enter_or_bind, named_call, rewrite

SWITCH = "DIMAT_JAX_CPU"
"""The environment variable which, set to 0, leaves everything to XLA all the same."""

# Where `jax.lax.ConvDimensionNumbers` say that batch (or outputs), channels (or inputs), height and
# width are.
IMAGES = (0, 3, 1, 2)
KERNEL = (3, 2, 0, 1)
KERNEL_SWAPPED = (2, 3, 0, 1)
"""``[height, width, outputs, inputs]``, as in the gradient of the images."""
BATCH_SUMMED = (3, 0, 1, 2)
"""Images, batch and channels exchanged, so that the batch is summed over: the kernel's gradient."""


VERSION = "0.3.0"
"""Of `dimat_jax_cpu`, whose functions are called here as they are in this version."""


def installed() -> bool:
    """Whether there is a `dimat_jax_cpu`, and it is not switched off.

    Warns of one of another version, which is not used.
    """
    version = installed_version()
    if version is None or not switched_on():
        return False
    if version != VERSION:
        warnings.warn(
            f"dimat_jax_cpu {version} is installed and not used, for this needs {VERSION}: "
            "pip install ./cpu_kernels",
            stacklevel=2,
        )
    return version == VERSION


def switched_on() -> bool:
    """Whether `SWITCH` lets kernels be used."""
    return os.environ.get(SWITCH) != "0"


def installed_version() -> str | None:
    """The version of the `dimat_jax_cpu` that there is; None: there is none."""
    if importlib.util.find_spec("dimat_jax_cpu") is None:
        return None
    return importlib.metadata.version("dimat_jax_cpu")


def with_kernels(function: Callable[..., Any], threads: int = 1) -> Callable[..., Any]:
    """The same function, for CPU: what `dimat_jax_cpu` has by that, if it is installed.

    Convolutions that it does not have stay XLA's: in float64, grouped, of one or three dimensions,
    with dilated kernels; so does all that is in loops and branches. Calls (jit, checkpoint, custom
    derivatives) are entered. What is returned can be jitted and sharded, but not differentiated:
    take gradients inside.

    Args:
      function: of pytrees of arrays.
      threads: how many of XLA's threads share a kernel's work.
    """
    if jax.config.jax_disable_jit or not installed():  # pyrefly: ignore[missing-attribute]
        return function

    def equation(path: Path, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        # Before it is entered: a named function is a call, too.
        fast = _convolution(eqn, threads) or _function(eqn, threads)
        if fast is None:
            return enter_or_bind(path, eqn, operands, equation)
        return jax.tree.leaves(fast(*operands))

    return rewrite(function, equation)


def _function(eqn: JaxprEqn, threads: int) -> Callable[..., Any] | None:
    """What computes an equation, if it calls a `named_jit` function that `dimat_jax_cpu` has.

    A call keeps its name when it is vmapped or differentiated: the shapes tell.
    """
    name = named_call(eqn)
    if name is None:
        return None
    # What XLA makes of arrays without elements is nothing; kernels need not know of it.
    arrays: list[Any] = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    if any(0 in x.shape for x in arrays):
        return None
    floats = {x.dtype for x in arrays} == {jnp.dtype(jnp.float32)}
    import dimat_jax_cpu

    match name, arrays:
        case "channel_sums", [x, y, *sums] if floats and x.shape == y.shape:
            if [z.shape for z in sums] == 2 * [x.shape[-1:]]:
                return functools.partial(dimat_jax_cpu.channel_sums, threads=threads)
        case "max_pool_2x2_gradient", [x, _, dx] if floats and x.shape == dx.shape:
            if len(x.shape) == 4:
                return functools.partial(dimat_jax_cpu.max_pool_2x2_gradient, threads=threads)
        case "flip_and_shift", [images, flipped, shifts, _] if images.dtype == jnp.uint8:
            if images.shape[:-3] == flipped.shape == shifts.shape[:-1]:
                return _flip_and_shift
    return None


def _flip_and_shift(images: Any, flipped: Any, shifts: Any) -> Array:
    """`augment.flip_and_shift` of batches of any number of axes."""
    import dimat_jax_cpu

    shifted = dimat_jax_cpu.flip_and_shift(
        images.reshape(-1, *images.shape[-3:]), flipped.reshape(-1), shifts.reshape(-1, 2)
    )
    return shifted.reshape(images.shape)


def _convolution(eqn: JaxprEqn, threads: int) -> Callable[[Array, Array], Array] | None:
    """What computes an equation, if it is a convolution that `dimat_jax_cpu` has."""
    if eqn.primitive.name != "conv_general_dilated":
        return None
    p = eqn.params
    arrays: list[Any] = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    images, _, result = arrays
    # Padding at the end need not be known: the result's shape says where to stop.
    corner = [before for before, _ in p["padding"]]
    steps = [p[name] for name in ("window_strides", "lhs_dilation", "rhs_dilation")]
    if (
        {x.dtype for x in arrays} != {jnp.dtype(jnp.float32)}
        or p["feature_group_count"] * p["batch_group_count"] > 1
        or len(corner) != 2
        or any(down != across for down, across in steps)
        or 0 in images.shape + result.shape
    ):
        return None
    import dimat_jax_cpu

    # The passes of one layer, as JAX writes them for NHWC images and HWIO kernels:
    #   forward           images NHWC, kernel HWIO, strides
    #   images' gradient  the same, inputs and outputs of the kernel exchanged, strides as dilation
    #   kernel's gradient batch and channels exchanged: the batch is summed over, strides lie apart
    top, left = corner
    stride, dilation, apart = (down for down, _ in steps)
    # JAX writes the gradient of the images as a convolution of the result's gradient, dilated by
    # the stride, with the kernel turned round; and that of the kernel as one of the images with the
    # result's gradient, batch and channels exchanged, whose window is dilated by the stride.
    lhs, kernel, out = p["dimension_numbers"]
    forward = (lhs, out) == (IMAGES, IMAGES) and kernel in (KERNEL, KERNEL_SWAPPED)
    if forward and apart == 1 and 1 in (stride, dilation):
        swapped = kernel == KERNEL_SWAPPED
        options = dict(stride=stride, dilation=dilation, top=top, left=left, swapped=swapped)
        return functools.partial(
            dimat_jax_cpu.convolution, shape=result.shape, threads=threads, **options
        )
    backward = (lhs, kernel, out) == (BATCH_SUMMED, BATCH_SUMMED, KERNEL_SWAPPED)
    if backward and stride == dilation == 1 and min(corner) >= 0:
        options = dict(stride=apart, top=top, left=left, threads=threads)
        return functools.partial(dimat_jax_cpu.kernel_gradient, shape=result.shape, **options)
    return None
