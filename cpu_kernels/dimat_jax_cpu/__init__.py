"""For XLA's CPU backend: convolutions several times as fast as its own, and parts of other layers.

Of 32-bit floats, images ``[batch, height, width, channels]``. `dimat_jax` finds this package and
uses it by itself; these functions serve anything else written in JAX. ``threads`` is how many of
XLA's threads share the work, if they have time; sums of several differ by rounding from one's.
"""

import ctypes
import functools
import pathlib

import jax
import numpy as np

TARGETS = (
    "dimat_convolution",
    "dimat_kernel_gradient",
    "dimat_channel_sums",
    "dimat_max_pool_2x2_gradient",
    "dimat_flip_and_shift",
)


@functools.cache
def load() -> None:
    """Tells JAX of the compiled functions; done by the others when they are first called.

    Raises:
      ImportError: if they have not been compiled.
    """
    folder = pathlib.Path(__file__).parent
    path = next(folder.glob("libdimat_jax_cpu.*"), None)
    if path is None:
        raise ImportError(f"There is no compiled library in {folder}: pip install ./cpu_kernels")
    library = ctypes.cdll.LoadLibrary(str(path))
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, int, int, int],
    *,
    stride: int = 1,
    dilation: int = 1,
    top: int = 0,
    left: int = 0,
    swapped: bool = False,
    threads: int = 1,
) -> jax.Array:
    """What `jax.lax.conv_general_dilated` gives for ``("NHWC", "HWIO", "NHWC")``.

    Args:
      images: float32 ``[batch, height, width, inputs]``.
      kernel: float32 ``[height, width, inputs, outputs]``.
      shape: of the result, ``[batch, height, width, outputs]``; it says how far images are padded
        below and on the right.
      stride: of the window, both ways; 1 if ``dilation`` is not.
      dilation: of the images, both ways (``lhs_dilation``).
      top: rows of zeros above the images; below 0, rows that are left out.
      left: columns of zeros before them, likewise.
      swapped: whether the kernel is ``[height, width, outputs, inputs]``.
      threads: that share the work.
    """
    load()
    call = jax.ffi.ffi_call("dimat_convolution", jax.ShapeDtypeStruct(shape, images.dtype))
    sizes = integers(stride=stride, dilation=dilation, top=top, left=left, threads=threads)
    return call(images, kernel, **sizes, swapped=swapped)


def integers(**sizes: int) -> dict[str, np.int64]:
    """Attributes as the compiled functions take them."""
    return {name: np.int64(size) for name, size in sizes.items()}


def kernel_gradient(
    images: jax.Array,
    gradient: jax.Array,
    shape: tuple[int, int, int, int],
    *,
    stride: int = 1,
    top: int = 0,
    left: int = 0,
    threads: int = 1,
) -> jax.Array:
    """The gradient of a convolution's kernel.

    Args:
      images: what was convolved, float32 ``[batch, height, width, inputs]``.
      gradient: of the result, float32 ``[batch, new_height, new_width, outputs]``.
      shape: of the kernel, ``[height, width, inputs, outputs]``.
      stride: of the window, both ways.
      top: rows of zeros above the images.
      left: columns of zeros before them.
      threads: that share the work.
    """
    load()
    call = jax.ffi.ffi_call("dimat_kernel_gradient", jax.ShapeDtypeStruct(shape, images.dtype))
    return call(images, gradient, **integers(stride=stride, top=top, left=left, threads=threads))


def channel_sums(x: jax.Array, y: jax.Array, threads: int = 1) -> tuple[jax.Array, jax.Array]:
    """The sums of ``x`` and of ``x * y`` over all axes but the last.

    Args:
      x: float32 ``[..., channels]``.
      y: the same; may be ``x``.
      threads: that share the work.

    Returns:
      Both sums, float32 ``[channels]`` each.
    """
    load()
    sums = jax.ShapeDtypeStruct(x.shape[-1:], x.dtype)
    call = jax.ffi.ffi_call("dimat_channel_sums", (sums, sums))
    sum_x, sum_xy = call(x, y, **integers(threads=threads))
    return sum_x, sum_xy


def max_pool_2x2_gradient(images: jax.Array, gradient: jax.Array, threads: int = 1) -> jax.Array:
    """The gradient of max pooling in 2 x 2 windows; the first of several largest takes it.

    Args:
      images: float32 ``[batch, height, width, channels]``, height and width even.
      gradient: of the maxima, ``[batch, height / 2, width / 2, channels]``.
      threads: that share the work.
    """
    load()
    result = jax.ShapeDtypeStruct(images.shape, images.dtype)
    call = jax.ffi.ffi_call("dimat_max_pool_2x2_gradient", result)
    return call(images, gradient, **integers(threads=threads))


def flip_and_shift(images: jax.Array, flipped: jax.Array, shifts: jax.Array) -> jax.Array:
    """Flips images from left to right, and then cuts them out of zeros around them.

    Args:
      images: uint8 ``[batch, height, width, channels]``.
      flipped: int32 ``[batch]``, 0 for those that are not.
      shifts: int32 ``[batch, 2]``: how many rows further down, and columns further right, than the
        image each cut begins.
    """
    load()
    result = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return jax.ffi.ffi_call("dimat_flip_and_shift", result)(images, flipped, shifts)
