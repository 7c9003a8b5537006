"""Permutations of a model's groups, and what is done with them: draw, permute, compose, invert."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from dimat_jax.symmetries.arguments import check_permutations, check_symmetries
from dimat_jax.symmetries.groups import Site, Symmetries, path_name, shape_of
from dimat_jax.symmetries.networks import check_leaves
from dimat_jax.types import Key, check_key


@jax.tree_util.register_pytree_with_keys_class
class Permutations(dict[str, Any]):
    """Group name → int32 permutation ``[size]`` or ``[*outer, size]``, a dict.

    It also knows which groups vary along which others, so that `compose` and `invert` need no
    `Symmetries`. A plain dict does as well where no group varies.

    Attributes:
      outer: for each group that varies, its `Group.outer`.
    """

    def __init__(self, permutations: Mapping[str, Any], outer: Mapping[str, tuple[str, ...]] = {}):
        super().__init__(permutations)
        self.outer = {name: tuple(outer[name]) for name in sorted(outer) if name in permutations}

    def copy(self) -> Permutations:  # noqa: D102
        return Permutations(self, self.outer)

    def __or__(self, other: Any, /) -> Permutations:  # pyrefly: ignore[bad-override]
        return Permutations({**self, **other}, {**self.outer, **_outer(other)})

    def __ror__(self, other: Any, /) -> Permutations:  # pyrefly: ignore[bad-override]
        return Permutations({**other, **self}, {**_outer(other), **self.outer})

    def tree_flatten_with_keys(self):  # noqa: D102
        names = tuple(sorted(self))
        children = [(jax.tree_util.DictKey(name), self[name]) for name in names]
        return children, (names, tuple(self.outer.items()))

    def tree_flatten(self):  # noqa: D102
        names = tuple(sorted(self))
        return [self[name] for name in names], (names, tuple(self.outer.items()))

    @classmethod
    def tree_unflatten(cls, aux, children):  # noqa: D102
        names, outer = aux
        return cls(dict(zip(names, children, strict=True)), dict(outer))


def _outer(permutations: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return getattr(permutations, "outer", {})


def with_outer(symmetries: Symmetries, permutations: Mapping[str, Any]) -> Permutations:
    """The permutations, knowing which groups vary along which.

    Raises:
      ValueError: for an unknown group, a shape or dtype that does not fit, or an index twice.
    """
    check_symmetries(symmetries)
    check_permutations("permutations", permutations)
    for name, permutation in permutations.items():
        if name not in symmetries.groups:
            known = ", ".join(symmetries.groups) or "none"
            raise ValueError(f"There is no permutation group {name!r}; the groups are: {known}.")
        given, shape = jnp.asarray(permutation).shape, shape_of(symmetries, name)
        if given != shape:
            raise ValueError(
                f"The permutation of group {name!r} has shape {given} but must have shape {shape}."
            )
    return Permutations(permutations, {n: g.outer for n, g in symmetries.groups.items() if g.outer})


def random_permutations(key: Key, symmetries: Symmetries) -> Permutations:
    """Draws a uniformly random permutation of each group.

    Args:
      key: a PRNG key.
      symmetries: the groups.

    Returns:
      Group name → int32 ``[*outer, size]``.
    """
    check_key(key)
    check_symmetries(symmetries)
    drawn = {}
    for i, name in enumerate(symmetries.groups):
        shape = shape_of(symmetries, name)
        indices = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
        key_i = jax.random.fold_in(key, i)
        drawn[name] = jax.random.permutation(key_i, indices, axis=-1, independent=True)
    return with_outer(symmetries, drawn)


def permute(symmetries: Symmetries, permutations: Mapping[str, Any], variables: Any) -> Any:
    """Reorders the hidden units of a model: index k of a permuted axis is index ``p[k]`` of it.

    Pure gathers, so it can be jitted, vmapped and differentiated.

    Args:
      symmetries: the groups, as `find_symmetries` returns them for this architecture.
      permutations: group name → integer ``[*outer, size]``. A group that is absent stays as it is.
      variables: the pytree that the groups were found in.

    Returns:
      Variables of the same structure.

    Raises:
      ValueError: for an unknown group, what is no permutation of it, a leaf that is missing or of
        another shape.
    """
    permutations = with_outer(symmetries, permutations)
    sites: dict[str, list[tuple[Array, Site]]] = {}
    for name, permutation in permutations.items():
        for site in symmetries.groups[name].sites:
            sites.setdefault(site.path, []).append((jnp.asarray(permutation), site))
    check_leaves({path: symmetries.shapes.get(path) for path in sorted(sites)}, variables)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(variables)
    paths = [path_name(path) for path, _ in leaves]
    permuted = [
        _permute_leaf(path, leaf, sites[path]) if path in sites else leaf
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, permuted)


def _permute_leaf(
    path: str, leaf: Shaped[Array | np.ndarray, ...], sites: list[tuple[Array, Site]]
) -> Array:
    shape = np.shape(leaf)
    for _, site in sites:
        if len(shape) <= site.axis or shape[site.axis] < sum(site.segment):
            raise ValueError(f"Leaf {path!r} has shape {shape}, too small for the group at {site}.")
    # For each axis: where each element is fetched from. A site on a part of an axis moves its own
    # elements only, so that the shifts of several sites on one axis add up. Groups on other axes
    # are independent of it: all are gathered at once.
    indices: dict[int, Any] = {}
    for permutation, site in sites:
        along = [-1 if axis == site.axis else 1 for axis in range(len(shape))]
        # A whole axis: the common case, and a gather along one axis is what XLA does best.
        if site[3:] == ((1, shape[site.axis], 1), (), ()):
            indices[site.axis] = permutation.reshape(along)
            continue
        here = np.arange(shape[site.axis], dtype=np.int32).reshape(along)
        shift = _displacement(permutation, site, shape)
        indices[site.axis] = shift + indices.get(site.axis, here)
    out = jnp.asarray(leaf)
    # Fetched from elsewhere in each row: one gather with an index for every element.
    varying = {axis: i for axis, i in indices.items() if i.size > out.shape[axis]}
    for axis in indices.keys() - varying.keys():
        out = jnp.take(out, indices[axis].ravel(), axis=axis, mode="clip")
    if varying:
        grid = np.ogrid[tuple(slice(size) for size in out.shape)]
        out = out[tuple(varying.get(axis, grid[axis]) for axis in range(out.ndim))]
    return out


def _displacement(permutation: Array, site: Site, shape: tuple[int, ...]) -> Array:
    """How far along the site's axis each element is fetched from; broadcasts against the leaf."""
    # An element at unit e of head h, as [2, 4] on an axis of 8, comes from p[h, e] − e places on,
    # times what lies within a unit.
    columns = [place.coordinates(shape) for place in (*site.outer, site.place)]
    limits = [place.coordinates(shape) for place in site.within]
    inside = functools.reduce(np.logical_and, [column >= 0 for column in (*columns, *limits)])
    shift = (permutation[tuple(columns)] - columns[-1]) * site.factor[2]
    return jnp.where(inside, shift, 0).astype(jnp.int32)


