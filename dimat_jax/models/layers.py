"""What the model families share: dense and convolution layers, scaled widths, input checks.

The functions that take ``x`` first add a layer to the Linen module whose ``__call__`` is running.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Shaped

from dimat_jax.jaxprs import named_jit
from dimat_jax.registry import check_number

KERNEL_INIT = nn.initializers.he_normal()  # He et al. 2015: keeps the variance through ReLU


def param_dtype(x: Shaped[Array | np.ndarray, "..."]) -> DTypeLike:
    """Parameters are float32, or float64 where the inputs are."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dense(
    x: Shaped[Array | np.ndarray, "*batch inputs"], units: int, bias: bool = True
) -> Float[Array, "*batch units"]:
    """A fully connected layer before a ReLU."""
    return nn.Dense(units, use_bias=bias, kernel_init=KERNEL_INIT, param_dtype=param_dtype(x))(x)


def classify(
    x: Shaped[Array | np.ndarray, "batch features"], num_classes: int
) -> Float[Array, "batch classes"]:
    """The last layer: no ReLU follows, so its logits start at half the variance."""
    return nn.Dense(num_classes, param_dtype=param_dtype(x))(x)


def conv(
    x: Shaped[Array | np.ndarray, "batch height width inputs"],
    channels: int,
    size: int = 3,
    strides: int = 1,
    bias: bool = False,
) -> Float[Array, "batch new_height new_width channels"]:
    """A square convolution, padded by ``size // 2``: the image keeps its size at stride 1."""
    return nn.Conv(
        channels,
        (size, size),
        strides,
        padding=size // 2,
        use_bias=bias,
        kernel_init=KERNEL_INIT,
        param_dtype=param_dtype(x),
    )(x)


def max_pool_2x2(
    x: Shaped[Array | np.ndarray, "batch height width channels"],
) -> Shaped[Array | np.ndarray, "batch new_height new_width channels"]:
    """Max pooling in 2 x 2 windows; an odd last row or column is dropped.

    Where several are largest, the first in reading order takes the gradient, as in PyTorch. Written
    as a reshape and with a gradient by hand: on CPU that of XLA's own window maximum takes as long
    as the rest of a small network's step, and that of a maximum over axes a fifth of it.
    """
    height, width = x.shape[1:3]
    return _window_maxima(jnp.asarray(x[:, : height // 2 * 2, : width // 2 * 2]))


def _windows(x: Shaped[Array, "batch height width channels"]) -> Shaped[Array, "batch ..."]:
    """Rows and columns of windows, each with its own rows and columns of pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


@jax.custom_vjp
def _window_maxima(x: Shaped[Array, "batch height width channels"]) -> Shaped[Array, "batch ..."]:
    return _windows(x).max((2, 4))


def _window_maxima_forward(x: Shaped[Array, "batch height width channels"]):
    return _window_maxima(x), x


@named_jit
def max_pool_2x2_gradient(
    x: Shaped[Array, "batch height width channels"], dy: Shaped[Array, "batch ..."]
) -> Shaped[Array, "batch height width channels"]:
    """The gradient of `max_pool_2x2`, of even height and width, from that of its result."""
    # Pixels are compared with one another, not with the maximum: XLA may compute either again,
    # and round them differently.
    windows = _windows(x)  # [batch, height / 2, 2, width / 2, 2, channels]
    pixels = [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]
    gradients = []
    for place, pixel in enumerate(pixels):
        before, after = pixels[:place], pixels[place + 1 :]
        first = [pixel > other for other in before] + [pixel >= other for other in after]
        gradients.append(jnp.where(first[0] & first[1] & first[2], dy, 0))
    # The windows put together again, first the two columns of each row, then the two rows.
    rows = [jnp.stack(gradients[k : k + 2], 3) for k in (0, 2)]
    return jnp.stack(rows, 2).reshape(x.shape)


_window_maxima.defvjp(_window_maxima_forward, lambda x, dy: (max_pool_2x2_gradient(x, dy),))


def scaled(units: int, width: float) -> int:
    """``units`` times the width multiplier, rounded, at least 1."""
    return max(1, round(units * width))


def check_options(num_classes: int, width: float) -> None:
    """Raises a `ValueError` for a class count or width that no model can have."""
    check_number("num_classes", num_classes, least=1, whole=True)
    check_number("width", width, above=0)


def check_images(
    x: Shaped[Array | np.ndarray, "..."], model: str, smallest: int = 1, multiple_of: int = 1
) -> None:
    """Raises a `ValueError` unless ``x`` is a batch of images that the model can take."""
    if x.ndim != 4:
        raise ValueError(f"{model} takes images [batch, height, width, channels], not {x.shape}.")
    height, width = x.shape[1:3]
    if min(height, width) < smallest:
        raise ValueError(
            f"{model} needs images of at least {smallest} x {smallest} pixels, "
            f"not {height} x {width}."
        )
    if height % multiple_of or width % multiple_of:
        raise ValueError(
            f"{model} needs images whose sides are multiples of {multiple_of} pixels, "
            f"not {height} x {width}."
        )
