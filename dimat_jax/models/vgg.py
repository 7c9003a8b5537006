"""VGG networks (Simonyan & Zisserman 2015, arXiv 1409.1556) in their form for small images."""

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.models.norm import NORMS, norm_layer
from dimat_jax.registry import choose
from dimat_jax.types import Model

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Stages of 3 × 3 convolutions, each stage ending in max pooling; then one dense layer."""

    num_classes: int
    stages: tuple[tuple[int, ...], ...]
    norm: str

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        layers.check_images(x, "vgg", smallest=2 ** len(self.stages))
        for stage in self.stages:
            for channels in stage:
                x = layers.conv(x, channels, bias=self.norm == "none")
                x = jax.nn.relu(norm_layer(x, self.norm, train))
            x = layers.max_pool_2x2(x)
        return layers.classify(x.reshape(x.shape[0], -1), self.num_classes)


def vgg11(num_classes: int = 10, width: float = 1.0, norm: str = "batch") -> Model:
    """VGG11: configuration A of the paper's table 1, with one dense layer.

    Args:
      num_classes: number of logits.
      width: multiplies the channels (64 to 512).
      norm: ``batch``, ``layer``, ``group`` or ``none``, before each ReLU.

    Returns:
      A model of images ``[batch, height, width, channels]`` of 32 × 32 pixels and more.

    Raises:
      ValueError: for an option out of range.
    """
    return vgg(VGG11, num_classes, width, norm)


def vgg16(num_classes: int = 10, width: float = 1.0, norm: str = "batch") -> Model:
    """VGG16: configuration D of the paper's table 1, with one dense layer.

    Args:
      num_classes: number of logits.
      width: multiplies the channels (64 to 512).
      norm: ``batch``, ``layer``, ``group`` or ``none``, before each ReLU.

    Returns:
      A model of images ``[batch, height, width, channels]`` of 32 × 32 pixels and more.

    Raises:
      ValueError: for an option out of range.
    """
    return vgg(VGG16, num_classes, width, norm)


def vgg(stages: tuple[tuple[int, ...], ...], num_classes: int, width: float, norm: str) -> Model:
    """A VGG network of the given stages of channels."""
    layers.check_options(num_classes, width)
    choose("norm", norm, NORMS)
    stages = tuple(tuple(layers.scaled(c, width) for c in stage) for stage in stages)
    return from_linen(VGG(num_classes, stages, norm))
