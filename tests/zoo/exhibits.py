"""What a public model is to show: how it is made, and the groups that an expert expects of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
"""Of a group's permutation: ``(size,)``, or ``(*outer sizes, size)`` where it varies."""


class Exhibit(NamedTuple):
    """A public architecture.

    Attributes:
      name: as in its paper.
      library: the package that it is taken from.
      make: makes ``(function, variables, inputs)``, small, with random weights.
      groups: the shape of each group, counted by hand.
      why: the reasoning behind the count, in a line.
    """

    name: str
    library: str
    make: Callable[[], tuple[Callable[..., Any], Any, tuple[Any, ...]]]
    groups: list[Shape]
    why: str


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Random weights of these shapes; variances and scales are positive."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        values = 0.3 * rng.normal(size=x.shape)
        positive = any(word in jax.tree_util.keystr(path) for word in ("var", "scale"))
        return jnp.asarray(np.abs(values) + 0.5 if positive else values, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def images(*shape: int) -> jax.Array:
    """Random ones."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def attention(heads: int, size: int, values: int | None = None) -> list[Shape]:
    """The heads; and of each, its query and key units, and its value units."""
    return [(heads,), (heads, size), (heads, values or size)]


def rotary_attention(heads: int, size: int) -> list[Shape]:
    """As `attention`, but each pair of query and key units turns at a rate of its own: no group."""
    return [(heads,), (heads, size)]
