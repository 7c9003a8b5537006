"""Merging: permuted weighted averages, and the normalisation statistics of what comes out."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dimat_jax.symmetries import Symmetries, permute
from dimat_jax.types import Variables


def add_weighted(total: Variables, weight: Float[Array, ""], variables: Variables) -> Variables:
    """``total + weight * variables``; leaves that are not floats stay those of ``total``."""

    def add(t, v):
        return t + weight.astype(t.dtype) * v if jnp.issubdtype(t.dtype, jnp.floating) else t

    return jax.tree.map(add, total, variables)


def scale(variables: Variables, weight: Float[Array, ""]) -> Variables:
    """``weight * variables``; leaves that are not floats stay as they are."""

    def multiply(v):
        return weight.astype(v.dtype) * v if jnp.issubdtype(v.dtype, jnp.floating) else v

    return jax.tree.map(multiply, variables)


def merge(
    symmetries: Symmetries,
    variables_list: Sequence[Variables],
    weights: Sequence[float] | Float[Array | np.ndarray, " networks"],
    permutations_list: Sequence[Mapping[str, Any]],
) -> Variables:
    """The permuted weighted average Σ_k w_k P_k x_k of several networks (DIMAT, algorithm 1).

    Running statistics are averaged with the rest; `recompute_statistics` makes them those of the
    merged network.

    Args:
      symmetries: the model's permutation groups.
      variables_list: the networks' variables.
      weights: one a network.
      permutations_list: one dict a network, group name → integer ``[*outer, size]``; a group that
        is absent stays as it is.

    Returns:
      Variables of the same structure. Leaves that are not floats are the first network's.

    Raises:
      ValueError: if the lists are empty or not of one length.
    """
    lengths = len(variables_list), len(weights), len(permutations_list)
    if len(set(lengths)) != 1 or not variables_list:
        raise ValueError(
            "merge needs as many networks as weights and permutations, at least one, "
            f"not {lengths[0]}, {lengths[1]} and {lengths[2]}."
        )
    aligned = [
        permute(symmetries, p, v) for p, v in zip(permutations_list, variables_list, strict=True)
    ]
    total = scale(aligned[0], jnp.asarray(weights[0]))
    for weight, variables in zip(weights[1:], aligned[1:], strict=True):
        total = add_weighted(total, jnp.asarray(weight), variables)
    return total
