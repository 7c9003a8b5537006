"""The normalisation layer of every model in the zoo: chosen, and to be replaced, here alone."""

import math

import flax.linen as nn
from jaxtyping import Array, Float

from dimat_jax.models import layers
from dimat_jax.models.batch_norm import BatchNorm
from dimat_jax.registry import choose

NORMS = ("batch", "layer", "group", "none")

BATCH_NORM_MOMENTUM = 0.9
"""``new = momentum * old + (1 - momentum) * batch``, as Flax has it.

So a caller gets a batch's own statistics back from one step in training mode:
``batch = (new - momentum * old) / (1 - momentum)``.
"""

EPSILON = 1e-5
MAX_GROUPS = 8


def groups_of(channels: int) -> int:
    """The number of GroupNorm's groups: 8 where that divides the channels, else the gcd."""
    return math.gcd(MAX_GROUPS, channels)


def norm_layer(
    x: Float[Array, "batch *positions channels"], kind: str, train: bool
) -> Float[Array, "batch *positions channels"]:
    """Adds a normalisation layer to the Linen module whose ``__call__`` is running.

    Args:
      x: channels last.
      kind: ``batch`` (running statistics unless ``train``; the variance is the biased one),
        ``layer`` (over the channels of each position), ``group`` (over positions and the channels
        of each of `groups_of` groups) or ``none``.
      train: whether BatchNorm uses, and remembers, this batch's statistics.

    Raises:
      ValueError: if ``kind`` is unknown.
    """
    dtype = layers.param_dtype(x)
    match choose("norm", kind, NORMS):
        case "batch":
            return BatchNorm(not train, BATCH_NORM_MOMENTUM, EPSILON, dtype)(x)
        case "layer":
            return nn.LayerNorm(epsilon=EPSILON, param_dtype=dtype)(x)
        case "group":
            groups = groups_of(x.shape[-1])
            return nn.GroupNorm(num_groups=groups, epsilon=EPSILON, param_dtype=dtype)(x)
    return x
