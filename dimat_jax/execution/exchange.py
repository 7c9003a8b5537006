"""What moves between agents, and so between devices: rows of all agents, and their averages.

The one place where arrays cross devices. Both functions are written for all lanes at once and
compile to an all-gather where agents are on several devices; an exchange of only what each device
needs (``ppermute`` along the edges of the graph) belongs here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PyTree = Any


def take(tree: PyTree, sources: Int[Array, "lanes"]) -> PyTree:
    """For each lane what another one has: ``x[sources]``, leaf by leaf.

    Args:
      tree: stacked ``[lanes, ...]``.
      sources: which.
    """
    return jax.tree.map(lambda x: x[sources], tree)


def mix(matrix: Float[Array, "lanes lanes"], tree: PyTree) -> PyTree:
    """Σ_j π_ij x_j for every lane i, leaf by leaf.

    Args:
      matrix: π.
      tree: stacked ``[lanes, ...]``.
    """

    def average(x: Array) -> Array:
        return jnp.tensordot(matrix.astype(x.dtype), x, axes=1, precision="highest")

    return jax.tree.map(average, tree)
