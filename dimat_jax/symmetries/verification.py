"""Checks symmetries on concrete variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dimat_jax.registry import attempt
from dimat_jax.symmetries.analysis import FAILS, as_function
from dimat_jax.symmetries.arguments import check_symmetries
from dimat_jax.symmetries.groups import Symmetries
from dimat_jax.symmetries.permutations import permute, random_permutations
from dimat_jax.types import Key, Model


def verify(
    symmetries: Symmetries,
    model_or_function: Model | Callable[..., Any],
    variables: Any,
    *inputs: Any,
    key: Key | None = None,
) -> float:
    """Measures how far random permutations of all groups at once change the outputs.

    Args:
      symmetries: the groups.
      model_or_function: the function that they were found in.
      variables: the variables to permute, concrete.
      *inputs: concrete inputs.
      key: draws the permutations; ``jax.random.key(0)`` if None.

    Returns:
      The largest absolute change of an output array, relative to the array's largest absolute
      value; the worst of all outputs. About 1e-6 in float32, 1e-15 in float64. Infinite if a value
      that is not finite becomes another one, or is not a number.
    """
    check_symmetries(symmetries)
    function = jax.jit(as_function(model_or_function))
    permutations = random_permutations(jax.random.key(0) if key is None else key, symmetries)
    before = attempt(FAILS, function, variables, *inputs)
    after = function(permute(symmetries, permutations, variables), *inputs)
    changes = jax.tree.map(_relative_change, before, after)
    return max(map(float, jax.tree.leaves(changes)), default=0.0)


def _relative_change(before: Array, after: Array) -> Array:
    before, after = (
        x.ravel().astype(jnp.promote_types(x.dtype, jnp.result_type(float)))
        for x in (jnp.asarray(before), jnp.asarray(after))
    )
    if not before.size:
        return jnp.zeros(())
    change, size = jnp.abs(after - before), jnp.abs(before)
    # An infinity that stays is no change, though its difference to itself is no number.
    change = jnp.where(before == after, 0, jnp.where(jnp.isfinite(change), change, jnp.inf))
    scale = jnp.where(jnp.isfinite(size), size, 0).max()
    return change.max() / jnp.where(scale > 0, scale, 1)
