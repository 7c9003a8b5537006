"""Residual networks (He et al. 2016, arXiv 1512.03385): ResNet-20 and ResNet-50."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.models.norm import NORMS, norm_layer
from dimat_jax.registry import choose
from dimat_jax.types import Model

SHORTCUTS = ("conv3x3", "conv1x1", "padding")
SMALL_IMAGE = 64  # up to this side ResNet-50 starts with 3 × 3 and no pooling, as on CIFAR


class ConvNorm(nn.Module):
    """A convolution and its normalisation; with a bias only where nothing normalises."""

    channels: int
    norm: str
    size: int = 3
    strides: int = 1

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch height width inputs"], train: bool
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Returns the normalised features, before any nonlinearity."""
        x = layers.conv(x, self.channels, self.size, self.strides, bias=self.norm == "none")
        return norm_layer(x, self.norm, train)


class Shortcut(nn.Module):
    """What a block adds to: its input, brought to the shape of its output.

    ``padding`` is the parameter-free option A of the paper: every ``strides``-th pixel, and zeros
    for the channels that are missing. ``conv1x1`` is option B; ``conv3x3`` is DIMAT's.
    """

    channels: int
    norm: str
    kind: str
    strides: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], train: bool
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Returns the block's input in the shape of its output."""
        missing = self.channels - x.shape[-1]
        if self.strides == 1 and missing == 0:
            return x
        if self.kind == "padding":  # Zeros for the new channels: no parameters.
            x = x[:, :: self.strides, :: self.strides]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
        size = 3 if self.kind == "conv3x3" else 1
        return ConvNorm(self.channels, self.norm, size, self.strides, name="projection")(x, train)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut."""

    channels: int
    norm: str
    shortcut: str
    strides: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], train: bool
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Returns the residual stream after the block."""
        y = ConvNorm(self.channels, self.norm, strides=self.strides)(x, train)
        y = ConvNorm(self.channels, self.norm)(jax.nn.relu(y), train)
        x = Shortcut(self.channels, self.norm, self.shortcut, self.strides, name="shortcut")(
            x, train
        )
        return jax.nn.relu(x + y)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 (with the stride) and 1 × 1 convolutions, the last four times as wide."""

    channels: int
    norm: str
    shortcut: str
    strides: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], train: bool
    ) -> Float[Array, "batch new_height new_width outputs"]:
        """Returns the residual stream after the block."""
        outputs = 4 * self.channels
        y = jax.nn.relu(ConvNorm(self.channels, self.norm, size=1)(x, train))
        y = jax.nn.relu(ConvNorm(self.channels, self.norm, strides=self.strides)(y, train))
        y = ConvNorm(outputs, self.norm, size=1)(y, train)
        x = Shortcut(outputs, self.norm, self.shortcut, self.strides, name="shortcut")(x, train)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Stages of residual blocks, each stage but the first at half the resolution.

    Attributes:
      num_classes: number of logits.
      block: `BasicBlock` or `Bottleneck`.
      blocks: number of blocks in each stage.
      channels: channels of each stage (of its 3 × 3 convolutions).
      norm: kind of normalisation.
      shortcut: kind of shortcut where a block changes the shape.
      large_stem: whether large images are reduced by a 7 × 7 convolution and a maximum first.
    """

    num_classes: int
    block: type[nn.Module]
    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    norm: str
    shortcut: str
    large_stem: bool = False

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        layers.check_images(x, "resnet")
        if self.large_stem and max(x.shape[1:3]) > SMALL_IMAGE:
            x = jax.nn.relu(ConvNorm(self.channels[0], self.norm, 7, 2, name="stem")(x, train))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = jax.nn.relu(ConvNorm(self.channels[0], self.norm, name="stem")(x, train))
        for stage, (blocks, channels) in enumerate(zip(self.blocks, self.channels, strict=True)):
            for index in range(blocks):
                # Each stage but the first begins by halving the image.
                strides = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                block = self.block(channels, self.norm, self.shortcut, strides, name=name)
                x = block(x, train)
        return layers.classify(x.mean((1, 2)), self.num_classes)


def resnet20(
    num_classes: int = 10, width: float = 1.0, norm: str = "batch", shortcut: str = "conv3x3"
) -> Model:
    """ResNet-20: three stages of three basic blocks, 16, 32 and 64 channels × ``width``.

    He et al. 2016, section 4.2; DIMAT (arXiv 2404.08079) takes width 8 and 3 × 3 shortcuts.

    Args:
      num_classes: number of logits.
      width: multiplies the channels.
      norm: ``batch``, ``layer``, ``group`` or ``none``, after each convolution.
      shortcut: where a block changes the shape: ``conv3x3`` or ``conv1x1`` with its own
        normalisation, or ``padding`` with zero channels.

    Returns:
      A model of images ``[batch, height, width, channels]`` of any size.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("norm", norm, NORMS)
    choose("shortcut", shortcut, SHORTCUTS)
    channels = tuple(layers.scaled(c, width) for c in (16, 32, 64))
    return from_linen(ResNet(num_classes, BasicBlock, (3, 3, 3), channels, norm, shortcut))


def resnet50(num_classes: int = 10, width: float = 1.0, norm: str = "batch") -> Model:
    """ResNet-50: bottleneck blocks, 64 to 512 (× 4) channels × ``width``, 1 × 1 shortcuts.

    He et al. 2016, table 1, with the stride on the 3 × 3 convolution. Images of up to 64 pixels
    meet a 3 × 3 convolution first, larger ones the 7 × 7 convolution and pooling of the paper.

    Args:
      num_classes: number of logits.
      width: multiplies the channels.
      norm: ``batch``, ``layer``, ``group`` or ``none``, after each convolution.

    Returns:
      A model of images ``[batch, height, width, channels]`` of any size.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("norm", norm, NORMS)
    channels = tuple(layers.scaled(c, width) for c in (64, 128, 256, 512))
    module = ResNet(num_classes, Bottleneck, (3, 4, 6, 3), channels, norm, "conv1x1", True)
    return from_linen(module)
