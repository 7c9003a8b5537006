"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.models.norm import norm_layer
from dimat_jax.registry import check_number, choose
from dimat_jax.types import Model

PATCH = 4
HEADS = 4
HEAD_SIZE = 32
POOLINGS = ("mean", "cls")


class Block(nn.Module):
    """Attention, then two dense layers, each after its LayerNorm and added to the stream."""

    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens units"], train: bool
    ) -> Float[Array, "batch tokens units"]:
        """Returns the residual stream after the block."""
        dtype = layers.param_dtype(x)
        units = x.shape[-1]
        y = norm_layer(x, "layer", train)
        y = nn.MultiHeadDotProductAttention(HEADS, param_dtype=dtype)(y)
        x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        y = norm_layer(x, "layer", train)
        y = nn.gelu(nn.Dense(4 * units, param_dtype=dtype)(y))
        y = nn.Dense(units, param_dtype=dtype)(y)
        return x + nn.Dropout(self.dropout)(y, deterministic=not train)


class ViT(nn.Module):
    """Patches to tokens, transformer blocks, and one dense layer on the pooled tokens."""

    num_classes: int
    units: int
    depth: int
    pooling: str
    dropout: float

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        layers.check_images(x, "vit", smallest=PATCH, multiple_of=PATCH)
        dtype = layers.param_dtype(x)
        x = nn.Dense(self.units, param_dtype=dtype, name="embedding")(patches(x, PATCH))
        if self.pooling == "cls":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.units), dtype)
            x = jnp.concatenate([jnp.repeat(token, len(x), 0), x], axis=1)
        # One embedding per token: later images must have as many tokens as the first.
        initial = nn.initializers.normal(0.02)
        x = x + self.param("positions", initial, (1, *x.shape[1:]), dtype)
        for _ in range(self.depth):
            x = Block(self.dropout)(x, train)
        x = norm_layer(x, "layer", train)
        pooled = x[:, 0] if self.pooling == "cls" else x.mean(1)
        return layers.classify(pooled, self.num_classes)


def patches(
    x: Shaped[Array | np.ndarray, "batch height width channels"], size: int
) -> Shaped[Array | np.ndarray, "batch tokens pixels"]:
    """Cuts images into squares: rows of ``size * size * channels`` numbers."""
    batch, height, width, channels = x.shape
    # 32 x 32 x 3 in squares of 4: [batch, 8, 4, 8, 4, 3], then [batch, 64, 48].
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def vit(
    num_classes: int = 10,
    width: float = 1.0,
    depth: int = 6,
    pooling: str = "mean",
    dropout: float = 0.0,
) -> Model:
    """A pre-norm transformer on patches of 4 × 4 pixels, 4 heads of 32 × ``width`` units.

    Args:
      num_classes: number of logits.
      width: multiplies the size of the heads; the residual stream has 4 times as many units, the
        hidden layers 16 times.
      depth: number of blocks.
      pooling: ``mean`` over the tokens, or ``cls`` for a class token of its own.
      dropout: rate at the end of each branch; above 0, training needs a ``key``.

    Returns:
      A model of images ``[batch, height, width, channels]``, sides a multiple of 4, all the size
      of those it was initialised with.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("pooling", pooling, POOLINGS)
    check_number("depth", depth, least=1, whole=True)
    check_number("dropout", dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}.")
    units = HEADS * layers.scaled(HEAD_SIZE, width)
    return from_linen(ViT(num_classes, units, depth, pooling, dropout))
