"""Reads a model's activations at its groups' read sites, without changes to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dimat_jax.symmetries.analysis import analyse
from dimat_jax.symmetries.arguments import check_symmetries
from dimat_jax.symmetries.discovery import symmetries_of
from dimat_jax.symmetries.extract import extract
from dimat_jax.symmetries.groups import GroupKey, Symmetries
from dimat_jax.symmetries.networks import check_leaves
from dimat_jax.symmetries.sites import choose_sites
from dimat_jax.symmetries.taps import evaluate_with_taps
from dimat_jax.types import Model


def read_activations(
    symmetries: Symmetries, model_or_function: Model | Callable[..., Any]
) -> Callable[..., dict[str, list[Array]]]:
    """Makes a function that returns each group's activations, without changes to the model.

    The returned function can be jitted, vmapped and sharded. See `read_sites` for what is read.

    Args:
      symmetries: the groups, as `find_symmetries` returns them for this function.
      model_or_function: the same function.

    Returns:
      ``(variables, *inputs) -> dict group name → list of [..., size]``, in network order, the last
      site last; the list of a group that is never read is empty. For a group that varies along an
      axis of fixed positions (scanned layers), that axis comes first: ``[*outer, ..., size]``; one
      that varies along another group has that group's axis just before its own.
    """
    check_symmetries(symmetries)
    sites = read_sites(symmetries, model_or_function)

    def read(variables: Any, *inputs: Any) -> dict[str, list[Array]]:
        found: dict[str, list[Array]] = {name: [] for name in symmetries.groups}
        for key, tensors in sites(variables, *inputs).items():
            for position, name in enumerate(key):
                found[name].extend(_move_last(x, key, position, symmetries) for x in tensors)
        return found

    return read


def _move_last(x: Array, key: GroupKey, position: int, symmetries: Symmetries) -> Array:
    """Moves one group's axis last, after those of the groups that it varies along."""
    outer = [key.index(name) for name in symmetries.groups[key[position]].outer if name in key]
    axes = [i - len(key) for i in (*outer, position)]
    return jnp.moveaxis(x, axes, range(-len(axes), 0))


def read_sites(
    symmetries: Symmetries, model_or_function: Model | Callable[..., Any]
) -> Callable[..., dict[GroupKey, list[Array]]]:
    """Makes a function that returns the tensors at read sites, by the groups they carry jointly.

    A read site is a tensor that depends on the inputs and carries a group's axis where it is
    contracted with a variable or with another activation. A group without such a site is read where
    it is summed or maximised over, else where a variable that carries it is contracted, else where
    something that carries it is read for another axis. One tensor is listed once, however often it
    is read. A concatenated axis gives each group its own slice. A tensor that carries a group on
    two axes (a Gram matrix) is no read site. Inside a scan, values are stacked over its steps,
    which come first; inside a while loop they are those of its last step, and inside a branch of a
    conditional that is not taken they are zeros. What is read in a loop's condition, in a linear
    solver or in code for one platform only is not returned.

    Args:
      symmetries: the groups, as `find_symmetries` returns them for this function.
      model_or_function: the same function.

    Returns:
      ``(variables, *inputs) -> dict key → list of [..., size_1, size_2, ...]``. A key names all
      groups that the tensor carries, those that others vary along first, and their axes stand last
      in that order. Axes of fixed positions along which one of them varies come first.
    """

    def read(variables: Any, *inputs: Any) -> dict[GroupKey, list[Array]]:
        # Traced for these very shapes: another batch size is another jaxpr. Under `jit` that is
        # done while it is traced itself, and costs nothing later.
        check_leaves(symmetries.shapes, variables)
        analysis = analyse(model_or_function, variables, *inputs)
        _check(symmetries, symmetries_of(analysis))
        sites = choose_sites(symmetries, analysis)
        leaves = jax.tree.leaves((variables, *inputs))
        # Dead code was removed, and with it the inputs that only dead code read.
        operands = [leaf for leaf, used in zip(leaves, analysis.used, strict=True) if used]
        wanted = {(site.read.path, site.read.operand) for site in sites}
        _, taps = evaluate_with_taps(analysis.jaxpr, operands, wanted)
        found: dict[GroupKey, list[Array]] = {}
        for site in sites:
            value = taps[site.read.path, site.read.operand]
            for key, tensor in extract(value, site.read.tensor, site, symmetries):
                found.setdefault(key, []).append(tensor)
        return found

    return read


def _check(given: Symmetries, found: Symmetries) -> None:
    for name, group in given.groups.items():
        if name not in found.groups:
            raise ValueError(
                f"The symmetries were found for another function or other variables: there is no "
                f"such group {name!r} in this one, whose groups are "
                f"{', '.join(found.groups) or 'none'}."
            )
        if found.groups[name] != group:
            raise ValueError(
                f"The symmetries were found for another function or other inputs: group {name!r} "
                f"stands elsewhere, or varies otherwise, in this one."
            )
