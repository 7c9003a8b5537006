"""Slices with permutations of their own: the q, k and v of ``qkv[:, 0], qkv[:, 1], qkv[:, 2]``.

Where a tensor is sliced along one axis, each slice may permute its *other* axes in its own way. The
axis that is cut consists of *indices*: atoms, each of which tells the slice that lies there. An
atom on another axis stands for one permutation per slice. So the walk gives every slice copies of
the atoms on its other axes. Afterwards `settle` keeps the copies of an atom where each tensor that
carries the atom tells which slice it is in, and unifies them with the atom where one does not.
Unifying only ever makes the groups smaller, so it can come that late.

An example: a fused kernel ``qkv`` of shape [6, 3, 4] (inputs, which of the three, units), with the
axes d, i, u, and ``q, k, v = jnp.unstack(jnp.tensordot(x, qkv, 1), axis=1)``. The walk sees

    the product          [5, 3, 4]    t, i0 | i1 | i2, u      i was cut into three indices
    q                    [5, 4]       t, u0                   u0, u1, u2 are copies of u, and were
    k                    [5, 4]       t, u1                   unified with whatever q, k and v met
    v                    [5, 4]       t, u2

and u0 and u1 are one atom in the end, for ``q @ k.T`` unifies them. Every tensor that carries u
(``qkv`` and the product) carries i0 | i1 | i2 beside it: it tells which slice each element is in.
So the copies stay: `settle` returns {u: {i0: u0, i1: u0, i2: u2}}, and `blocks` of ``qkv`` are

    d, i0, u0 at 0:1 of axis 1,    d, i1, u0 at 1:2,    d, i2, u2 at 2:3.

With a bias [4] added to all three at once, or a sum over axis 1, some tensor would carry u and no
index: u0, u1 and u2 are unified with u, and the three are permuted alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dimat_jax.symmetries.axes import (
    Atom,
    Axes,
    Axis,
    Factor,
    Segment,
    Sum,
    atoms,
    resolve,
    segment_size,
    unify,
    unify_atoms,
)


class SlicedAxis(NamedTuple):
    """An axis of a sliced tensor, other than the one that is cut.

    Attributes:
      whole: the axis that is cut.
      kept: the part of it that the slice keeps.
      before: the other axis, on the tensor.
      after: that axis on the slice: a copy with atoms of its own.
    """

    whole: Axis
    kept: Axis
    before: Axis
    after: Axis


PerSlice = dict[Atom, dict[Atom, Atom]]
"""Atom → index → the atom that stands for its permutation in the slice there."""

Extent = tuple[int, int, int]
"""A block of a tensor lies at ``start, length`` of this axis: ``(axis, start, length)``."""


def copy_others(slices: list[SlicedAxis], whole: Axis, kept: Axis, others: Axes) -> Axes:
    """The other axes of a slice, with atoms of their own until `settle` decides.

    Args:
      slices: what `settle` has to decide; is added to.
      whole: the axis that is cut.
      kept: the part of it that the slice keeps.
      others: the other axes of the tensor.
    """
    # [5, i0 | i1 | i2, u] cut to i1: t, u gets the copies t', u'. Frozen atoms, as t is if it is an
    # input's, are not copied: they cannot be permuted in any way.
    copies = tuple(_copy(axis) for axis in others)
    for before, after in zip(others, copies, strict=True):
        if any(not atom.frozen for atom in atoms(before)):
            slices.append(SlicedAxis(whole, kept, before, after))
    return copies


def _copy(axis: Axis) -> Axis:
    """The same structure with new atoms for the free ones."""

    def copied(factor: Factor) -> Factor:
        if isinstance(factor, Sum):
            return Sum(_copy(factor.segments))
        free = isinstance(factor, Atom) and not factor.frozen and factor.size > 1
        return Atom(factor.size) if free else factor

    return tuple(tuple(copied(factor) for factor in segment) for segment in resolve(axis))


def settle(slices: Iterable[SlicedAxis], carried: Sequence[Axes]) -> PerSlice:
    """Unifies the copies that slices made of atoms, except where each slice may have its own.

    Unifying two atoms may refine others and tell more slices apart or less: it is repeated until
    nothing changes.

    Args:
      slices: the slices.
      carried: the axes of every tensor.
    """
    pending = list(slices)
    # Every round unifies or refines atoms, or ends.
    while pending := _aligned(pending):
        found, same = _found(pending)
        # First what the slices themselves say, then every tensor that carries such an atom.
        refused = {atom for atom, parts in found.items() if not _is_partition(atom, parts)}
        per_slice: PerSlice = {
            atom: {index: copy for _, kept, copy in parts for index in kept}
            for atom, parts in found.items()
            if atom not in refused
        }
        for axes in carried if per_slice else ():
            refused |= _undetermined(axes, per_slice)
        if not refused and not same:
            return per_slice
        for atom, copy in same:
            unify_atoms(atom, copy)
        for atom in refused:
            for _, _, copy in found[atom]:
                unify_atoms(atom, copy)
    return {}


def _aligned(slices: list[SlicedAxis]) -> list[SlicedAxis]:
    """Gives both axes of each slice the same structure; those with something left to decide.

    Where structures cannot be made the same, because factors do not nest, they are unified.
    """
    # If the copy of u was cut into u' | u" in some slice, then u is cut so, and in every slice. The
    # structure goes from one side to the other and back, by way of an axis of new atoms, so that
    # the two do not become one; refining one slice may refine another, until all stand still.
    shapes = None
    while shapes != (shapes := [(_structure(p.before), _structure(p.after)) for p in slices]):
        for part in slices:
            unify(_template(part.before), part.after)
            unify(_template(part.after), part.before)
    fitting = [part for part in slices if _structure(part.before) == _structure(part.after)]
    if len(fitting) == len(slices):
        return [part for part in slices if resolve(part.before) != resolve(part.after)]
    for part in slices:
        if part not in fitting:
            unify(part.before, part.after)
    return _aligned(fitting)


def _template(axis: Axis) -> Axis:
    """The axis's structure alone, with new atoms."""

    def copied(factor: Factor) -> Factor:
        if isinstance(factor, Sum):
            return Sum(_template(factor.segments))
        return Atom(factor.size)

    return tuple(tuple(copied(factor) for factor in segment) for segment in resolve(axis))


