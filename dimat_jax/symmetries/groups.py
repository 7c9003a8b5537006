"""Permutation groups, and where they act on the variables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from dimat_jax.symmetries.reasons import Cause

GroupKey = tuple[str, ...]
"""The names of the groups that a tensor carries jointly, those that others vary along first."""


class Place(NamedTuple):
    """Where positions stand on an axis of a leaf.

    Attributes:
      axis: which axis of the leaf.
      segment: ``(start, length)`` on that axis.
      factor: ``(before, size, after)``: the segment, reshaped so, carries the positions in its
        middle axis.
    """

    axis: int
    segment: tuple[int, int]
    factor: tuple[int, int, int]

    def coordinates(self, shape: Sequence[int]) -> np.ndarray:
        """Which of the positions each index of a leaf's axis is at, −1 outside the segment.

        Args:
          shape: the leaf's shape.

        Returns:
          An integer array that broadcasts against the leaf: of size 1 on all other axes.
        """
        (start, length), (_, size, after) = self.segment, self.factor
        index = np.full(shape[self.axis], -1, np.int32)
        index[start : start + length] = np.arange(length) // after % size
        return index.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])


class Site(NamedTuple):
    """One place where a group's permutation acts on a leaf.

    Attributes:
      path: the leaf, as ``"params/Dense_0/kernel"``.
      axis: which axis of the leaf.
      segment: ``(start, length)``: the part of that axis, smaller than it where parts are
        concatenated.
      factor: ``(before, size, after)``: the segment, reshaped so, carries the group on its middle
        axis (heads × head size; flattened H × W × C).
      outer: for each of the group's `Group.outer`, where it stands on the same leaf.
      within: positions of other axes of the leaf to which this site is limited, as in a fused
        kernel of shape ``[inputs, 3, heads, size]``.
    """

    path: str
    axis: int
    segment: tuple[int, int]
    factor: tuple[int, int, int]
    outer: tuple[Place, ...] = ()
    within: tuple[Place, ...] = ()

    @property
    def place(self) -> Place:
        """The site without its leaf."""
        return Place(self.axis, self.segment, self.factor)


class Group(NamedTuple):
    """Hidden units that may be reordered together without changing what the model computes.

    Attributes:
      size: how many, at least 2.
      sites: everywhere that the permutation acts, in the order in which the model reads them.
      outer: along what the permutation varies: the name of another group (heads), or a name in
        `Symmetries.positions` (scanned layers). The permutation has shape ``[*outer sizes, size]``;
        index k under the permuted outer index h is ``given[p_outer[h], p[h, k]]``.
    """

    size: int
    sites: tuple[Site, ...]
    outer: tuple[str, ...] = ()


class Frozen(NamedTuple):
    """A part of a leaf that must stay as it is, and why."""

    path: str
    axis: int
    size: int
    cause: Cause

    @property
    def why(self) -> str:
        """The cause in words."""
        return str(self.cause)


@dataclass(frozen=True)
class Symmetries:
    """The permutation symmetries of a model.

    Attributes:
      groups: name → `Group`. A group is named after the leaf it begins at, in the order in which
        the model reads its leaves; where a leaf begins several, the axis follows in brackets.
      positions: name → size of the axes of fixed positions (scanned layers) along which groups
        vary.
      frozen: the parts of leaves that belong to no group, with the cause of each.
      notes: what made the groups smaller than they may truly be: primitives without a rule,
        captured constants, random bits. Empty for most models.
      shapes: path → shape of the leaves that carry groups; `permute` accepts no other ones.
    """

    groups: dict[str, Group]
    positions: dict[str, int] = field(default_factory=dict)
    frozen: tuple[Frozen, ...] = ()
    notes: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:  # the generated one fails on dicts; static arguments of jit need it
        return hash((tuple(self.groups.items()), tuple(self.positions.items())))

    def __str__(self) -> str:
        # A table of three columns, of which the last one is wrapped below itself.
        rows = [("group", "size", "leaves")]
        for name, group in self.groups.items():
            leaves = ", ".join(_show(site, self.shapes.get(site.path)) for site in group.sites)
            rows.append((name, " x ".join(map(str, shape_of(self, name))), leaves))
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        indent = " " * (first + second + 4)
        lines = [
            textwrap.fill(
                f"{a:<{first}}  {b:>{second}}  {c}",
                width=len(indent) + 100,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for a, b, c in rows
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _show(site: Site, shape: tuple[int, ...] | None) -> str:
    """A site as ``leaf[axis]``, with the part of the axis and the factor where it is not whole."""
    # "kernel[1:0+10:2x5x1]": on axis 1, from 0 on 10 long, the 5 of 2 × 5 × 1.
    (start, length), (before, size, after) = site.segment, site.factor
    part = "" if shape and length == shape[site.axis] else f":{start}+{length}"
    factor = "" if before == after == 1 else f":{before}x{size}x{after}"
    limits = "".join(f"|{p.axis}:{p.segment[0]}+{p.segment[1]}" for p in site.within)
    return f"{site.path}[{site.axis}{part}{factor}{limits}]"


def shape_of(symmetries: Symmetries, name: str) -> tuple[int, ...]:
    """The shape ``(*outer, size)`` of a group's permutation."""
    group = symmetries.groups[name]
    sizes = {**symmetries.positions, **{n: g.size for n, g in symmetries.groups.items()}}
    return (*(sizes[outer] for outer in group.outer), group.size)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's key path as ``"params/Dense_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
