"""Multilayer perceptrons."""

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from dimat_jax.models import layers
from dimat_jax.models.adapters import from_linen
from dimat_jax.models.norm import NORMS, norm_layer
from dimat_jax.registry import check_number, choose
from dimat_jax.types import Model


class MLP(nn.Module):
    """Hidden layers of ReLU units on flattened inputs."""

    num_classes: int
    units: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(
        self, x: Shaped[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        x = x.reshape(x.shape[0], -1)
        for units in self.units:
            x = layers.dense(x, units, bias=self.norm == "none")
            x = jax.nn.relu(norm_layer(x, self.norm, train))
        return layers.classify(x, self.num_classes)


def mlp(
    num_classes: int = 10,
    width: float = 1.0,
    norm: str = "none",
    depth: int = 3,
) -> Model:
    """A multilayer perceptron with ``depth`` hidden layers of 256 × ``width`` units.

    Args:
      num_classes: number of logits.
      width: multiplies the units of every hidden layer.
      norm: ``batch``, ``layer``, ``group`` or ``none``, before each ReLU.
      depth: number of hidden layers; 0 makes a linear model.

    Returns:
      A model of inputs ``[batch, ...]``, which it flattens.

    Raises:
      ValueError: for an option out of range.
    """
    layers.check_options(num_classes, width)
    choose("norm", norm, NORMS)
    check_number("depth", depth, least=0, whole=True)
    return from_linen(MLP(num_classes, (layers.scaled(256, width),) * depth, norm))