def _structure(axis: Axis) -> Any:
    return [
        [
            _structure(factor.segments) if isinstance(factor, Sum) else (type(factor), factor.size)
            for factor in segment
        ]
        for segment in resolve(axis)
    ]


Part = tuple[list[Atom], list[Atom], Atom]
"""All indices, the indices of the slice, and the copy of the atom there."""


def _found(slices: Iterable[SlicedAxis]) -> tuple[dict[Atom, list[Part]], list[tuple[Atom, Atom]]]:
    """The copies of each atom, and the copies that are the same: those of the same slice.

    Single positions are no units that a slice could permute: they are the same everywhere.
    """
    found: dict[Atom, list[Part]] = {}
    same: list[tuple[Atom, Atom]] = []
    for part in slices:
        whole, kept = _single_atoms(part.whole), _single_atoms(part.kept)
        for atom, copy in zip(atoms(part.before), atoms(part.after), strict=False):
            # Slicing twice at the same place gives the same slice.
            known = [other for _, indices, other in found.get(atom, ()) if indices == kept]
            if atom is copy or copy in known:
                continue
            if atom.size == 1 or known:
                same.append((known[0] if known else atom, copy))
            else:
                found.setdefault(atom, []).append((whole, kept, copy))
    return found, same


def _single_atoms(axis: Axis) -> list[Atom]:
    """The atoms of an axis whose segments are single atoms; else none."""
    axis = resolve(axis)
    found = [factor for segment in axis for factor in segment if isinstance(factor, Atom)]
    return found if all(len(segment) == 1 for segment in axis) and len(found) == len(axis) else []


def _is_partition(atom: Atom, parts: list[Part]) -> bool:
    """Whether the slices take one axis apart, and the copies are not all unified anyway."""
    whole = parts[0][0]
    # Slices 0:2 and 1:3 overlap: index 1 is in both, and the lengths differ. A slice that nobody
    # takes leaves an index without a copy. A mixed index does not tell one slice from another.
    indices = [index for _, kept, _ in parts for index in kept]
    return (
        not atom.frozen
        and all(other == whole for other, _, _ in parts)
        and len(set(whole)) == len(whole) == len(indices)
        and set(indices) == set(whole)
        and not any(index.mixed for index in whole)
        and len({copy for _, _, copy in parts}) > 1
    )


