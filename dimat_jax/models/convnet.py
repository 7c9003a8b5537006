"""A small convolutional network, the default model."""

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.models.norm import NORMS, norm_layer
from dimat_jax.registry import choose
from dimat_jax.types import Model

CHANNELS = (16, 32, 64)


class ConvNet(nn.Module):
    """3 × 3 convolutions, each followed by ReLU and max pooling; then one dense layer."""

    num_classes: int
    channels: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        layers.check_images(x, "convnet", smallest=2 ** len(self.channels))
        for channels in self.channels:
            x = layers.conv(x, channels, bias=self.norm == "none")
            x = jax.nn.relu(norm_layer(x, self.norm, train))
            x = layers.max_pool_2x2(x)
        return layers.classify(x.reshape(x.shape[0], -1), self.num_classes)


def convnet(num_classes: int = 10, width: float = 1.0, norm: str = "batch") -> Model:
    """Three convolutions of 16, 32 and 64 channels × ``width``, and a dense layer.

    Args:
      num_classes: number of logits.
      width: multiplies the channels.
      norm: ``batch``, ``layer``, ``group`` or ``none``, before each ReLU.

    Returns:
      A model of images ``[batch, height, width, channels]`` of 8 × 8 pixels and more.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("norm", norm, NORMS)
    return from_linen(ConvNet(num_classes, tuple(layers.scaled(c, width) for c in CHANNELS), norm))
