"""Leaves taken apart so that every group on them has an axis of its own.

Positions of an axis on which the same groups stand belong together: concatenated channels [c | d]
have two such parts, c's and d's, and heads that hold a rotary and a free part, h·(r | f), have the
parts h·r and h·f. A block of a leaf is one part of each of its axes, with an axis for each group on
the part and one for what repeats these (height x width of h·w·c, both halves of c | c).
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from dimat_jax.symmetries import Place, Site, Symmetries


class Occurrence(NamedTuple):
    """A group on an axis of a block, and the axes along which its permutation varies."""

    group: str
    axis: int
    outer: tuple[int, ...]


class Layout(NamedTuple):
    """How to cut a block from a leaf.

    Attributes:
      path: Of the leaf.
      indices: For each of its axes the positions that belong to the block.
      shape: Of the block: for each of the leaf's axes one a group on it, and one for what repeats.
      occurrences: The groups on it.
    """

    path: str
    indices: tuple[Int[np.ndarray, " positions"], ...]
    shape: tuple[int, ...]
    occurrences: tuple[Occurrence, ...]

    def cut(self, leaf: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The block of a leaf."""
        for axis, index in enumerate(self.indices):
            start, stop = index[0], index[0] + len(index)
            if np.array_equal(index, np.arange(start, stop)):  # most are: no copy
                leaf = leaf[(slice(None),) * axis + (slice(start, stop),)]
            else:
                leaf = leaf.take(index, axis)
        return leaf.reshape(self.shape)


class Column(NamedTuple):
    """What stands on an axis: positions of a group, or fixed ones along which groups vary.

    Attributes:
      name: Of the group, or of the positions.
      size: How many positions it has.
      places: Where; they do not overlap.
      index: For each position of the axis, which of the group's positions is there; −1 for none.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    index: Int[np.ndarray, " positions"]


class Part(NamedTuple):
    """Positions of an axis on which the same columns stand, as a product of these.

    Attributes:
      index: The positions, the first column's varying slowest, then what repeats them all.
      columns: What stands on them.
      shape: How many positions each column has, and how often they are repeated, if they are.
      failed: The names of columns that it is no product of.
    """

    index: Int[np.ndarray, " positions"]
    columns: tuple[Column, ...]
    shape: tuple[int, ...]
    failed: tuple[str, ...] = ()


def layouts(
    symmetries: Symmetries, path: str, shape: tuple[int, ...]
) -> tuple[list[Layout], set[str]]:
    """The blocks of a leaf that carry a group.

    Returns:
      The blocks, and the names of groups, or positions, that part of an axis is no product of: of
      these there are none.
    """
    # A kernel [c | d, h·u] of [16 + 32, 2·5] has two blocks, of rows 0:16 and 16:48, each with the
    # shape [rows, 2, 5], and on them the groups c (or d) on axis 0, h on 1 and u on 2.
    here = [(n, s) for n, g in symmetries.groups.items() for s in g.sites if s.path == path]
    # What is limited to slices of other axes is looked at slice by slice.
    limits = [place for _, site in here for place in site.within]
    slices = [_segments(axis, size, limits) for axis, size in enumerate(shape)]
    found: list[Layout] = []
    failed: set[str] = set()
    for region in itertools.product(*slices):
        inside = [
            _named(symmetries, name, site)
            for name, site in here
            if all(_contains(place.segment, region[place.axis]) for place in site.within)
        ]
        parts = [
            _parts(_columns(axis, shape, itertools.chain(*inside)), segment)
            for axis, segment in enumerate(region)
        ]
        failed |= {name for of_axis in parts for part in of_axis for name in part.failed}
        blocks = [_layout(path, block, inside) for block in itertools.product(*parts)]
        found += [block for block in blocks if block.occurrences]
    return found, failed


def _named(symmetries: Symmetries, group: str, site: Site) -> list[tuple[str, Place]]:
    """A site's places: its own, and those of what it varies along, each with a name."""
    outer = zip(symmetries.groups[group].outer, site.outer, strict=True)
    return [(group, site.place), *outer]


