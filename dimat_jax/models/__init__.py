"""The model zoo: factories by name, each with ``num_classes`` and ``width``; adapters for Flax.

Every factory returns a `dimat_jax.types.Model`. Images are normalised floats
``[batch, height, width, channels]``; float64 images give float64 parameters and computation.
Knows neither of agents nor of data: may import `types`, `registry` and `jaxprs`. Adding one: a file
with its factory, and a line in `dimat_jax.registry`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dimat_jax import registry
from dimat_jax.models.adapters import from_linen as from_linen
from dimat_jax.models.adapters import from_nnx as from_nnx
from dimat_jax.models.convnet import convnet as convnet
from dimat_jax.models.gpt import gpt as gpt
from dimat_jax.models.mlp import mlp as mlp
from dimat_jax.models.norm import BATCH_NORM_MOMENTUM as BATCH_NORM_MOMENTUM
from dimat_jax.models.resnet import resnet20 as resnet20
from dimat_jax.models.resnet import resnet50 as resnet50
from dimat_jax.models.vgg import vgg11 as vgg11
from dimat_jax.models.vgg import vgg16 as vgg16
from dimat_jax.models.vit import vit as vit
from dimat_jax.types import Model

FACTORIES: Mapping[str, Callable[..., Model]] = registry.MODELS
"""Name → factory."""


def make(name: str, **options: Any) -> Model:
    """Makes a model by name: ``make("resnet20", num_classes=100, width=8)``.

    Raises:
      ValueError: for an unknown name (with the nearest one) or an option that the factory lacks.
    """
    return registry.make("model", name, FACTORIES, **options)
