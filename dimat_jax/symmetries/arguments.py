"""What is handed over by hand: symmetries and permutations, checked here."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.registry import attempt, expect
from dimat_jax.symmetries.groups import Symmetries


def check_symmetries(symmetries: Any) -> None:
    """Raises a `ValueError` for anything but `Symmetries`."""
    expect("symmetries", symmetries, Symmetries, "what dj.find_symmetries gives")


def check_permutations(name: str, permutations: Any) -> None:
    """Raises a `ValueError` for anything but group names with permutations: integers, each once.

    Args:
      name: of the argument.
      permutations: any.
    """
    what = "a dict of group name to permutation"
    expect(name, permutations, Mapping, what)
    for group, permutation in permutations.items():
        expect(f"A group of {name}", group, str, "a string")
        array = attempt(f"{name} must be {what}", jnp.asarray, permutation)
        if array.ndim == 0 or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"The permutation of group {group!r} has dtype {array.dtype} and shape "
                f"{array.shape} but must be an array of integers."
            )
        _check_entries(group, permutation)


def _check_entries(group: str, permutation: Any) -> None:
    """Each index must be there once; what is being traced, or lies elsewhere, cannot be seen."""
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(permutation))
    if traced or not getattr(permutation, "is_fully_addressable", True):
        return
    rows = np.asarray(permutation)
    rows = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    lacks = np.argwhere(np.sort(rows, -1) != np.arange(rows.shape[-1]))
    if len(lacks):
        missing = np.setdiff1d(np.arange(rows.shape[-1]), rows[lacks[0][0]])[0]
        raise ValueError(
            f"The permutation of group {group!r} lacks index {missing}: each of 0 to "
            f"{rows.shape[-1] - 1} must be there once."
        )
