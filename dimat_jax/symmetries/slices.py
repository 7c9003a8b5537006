"""Slices with permutations of their own: the q, k and v of ``qkv[:, 0], qkv[:, 1], qkv[:, 2]``.

Where a tensor is sliced along one axis, each slice may permute its *other* axes in its own way: the
axis that is sliced consists of *cells*, and an atom beside it stands for one permutation a cell. So
the walk gives every slice copies of the atoms on its other axes. Afterwards `settle` keeps the
copies of an atom where each tensor that carries the atom tells its cell, and ties them to the atom
where one does not. Ties only ever make the groups smaller, so they can come that late.
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
    join,
    resolve,
    segment_size,
    tie,
)


class Slice(NamedTuple):
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


Cells = dict[Atom, dict[Atom, Atom]]
"""Atom → cell → the atom that stands for its permutation in that cell."""

Cell = tuple[int, int, int]
"""A block of a tensor lies at ``start, length`` of this axis: ``(axis, start, length)``."""


def copy_others(slices: list[Slice], whole: Axis, kept: Axis, others: Axes) -> Axes:
    """The other axes of a slice, with atoms of their own until `settle` decides.

    Args:
      slices: what `settle` has to decide; is added to.
      whole: the axis that is cut.
      kept: the part of it that the slice keeps.
      others: the other axes of the tensor.
    """
    copies = tuple(_copy(axis) for axis in others)
    for before, after in zip(others, copies, strict=True):
        if any(not atom.frozen for atom in atoms(before)):
            slices.append(Slice(whole, kept, before, after))
    return copies


def _copy(axis: Axis) -> Axis:
    """The same structure with new atoms for the free ones."""

    def copied(factor: Factor) -> Factor:
        if isinstance(factor, Sum):
            return Sum(_copy(factor.segments))
        free = isinstance(factor, Atom) and not factor.frozen and factor.size > 1
        return Atom(factor.size) if free else factor

    return tuple(tuple(copied(factor) for factor in segment) for segment in resolve(axis))


def settle(slices: Iterable[Slice], carried: Sequence[Axes]) -> Cells:
    """Ties the copies that slices made of atoms, except where each cell may have its own.

    Args:
      slices: the slices.
      carried: the axes of every tensor.
    """
    pending = list(slices)
    while pending := _aligned(pending):
        found, same = _found(pending)
        refused = {atom for atom, parts in found.items() if not _is_partition(atom, parts)}
        cells: Cells = {
            atom: {cell: copy for _, kept, copy in parts for cell in kept}
            for atom, parts in found.items()
            if atom not in refused
        }
        for axes in carried if cells else ():
            refused |= _undetermined(axes, cells)
        if not refused and not same:
            return cells
        for atom, copy in same:
            tie(atom, copy)
        for atom in refused:
            for _, _, copy in found[atom]:
                tie(atom, copy)
    return {}


def _aligned(slices: list[Slice]) -> list[Slice]:
    """Gives both axes of each slice the same structure; those with something left to decide.

    Where structures cannot be made the same, because factors do not nest, the slice is tied.
    """
    shapes = None
    while shapes != (shapes := [(_structure(p.before), _structure(p.after)) for p in slices]):
        for part in slices:
            join(_template(part.before), part.after)
            join(_template(part.after), part.before)
    fitting = [part for part in slices if _structure(part.before) == _structure(part.after)]
    if len(fitting) == len(slices):
        return [part for part in slices if resolve(part.before) != resolve(part.after)]
    for part in slices:
        if part not in fitting:
            join(part.before, part.after)
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
"""All cells, the cells of the slice, and the copy of the atom there."""


def _found(slices: Iterable[Slice]) -> tuple[dict[Atom, list[Part]], list[tuple[Atom, Atom]]]:
    """The copies of each atom, and the copies that are the same: those of the same cells.

    Single positions are no units that a slice could permute: they are the same everywhere.
    """
    found: dict[Atom, list[Part]] = {}
    same: list[tuple[Atom, Atom]] = []
    for part in slices:
        whole, kept = _single_atoms(part.whole), _single_atoms(part.kept)
        for atom, copy in zip(atoms(part.before), atoms(part.after), strict=False):
            known = [other for _, cells, other in found.get(atom, ()) if cells == kept]
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
    cells = [factor for segment in axis for factor in segment if isinstance(factor, Atom)]
    return cells if all(len(segment) == 1 for segment in axis) and len(cells) == len(axis) else []


def _is_partition(atom: Atom, parts: list[Part]) -> bool:
    """Whether the slices take the same axis apart, and are not all tied to each other anyway."""
    whole = parts[0][0]
    cells = [cell for _, kept, _ in parts for cell in kept]
    return (
        not atom.frozen
        and all(other == whole for other, _, _ in parts)
        and len(set(whole)) == len(whole) == len(cells)
        and set(cells) == set(whole)
        and not any(cell.mixed for cell in whole)
        and len({copy for _, _, copy in parts}) > 1
    )


def _undetermined(axes: Axes, cells: Cells) -> set[Atom]:
    """The atoms on a tensor whose cell it does not tell."""
    everywhere = [list(atoms(axis)) for axis in axes]
    if not any(atom in cells for found in everywhere for atom in found):
        return set()
    refused = set()
    for i, axis in enumerate(axes):
        others = [atom for j, found in enumerate(everywhere) if j != i for atom in found]
        families = [set(_single_atoms(other)) for j, other in enumerate(axes) if j != i]
        for segment in resolve(axis):
            inside = [*others, *atoms((segment,))]
            for atom in atoms((segment,)):
                hits = [other for other in inside if other in cells.get(atom, ())]
                alone = len(hits) == 1 and hits[0] in _beside(axes, i, segment)
                family = bool(hits) and len(hits) == len(set(hits)) and set(hits) in families
                nested = atom not in segment
                if atom in cells and (nested or not (alone or family)):
                    refused.add(atom)
    return refused


def _beside(axes: Sequence[Axis], i: int, segment: Segment) -> list[Atom]:
    """The atoms that every element of a segment of axis i has beside it."""
    segments = [resolve(axis) for j, axis in enumerate(axes) if j != i]
    certain = [axis[0] for axis in segments if len(axis) == 1]
    return [f for product in (*certain, segment) for f in product if isinstance(f, Atom)]


def blocks(axes: Axes, cells: Cells) -> list[tuple[Axes, tuple[Cell, ...]]]:
    """A tensor as blocks in which each atom stands for one permutation, with where they lie."""
    if not cells:
        return [(axes, ())]
    on = {atom for axis in axes for atom in atoms(axis)}
    wanted = _cells_of(on, cells)
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
        replaced = tuple(_replace(block, i, cells) for i in range(len(block)))
        where = tuple((i, start, segment_size(segment)) for i, start, segment in choice)
        found.append((replaced, where))
    return found


def _cells_of(on: set[Atom], cells: Cells) -> set[Atom]:
    """The cells of these atoms, and of the atoms that stand for them in their cells."""
    todo, seen = on & cells.keys(), set[Atom]()
    while todo:
        seen |= todo
        todo = ({copy for atom in todo for copy in cells[atom].values()} & cells.keys()) - seen
    return {cell for atom in seen for cell in cells[atom]}


def _starts(axis: Axis) -> list[tuple[int, Segment]]:
    segments = resolve(axis)
    starts = itertools.accumulate(map(segment_size, segments), initial=0)
    return list(zip(starts, segments, strict=False))


def _replace(axes: Sequence[Axis], i: int, cells: Cells) -> Axis:
    """Axis i with the atoms of the cells that its elements lie in."""

    def replaced(factor: Factor, beside: list[Atom]) -> Factor:
        while isinstance(factor, Atom) and factor in cells:
            factor = next(cells[factor][cell] for cell in beside if cell in cells[factor])
        return factor

    return tuple(
        tuple(replaced(factor, _beside(axes, i, segment)) for factor in segment)
        for segment in resolve(axes[i])
    )