def _contains(whole: tuple[int, int], part: tuple[int, int]) -> bool:
    return whole[0] <= part[0] and sum(part) <= sum(whole)


def _segments(axis: int, size: int, places: Sequence[Place]) -> list[tuple[int, int]]:
    """The parts into which the places cut an axis, as (start, length)."""
    ends = {sum(p.segment) for p in places if p.axis == axis}
    starts = {p.segment[0] for p in places if p.axis == axis}
    cuts = sorted({0, size} | starts | ends)
    return [(a, b - a) for a, b in itertools.pairwise(cuts)]


def _columns(axis: int, shape: Sequence[int], named: Iterable[tuple[str, Place]]) -> list[Column]:
    """What stands on an axis; a group that is twice at the same positions has two columns."""
    columns: list[Column] = []
    for name, place in dict.fromkeys(pair for pair in named if pair[1].axis == axis):
        index = place.coordinates(shape).ravel()
        # c | c: one column. a·a, of the outer product of a with itself: two.
        for i, known in enumerate(columns):
            if known.name == name and not ((known.index >= 0) & (index >= 0)).any():
                both = np.maximum(known.index, index)
                columns[i] = known._replace(places=(*known.places, place), index=both)
                break
        else:
            columns.append(Column(name, place.factor[1], (place,), index))
    # In the order in which they vary, the slowest first, so that most leaves stay as they lie.
    return sorted(columns, key=lambda column: -column.places[0].factor[2])


def _parts(columns: Sequence[Column], segment: tuple[int, int]) -> list[Part]:
    """The parts of an axis, or of a segment of it."""
    positions = np.arange(segment[0], sum(segment))
    if not columns:
        return [Part(positions, (), (len(positions),))]
    standing = np.array([column.index[positions] >= 0 for column in columns]).T
    return [
        _part(
            positions[(standing == pattern).all(1)],
            [column for column, stands in zip(columns, pattern, strict=True) if stands],
        )
        for pattern in dict.fromkeys(map(tuple, standing))
    ]


def _part(positions: Int[np.ndarray, " n"], columns: Sequence[Column]) -> Part:
    sizes = tuple(column.size for column in columns)
    # Which position of the product each one is at: every one must be there as often as any other.
    at = np.zeros(len(positions), np.int64)
    for column, size in zip(columns, sizes, strict=True):
        at = at * size + column.index[positions]
    repeats, left = divmod(len(positions), math.prod(sizes))
    if left or not repeats or (np.bincount(at, minlength=math.prod(sizes)) != repeats).any():
        return Part(positions, (), (len(positions),), tuple(column.name for column in columns))
    shape = (*sizes, repeats) if repeats > 1 or not sizes else sizes
    return Part(positions[np.argsort(at, kind="stable")], tuple(columns), shape)


def _layout(
    path: str, block: Sequence[Part], inside: Sequence[Sequence[tuple[str, Place]]]
) -> Layout:
    first = np.cumsum([0] + [len(part.shape) for part in block])

    def axis_of(name: str, place: Place) -> int | None:
        """The block's axis on which a place stands, if it does."""
        for i, column in enumerate(block[place.axis].columns):
            if column.name == name and place in column.places:
                return int(first[place.axis]) + i
        return None

    occurrences: dict[Occurrence, None] = {}
    for named in inside:
        axes = [axis for name, place in named if (axis := axis_of(name, place)) is not None]
        # Where the site does not stand, or what it varies along does not, it moves nothing.
        if len(axes) == len(named):
            occurrences[Occurrence(named[0][0], axes[0], tuple(axes[1:]))] = None
    return Layout(
        path,
        tuple(part.index for part in block),
        tuple(size for part in block for size in part.shape),
        tuple(occurrences),
    )