def compose(
    first: Mapping[str, Any], then: Mapping[str, Any], symmetries: Symmetries | None = None
) -> Permutations:
    """The permutations that do `first`, and `then` after it: ``first[then]`` for each group.

    Args:
      first: group name → integer ``[*outer, size]``.
      then: the same; a group that only one of the two has is taken from it.
      symmetries: the groups; needed only where groups vary and both are plain dicts.

    Returns:
      Permutations with ``permute(s, compose(first, then), v) ==
      permute(s, then, permute(s, first, v))``.

    Raises:
      ValueError: for a group that varies, nobody knows along what, or what is no permutation.
    """
    if symmetries is None:
        check_permutations("first", first)
        check_permutations("then", then)
    else:
        first, then = with_outer(symmetries, first), with_outer(symmetries, then)
    outer = {**_outer(first), **_outer(then)}
    composed = {}
    for name in {**first, **then}:
        if name not in first:
            composed[name] = jnp.asarray(then[name], jnp.int32)
            continue
        # Where `then` moves heads, the rows that were chosen for them before move along.
        rows = _in_new_frame(jnp.asarray(first[name], jnp.int32), name, outer, then)
        composed[name] = rows
        if name in then:
            composed[name] = jnp.take_along_axis(rows, jnp.asarray(then[name]), axis=-1)
    return Permutations(composed, outer)


def invert(permutations: Mapping[str, Any], symmetries: Symmetries | None = None) -> Permutations:
    """The permutations that undo these.

    Args:
      permutations: group name → integer ``[*outer, size]``.
      symmetries: the groups; needed only where groups vary and `permutations` is a plain dict.

    Returns:
      Permutations with ``permute(s, invert(p), permute(s, p, v)) == v``.

    Raises:
      ValueError: for a group that varies, nobody knows along what, or what is no permutation.
    """
    if symmetries is None:
        check_permutations("permutations", permutations)
    else:
        permutations = with_outer(symmetries, permutations)
    outer = _outer(permutations)
    # Outer groups first: the inverse of theirs says where the rows of the others go.
    inverse: dict[str, Array] = {}
    for name in sorted(permutations, key=lambda name: len(outer.get(name, ()))):
        rows = jnp.argsort(jnp.asarray(permutations[name]), axis=-1).astype(jnp.int32)
        inverse[name] = _in_new_frame(rows, name, outer, inverse)
    return Permutations({name: inverse[name] for name in permutations}, outer)


def _in_new_frame(
    rows: Array,
    name: str,
    outer: Mapping[str, tuple[str, ...]],
    frame: Mapping[str, Any],
) -> Array:
    """A group's permutations ``[*outer, size]``, the outer axes reordered by the outer groups' own.

    An outer group may itself vary along axes that are outer axes here as well.
    """
    names = outer.get(name, ())
    if rows.ndim != len(names) + 1:
        raise ValueError(
            f"The permutation of group {name!r} has shape {rows.shape}, but along what it varies "
            f"stands in no plain dict: pass `symmetries=` as well."
        )
    new = dict(zip(names, np.ogrid[tuple(slice(size) for size in rows.shape[:-1])], strict=True))
    old = [
        jnp.asarray(frame[o])[tuple(new[i] for i in (*outer.get(o, ()), o))]
        if o in frame
        else new[o]
        for o in names
    ]
    return rows[tuple(old)] if old else rows
