"""What is handed over by hand: symmetries, permutations and networks, checked here."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dimat_jax.registry import attempt, expect
from dimat_jax.symmetries.groups import Symmetries, path_name


def check_symmetries(symmetries: Any) -> None:
    """Raises a `ValueError` for anything but `Symmetries`."""
    expect("symmetries", symmetries, Symmetries, "what dj.find_symmetries gives")


def check_permutations(name: str, permutations: Any) -> None:
    """Raises a `ValueError` for anything but group names with arrays of integers.

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


def check_network(symmetries: Symmetries, name: str, variables: Any) -> None:
    """Raises a `ValueError` unless variables have the leaves that carry groups, in their shapes.

    Args:
      symmetries: of the network.
      name: of the argument.
      variables: any.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}
    for path, shape in symmetries.shapes.items():
        if path not in leaves:
            raise ValueError(f"{name} has no leaf {path!r}, which the symmetries name.")
        found = getattr(leaves[path], "shape", None)
        if found != shape:
            raise ValueError(
                f"Leaf {path!r} of {name} has shape {found} but the symmetries were found with "
                f"{shape}."
            )