def _undetermined(axes: Axes, per_slice: PerSlice) -> set[Atom]:
    """The atoms on a tensor of which it does not tell the slice.

    It tells where every element has exactly one index beside the atom, as [d, i0, u] has; or where
    all indices stand beside it on one axis, as in [d, i0 | i1 | i2, u].
    """
    everywhere = [list(atoms(axis)) for axis in axes]
    if not any(atom in per_slice for found in everywhere for atom in found):
        return set()
    # One index beside an atom, on its own segment or where another axis is one segment: alone. All
    # indices of a cut axis: a family. An atom in a Sum (nested) would also have all that stands
    # beside the Sum, of which no account is kept here.
    refused = set()
    for i, axis in enumerate(axes):
        others = [atom for j, found in enumerate(everywhere) if j != i for atom in found]
        families = [set(_single_atoms(other)) for j, other in enumerate(axes) if j != i]
        for segment in resolve(axis):
            inside = [*others, *atoms((segment,))]
            for atom in atoms((segment,)):
                hits = [other for other in inside if other in per_slice.get(atom, ())]
                alone = len(hits) == 1 and hits[0] in _beside(axes, i, segment)
                family = bool(hits) and len(hits) == len(set(hits)) and set(hits) in families
                nested = atom not in segment
                if atom in per_slice and (nested or not (alone or family)):
                    refused.add(atom)
    return refused


def _beside(axes: Sequence[Axis], i: int, segment: Segment) -> list[Atom]:
    """The atoms that every element of a segment of axis i has beside it."""
    # Of an axis c | d, an element has either c or d beside it: neither for certain.
    segments = [resolve(axis) for j, axis in enumerate(axes) if j != i]
    certain = [axis[0] for axis in segments if len(axis) == 1]
    return [f for product in (*certain, segment) for f in product if isinstance(f, Atom)]


def blocks(axes: Axes, per_slice: PerSlice) -> list[tuple[Axes, tuple[Extent, ...]]]:
    """A tensor as blocks in which each atom stands for one permutation, with where they lie."""
    if not per_slice:
        return [(axes, ())]
    # Only axes with an index that matters here are taken apart; all others stay whole.
    on = {atom for axis in axes for atom in atoms(axis)}
    wanted = _indices_of(on, per_slice)
    taken_apart = [
        [(i, start, segment) for start, segment in _starts(axis)]
        for i, axis in enumerate(axes)
        if len(resolve(axis)) > 1 and wanted & set(_single_atoms(axis))
    ]
    found = []
    for choice in itertools.product(*taken_apart) if wanted else [()]:
        block = list(axes)
        for i, _, segment in choice:
            block[i] = (segment,)
        replaced = tuple(_replace(block, i, per_slice) for i in range(len(block)))
        where = tuple((i, start, segment_size(segment)) for i, start, segment in choice)
        found.append((replaced, where))
    return found


def _indices_of(on: set[Atom], per_slice: PerSlice) -> set[Atom]:
    """The indices of these atoms, and of the atoms that stand for them in their slices."""
    todo, seen = on & per_slice.keys(), set[Atom]()
    while todo:
        seen |= todo
        copies = {copy for atom in todo for copy in per_slice[atom].values()}
        todo = (copies & per_slice.keys()) - seen
    return {index for atom in seen for index in per_slice[atom]}


def _starts(axis: Axis) -> list[tuple[int, Segment]]:
    segments = resolve(axis)
    starts = itertools.accumulate(map(segment_size, segments), initial=0)
    return list(zip(starts, segments, strict=False))


def _replace(axes: Sequence[Axis], i: int, per_slice: PerSlice) -> Axis:
    """Axis i with the atoms of the slices that its elements lie in."""

    def replaced(factor: Factor, beside: list[Atom]) -> Factor:
        # A slice of a slice: the copy may have copies of its own.
        while isinstance(factor, Atom) and factor in per_slice:
            copies = per_slice[factor]
            factor = next(copies[index] for index in beside if index in copies)
        return factor

    return tuple(
        tuple(replaced(factor, _beside(axes, i, segment)) for factor in segment)
        for segment in resolve(axes[i])
    )
