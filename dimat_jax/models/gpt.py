"""A pre-norm decoder of tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.registry import check_number, choose, expect
from dimat_jax.types import Model

POSITIONS = ("rotary", "learned")
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
MAX_LENGTH = 1024
"""Rows of the table of learned positions."""
HEAD_SIZE = 16


def rotated(
    x: Float[Array, "batch tokens heads units"],
) -> Float[Array, "batch tokens heads units"]:
    """Turns pairs of units by angles that grow with the position (RoPE, arXiv 2104.09864)."""
    tokens, half = x.shape[1], x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(tokens)[:, None] * rates[None]
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(nn.Module):
    """Each token attends to those before it and to itself."""

    heads: int
    rotary: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens units"]) -> Float[Array, "batch tokens units"]:
        """Returns what is added to the residual stream."""
        shape = self.heads, x.shape[-1] // self.heads

        def project(name: str) -> Any:
            return nn.DenseGeneral(shape, param_dtype=layers.param_dtype(x), name=name)(x)

        query, key, value = map(project, ("query", "key", "value"))
        if self.rotary:
            query, key = rotated(query), rotated(key)
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.dot_product_attention(query, key, value, mask=mask)
        return nn.DenseGeneral(x.shape[-1], (-2, -1), param_dtype=layers.param_dtype(x))(y)


class GPT(nn.Module):
    """Tokens to logits of the next ones."""

    num_classes: int
    units: int
    heads: int
    depth: int
    positions: str
    norm: str
    tied: bool
    dropout: float

    @nn.compact
    def __call__(
        self, tokens: Int[Array | np.ndarray, "batch tokens"], train: bool = False
    ) -> Float[Array, "batch tokens classes"]:
        """Returns the logits."""
        dtype = jnp.result_type(float)
        norm = NORMS[self.norm]
        initial = nn.initializers.normal(0.02)
        embedding = nn.Embed(
            self.num_classes, self.units, param_dtype=dtype, embedding_init=initial, name="tokens"
        )
        x = embedding(tokens)
        if self.positions == "learned":
            table = self.param("positions", initial, (MAX_LENGTH, self.units), dtype)
            x = x + table[None, : x.shape[1]]
        for _ in range(self.depth):
            y = Attention(self.heads, self.positions == "rotary")(norm(param_dtype=dtype)(x))
            x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
            y = nn.Dense(4 * self.units, param_dtype=dtype)(norm(param_dtype=dtype)(x))
            y = nn.Dense(self.units, param_dtype=dtype)(nn.gelu(y))
            x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        x = norm(param_dtype=dtype)(x)
        if self.tied:
            return embedding.attend(x)
        return nn.Dense(self.num_classes, param_dtype=dtype, name="output")(x)


def gpt(
    num_classes: int = 256,
    width: float = 1.0,
    depth: int = 2,
    heads: int = 4,
    positions: str = "rotary",
    norm: str = "layer",
    tied: bool = False,
    dropout: float = 0.0,
) -> Model:
    """A pre-norm decoder: attention to what came before, then two dense layers, in each block.

    Args:
      num_classes: tokens of the vocabulary.
      width: multiplies the size of the heads, 16 units, and with it the residual stream.
      depth: number of blocks.
      heads: of each block's attention.
      positions: ``rotary`` (RoPE) or ``learned``, for up to `MAX_LENGTH` tokens.
      norm: ``layer`` or ``rms``.
      tied: whether the embedding also gives the logits.
      dropout: rate at the end of each branch; above 0, training needs a ``key``.

    Returns:
      A model of integer tokens ``[batch, tokens]`` with logits ``[batch, tokens, num_classes]``.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("positions", positions, POSITIONS)
    choose("norm", norm, NORMS)
    for name, value in (("depth", depth), ("heads", heads)):
        check_number(name, value, least=1, whole=True)
    expect("tied", tied, bool, "True or False")
    check_number("dropout", dropout, least=0)
    if dropout >= 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}.")
    units = heads * 2 * layers.scaled(HEAD_SIZE // 2, width)  # rotary units turn in pairs
    return from_linen(GPT(num_classes, units, heads, depth, positions, norm, tied, dropout))
