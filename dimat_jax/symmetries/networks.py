"""Several networks side by side: leaves by path, checks that they are alike, wide numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.symmetries.groups import path_name


def leaves_by_path(variables: Any) -> dict[str, Any]:
    """Path → leaf, in the order of `jax.tree.leaves`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {path_name(path): leaf for path, leaf in leaves}


def like(first: Any, other: Any, names: tuple[str, str]) -> Any:
    """The other network in the first one's structure, as that of a `FrozenDict` beside a dict.

    Args:
      first: variables of a network, any pytree.
      other: variables of another one.
      names: what the two are called.

    Returns:
      The other's leaves in a pytree like the first.

    Raises:
      ValueError: if a leaf is missing in one of the two, has another shape, or is real, complex or
        anything else where the other's is not.
    """
    one, two = leaves_by_path(first), leaves_by_path(other)
    for path in [*one, *two]:
        if (path in one) != (path in two):
            has, lacks = names if path in one else names[::-1]
            raise ValueError(f"Leaf {path!r} of {has} is missing in {lacks}.")
        shapes = np.shape(one[path]), np.shape(two[path])
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Leaf {path!r} has shape {shapes[0]} in {names[0]} but {shapes[1]} in {names[1]}."
            )
        dtypes = dtype_of(one[path]), dtype_of(two[path])
        if _kind(dtypes[0]) != _kind(dtypes[1]):
            raise ValueError(
                f"Leaf {path!r} is {dtypes[0]} in {names[0]} but {dtypes[1]} in {names[1]}: both "
                f"must be real, both complex, or neither of them either."
            )
    return jax.tree.unflatten(jax.tree.structure(first), [two[path] for path in one])


def check_leaves(
    shapes: Mapping[str, tuple[int, ...] | None], variables: Any, name: str = "the variables"
) -> None:
    """Checks that leaves are there, in the shapes that the groups on them were found with.

    Args:
      shapes: path → shape, as in `Symmetries.shapes`; None for any shape.
      variables: any pytree.
      name: what it is called.

    Raises:
      ValueError: for a leaf that is missing or has another shape.
    """
    leaves = leaves_by_path(variables)
    for path, shape in shapes.items():
        if path not in leaves:
            raise ValueError(f"There is no leaf {path!r} in {name}, which the symmetries name.")
        if shape is not None and np.shape(leaves[path]) != shape:
            raise ValueError(
                f"Leaf {path!r} has shape {np.shape(leaves[path])} but the symmetries were found "
                f"with {shape}. Stacked variables need a `jax.vmap` around the call."
            )


def dtype_of(leaf: Any) -> Any:
    """The dtype of a leaf; numbers of Python have one, and what is no number has ``object``."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_averaged(leaf: Any) -> bool:
    """Whether a leaf holds real or complex numbers, not integers, keys or anything else."""
    return jnp.issubdtype(dtype_of(leaf), jnp.inexact)


def _kind(dtype: Any) -> tuple[bool, bool]:
    return jnp.issubdtype(dtype, jnp.floating), jnp.issubdtype(dtype, jnp.complexfloating)


def wide(dtype: Any) -> Any:
    """The dtype in which numbers of this one are added up: float32 or complex64 at least.

    In bfloat16 or float16 a sum loses what it has, and in int8 it overflows.
    """
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return np.promote_types(dtype, np.float32) if inexact else np.dtype(np.float32)
