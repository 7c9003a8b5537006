"""Which tensors of a function are read sites of which groups."""

from __future__ import annotations

import enum
from typing import NamedTuple

from dimat_jax.symmetries.analysis import Analysis
from dimat_jax.symmetries.axes import Atom, atoms
from dimat_jax.symmetries.discovery import group_names, position_names
from dimat_jax.symmetries.groups import Symmetries
from dimat_jax.symmetries.rules import Kind
from dimat_jax.symmetries.slices import PerSlice
from dimat_jax.symmetries.walk import Read


class Rank(enum.IntEnum):
    """How good a read site is for a group, the best first: a group is read at its best ones."""

    CONTRACTED = 0
    """The tensor depends on the inputs, and the group is summed over in a product."""
    REDUCED = 1
    """It depends on the inputs, and the group is summed or maximised over."""
    VARIABLE = 2
    """It does not depend on the inputs, and the group is summed over in a product."""
    CARRIED = 3
    """It depends on the inputs, and is read for another axis."""
    NOT_READ = 4


class ReadSite(NamedTuple):
    """A tensor to tap, the names of its atoms, and the groups that it is read for.

    `names` are those of groups, `positions` those of the fixed positions along which groups vary.
    """

    read: Read
    names: dict[Atom, str]
    positions: dict[Atom, str]
    wanted: set[str]


def choose_sites(symmetries: Symmetries, analysis: Analysis) -> list[ReadSite]:
    """The read sites in network order: for each group those of the best rank that it has."""
    names = {a: name for a, name in group_names(analysis).items() if name in symmetries.groups}
    positions = position_names(analysis)
    # A tensor that several equations read is one candidate per rank (`id`: tensors compare by
    # identity). The first equation that reads it is where it is tapped.
    best: dict[str, Rank] = {}
    candidates: dict[tuple[int, Rank], tuple[Read, set[str]]] = {}
    for read in analysis.record.reads:
        carried, mixed = _carried_and_mixed(read, names, analysis.per_slice)
        ranked = (_rank_mixed(read), mixed), (_rank_carried(read), carried - mixed)
        for rank, found in ranked:
            for name in found:
                best[name] = Rank(min(rank, best.get(name, rank)))
            _, wanted = candidates.setdefault((id(read.tensor), rank), (read, set()))
            wanted |= found
    chosen = [
        ReadSite(read, names, positions, {name for name in wanted if best[name] == rank})
        for (_, rank), (read, wanted) in candidates.items()
        if rank < Rank.NOT_READ
    ]
    return [site for site in chosen if site.wanted]


def _carried_and_mixed(
    read: Read, names: dict[Atom, str], per_slice: PerSlice
) -> tuple[set[str], set[str]]:
    """The groups that the tensor carries, and those whose positions are mixed.

    None if it carries one of them twice, or if it is the whole of something whose slices are
    permuted in different ways.
    """
    if any(atom in per_slice for axis in read.tensor.axes for atom in atoms(axis)):
        return set(), set()
    # A group on two axes, as in a Gram matrix, counts twice here and once in the union.
    per_axis = [{names[a] for a in atoms(axis) if a in names} for axis in read.tensor.axes]
    carried = set().union(*per_axis)
    if sum(map(len, per_axis)) > len(carried):
        return set(), set()
    return carried, set().union(*(per_axis[dim] for dim in read.contraction.dims))


def _rank_mixed(read: Read) -> Rank:
    """For groups whose positions are mixed."""
    kind = read.contraction.kind
    if not read.tensor.varies:
        return Rank.VARIABLE if kind is Kind.PRODUCT else Rank.NOT_READ
    ranks = {Kind.PRODUCT: Rank.CONTRACTED, Kind.REDUCTION: Rank.REDUCED}
    return ranks.get(kind, Rank.NOT_READ)


def _rank_carried(read: Read) -> Rank:
    """For groups that the tensor carries besides."""
    return Rank.CARRIED if read.tensor.varies else Rank.NOT_READ
