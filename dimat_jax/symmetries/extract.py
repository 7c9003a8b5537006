"""From the tensor at a read site to arrays ``[..., size_1, size_2, ...]`` of the groups on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from dimat_jax.symmetries.axes import Atom, Axis, Factor, Segment, Sum, atoms, resolve, segment_size
from dimat_jax.symmetries.groups import GroupKey, Symmetries
from dimat_jax.symmetries.sites import ReadSite
from dimat_jax.symmetries.walk import Tensor


def extract(
    value: Array, tensor: Tensor, site: ReadSite, symmetries: Symmetries
) -> Iterator[tuple[GroupKey, Array]]:
    """The tensor's blocks: one a segment that carries a group that is read here."""
    # [t, h·u | w] with groups h, u and w gives two pieces: [t, h, u] and [t, w]. Each piece has a
    # label for each of its axes; those that scans have put in front have none.
    stacked = value.ndim - len(tensor.axes)
    pieces: list[tuple[Array, list[Factor | None]]] = [(value, [None] * stacked)]
    for axis in tensor.axes:
        pieces = [
            (split, labels + more)
            for piece, labels in pieces
            for split, more in _split(piece, len(labels), axis, site.names | site.positions)
        ]
    order = list(symmetries.groups)
    for piece, labels in pieces:
        standing = {f: d for d, f in enumerate(labels) if isinstance(f, Atom)}
        dims = {site.names[f]: d for f, d in standing.items() if f in site.names}
        # The tensor is read for some of its groups only; of a piece with one of them all are named.
        if not site.wanted & set(dims):
            continue
        key = tuple(sorted(dims, key=lambda n: (len(symmetries.groups[n].outer), order.index(n))))
        along = {outer for name in key for outer in symmetries.groups[name].outer}
        fixed = {site.positions[f]: d for f, d in standing.items() if f in site.positions}
        # Steps of a scan, which stand first as they are, come before positions on the tensor.
        first = [fixed[name] for name in symmetries.positions if name in along and name in fixed]
        last = [dims[name] for name in key]
        to = (*range(stacked, stacked + len(first)), *range(-len(last), 0))
        yield key, jnp.moveaxis(piece, (*first, *last), to)


def _split(
    x: Array, dim: int, axis: Axis, names: dict[Atom, str]
) -> Iterator[tuple[Array, list[Factor | None]]]:
    """Splits an axis that carries groups into segments and factors, with a label a new axis."""
    if not any(atom in names for atom in atoms(axis)):
        yield x, [None]
        return
    start = 0
    for segment in resolve(axis):
        stop = start + segment_size(segment)
        piece = lax.slice_in_dim(x, start, stop, axis=dim)
        segment = tuple(factor for factor in segment if factor.size > 1)
        sizes = [factor.size for factor in segment]
        piece = piece.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
        yield from _split_factors(piece, dim, segment, names)
        start = stop


def _split_factors(
    x: Array, dim: int, segment: Segment, names: dict[Atom, str]
) -> Iterator[tuple[Array, list[Factor | None]]]:
    if not segment:
        yield x, []
        return
    head = segment[0]
    firsts: Any = [(x, [head])]
    # The Sum's axis is split itself, into as many axes as its segments have factors.
    if isinstance(head, Sum):
        firsts = _split(x, dim, head.segments, names)
    for piece, labels in firsts:
        for rest, more in _split_factors(piece, dim + len(labels), segment[1:], names):
            yield rest, labels + more
