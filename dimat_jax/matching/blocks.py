"""Leaves taken apart so that every group on them has an axis of its own.

A leaf is cut into blocks where groups stand on segments of an axis (concatenated channels), and the
axes of a block are reshaped to their factors (heads x head size, height x width x channels).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from dimat_jax.symmetries import Place, Site, Symmetries


class Occurrence(NamedTuple):
    """A group on an axis of a block, and the axes along which its permutation varies."""

    group: str
    axis: int
    outer: tuple[int, ...]


class Layout(NamedTuple):
    """How to cut a block from a leaf: its slices, its factored shape, and the groups on it."""

    path: str
    slices: tuple[slice, ...]
    shape: tuple[int, ...]
    occurrences: tuple[Occurrence, ...]

    def cut(self, leaf: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The block of a leaf."""
        return leaf[self.slices].reshape(self.shape)


def layouts(symmetries: Symmetries, path: str, shape: tuple[int, ...]) -> Iterator[Layout]:
    """The blocks of a leaf that carry a group.

    Raises:
      ValueError: If parts are concatenated inside a product with another group, of which no block
        can be made.
    """
    # A kernel [c | d, h·u] of [16 + 32, 2·5] has two blocks, of rows 0:16 and 16:48, each with the
    # shape [rows, 2, 5], and on them the groups c (or d) on axis 0, h on 1 and u on 2.
    here = [(n, s) for n, g in symmetries.groups.items() for s in g.sites if s.path == path]
    everything = [place for _, site in here for place in _places(site)]
    segments = [_segments(axis, size, everything) for axis, size in enumerate(shape)]
    for _, site in here:
        if site.segment not in segments[site.axis]:
            raise ValueError(
                f"Weight matching cannot take {path!r} apart: parts are concatenated inside a "
                f"product of groups on axis {site.axis}, at {site.segment}."
            )
    for block in itertools.product(*segments):
        inside = [(name, site) for name, site in here if _inside(site, block)]
        if inside:
            yield _layout(path, block, inside)


def _segments(axis: int, size: int, places: Sequence[Place]) -> list[tuple[int, int]]:
    """The parts into which the places cut an axis, as (start, length)."""
    ends = {sum(p.segment) for p in places if p.axis == axis}
    starts = {p.segment[0] for p in places if p.axis == axis}
    cuts = sorted({0, size} | starts | ends)
    return [(a, b - a) for a, b in itertools.pairwise(cuts)]


def _inside(site: Site, block: Sequence[tuple[int, int]]) -> bool:
    return all(place.segment == block[place.axis] for place in _places(site))


def _places(site: Site) -> tuple[Place, ...]:
    return (site.place, *site.outer, *site.within)


def _layout(
    path: str, block: Sequence[tuple[int, int]], inside: Sequence[tuple[str, Site]]
) -> Layout:
    places = [place for _, site in inside for place in _places(site)]
    strides = [_strides(axis, length, places) for axis, (_, length) in enumerate(block)]
    first = np.cumsum([0] + [len(axis_strides) - 1 for axis_strides in strides])

    def position(place: Place) -> int:
        """The factored axis on which a place stands: outermost factors have the largest stride."""
        return int(first[place.axis]) + strides[place.axis].index(place.factor[2]) - 1

    return Layout(
        path,
        tuple(slice(start, start + length) for start, length in block),
        tuple(a // b for axis_strides in strides for a, b in itertools.pairwise(axis_strides)),
        tuple(
            Occurrence(name, position(site.place), tuple(position(place) for place in site.outer))
            for name, site in inside
        ),
    )


def _strides(axis: int, length: int, places: Sequence[Place]) -> list[int]:
    """Where the factors of a segment begin and end, as strides from the largest; at least one."""
    # h·u of 2·5 has strides 10, 5, 1: h lies between 10 and 5, u between 5 and 1.
    inner = {p.factor[2] for p in places if p.axis == axis}
    outer = {p.factor[1] * p.factor[2] for p in places if p.axis == axis}
    return sorted({1, length} | inner | outer, reverse=True) if length > 1 else [1, 1]
