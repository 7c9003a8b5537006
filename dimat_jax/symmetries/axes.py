"""Axes of tensors as sequences of segments, each an ordered product of factors.

A factor is an `Atom` (positions that a permutation may reorder), a `Wild` (positions along which
the tensor is constant, so that every permutation leaves it as it is) or a `Sum` (an axis of several
segments that stands inside a product, as concatenated channels in a flattened feature map).

Atoms are the nodes of a union-find structure: an atom that was tied to another one, cut into
segments or divided into factors *links* to the axis it stands for. Axes refer to atoms lazily, so
that whatever is learnt of an atom later reaches every axis that it stands on. Every operation only
ever ties, refines or freezes; where two structures do not nest, it freezes what they consist of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dimat_jax.symmetries.reasons import Cause, Reason


@dataclass(eq=False, slots=True)
class Atom:
    """Positions that one permutation reorders, wherever the atom stands.

    Attributes:
      size: how many positions.
      frozen: why only the identity is allowed, or None. Asked of roots (atoms without a link) only.
      mixed: whether index i here need not be index i elsewhere, because something that is no
        permutation (a reversal, a sort) came between. Such an atom is frozen, and nothing may vary
        along it. Asked of roots only.
      link: the axis that the atom turned out to be, or None for a root.
    """

    size: int
    frozen: Cause | None = None
    mixed: bool = False
    link: Axis | None = None


class Wild(NamedTuple):
    """Positions along which a tensor is constant: they tie nothing."""

    size: int


class Sum(NamedTuple):
    """Several segments that stand as one factor of a product."""

    segments: Axis

    @property
    def size(self) -> int:
        """The number of positions."""
        return axis_size(self.segments)


Factor = Atom | Wild | Sum
Segment = tuple[Factor, ...]
"""An ordered product, the outermost factor first. The empty product is a single position."""
Axis = tuple[Segment, ...]
Axes = tuple[Axis, ...]


def free_axis(size: int) -> Axis:
    """An axis of its own atom; one of a single position needs none."""
    return ((Atom(size),),) if size > 1 else ((),) * size


def frozen_axis(size: int, why: Cause) -> Axis:
    """An axis of fixed positions, as those of an input are."""
    return ((Atom(size, frozen=why),),) if size > 1 else ((),) * size


def mixed_axis(size: int, why: Cause) -> Axis:
    """An axis of new positions, made of others by something that is no permutation of them."""
    return ((Atom(size, why, mixed=True),),) if size > 1 else ((),) * size


def _part_of(atom: Atom, size: int) -> Atom:
    return Atom(size, atom.frozen, atom.mixed)


def wild_axis(size: int) -> Axis:
    """An axis along which the tensor is constant."""
    return ((Wild(size),),) if size > 1 else ((),) * size


def segment_size(segment: Iterable[Factor]) -> int:
    """The number of positions of a product of factors."""
    return math.prod(factor.size for factor in segment)


def axis_size(axis: Axis) -> int:
    """The number of positions of an axis."""
    return sum(segment_size(segment) for segment in axis)


def resolve(axis: Axis) -> Axis:
    """The axis in terms of roots, every leading sum spread out into segments."""
    if all(type(f) is Wild or getattr(f, "link", f) is None for part in axis for f in part):
        return axis  # the common case
    return tuple(part for segment in axis for part in _spread(_factors(segment)))


def _factors(segment: Iterable[Factor]) -> Segment:
    """The product in terms of roots, nested products flattened."""
    out: list[Factor] = []
    for factor in segment:
        inner = factor.segments if isinstance(factor, Sum) else None
        if isinstance(factor, Atom):
            inner = factor.link
        if inner is None:
            out.append(factor)
            continue
        inner = resolve(inner)
        if isinstance(factor, Atom):
            factor.link = inner  # path compression
        out.extend(inner[0] if len(inner) == 1 else [Sum(inner)])
    return tuple(out)


def _spread(segment: Segment) -> Iterator[Segment]:
    """[a | b] × c = [a × c | b × c]; a sum that is not outermost stays."""
    i = next((i for i, factor in enumerate(segment) if factor.size > 1), 0)
    leading = segment[i] if segment else None
    if not isinstance(leading, Sum):
        yield segment
        return
    for part in leading.segments:
        yield from _spread((*segment[:i], *part, *segment[i + 1 :]))


def atoms(axis: Axis) -> Iterator[Atom]:
    """The root atoms that stand on the axis, in order, one as often as it stands there."""
    for segment in resolve(axis):
        for factor in segment:
            if isinstance(factor, Atom):
                yield factor
            elif isinstance(factor, Sum):
                yield from atoms(factor.segments)


def freeze(axis: Axis, why: Cause) -> None:
    """Allows nothing but the identity on the axis. Positions that are equal anyway stay wild."""
    for atom in atoms(axis):
        atom.frozen = atom.frozen or why


def join(x: Axis, y: Axis) -> Axis:
    """Ties two axes of equal size position by position and returns what they have become.

    Where one is wild, the other one's structure stands in the result, and nothing is tied.
    """
    x, y = resolve(x), resolve(y)
    if x == y or axis_size(x) == 1:
        return x
    out: list[Segment] = []
    while x and y:
        size = min(segment_size(x[0]), segment_size(y[0]))
        (first, x), (second, y) = _first(x, size), _first(y, size)
        out.append(_join_products(first, second))
        x, y = resolve(x), resolve(y)
    return tuple(out)


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cuts the axis into consecutive pieces of these sizes, refining the atoms it cuts."""
    pieces = []
    for size in sizes:
        piece: list[Segment] = []
        while size:
            axis = resolve(axis)
            segment, axis = _first(axis, min(size, segment_size(axis[0])))
            piece.append(segment)
            size -= segment_size(segment)
        pieces.append(tuple(piece))
    return pieces


def reshape(axes: Axes, sizes: Sequence[int]) -> Axes:
    """Row-major reshape of a tensor with these axes. Blocks whose factors do not nest freeze."""
    before, after = [axis_size(axis) for axis in axes], list(sizes)
    if 0 in before:
        return tuple(wild_axis(size) for size in sizes)
    out: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        block, new = axes[i : i + 1], after[j : j + 1]
        i, j = i + 1, j + 1
        while (old_size := math.prod(map(axis_size, block))) != (new_size := math.prod(new)):
            if old_size < new_size:
                block, i = block + (axes[i],), i + 1
            else:
                new, j = new + [after[j]], j + 1
        out.extend(block if len(block) == len(new) == 1 else _reshape_block(block, new))
    return tuple(out)


def _reshape_block(axes: Axes, sizes: Sequence[int]) -> list[Axis]:
    factors: Segment = tuple(Sum(axis) for axis in axes)
    out: list[Axis] = []
    for size in sizes:
        taken = _take(factors, size)
        if taken is None:
            why = Cause(Reason.RESHAPE)
            for axis in axes:
                freeze(axis, why)
            return [mixed_axis(size, why) for size in sizes]
        head, factors = taken
        out.append((head,))
    return out


def _first(axis: Axis, size: int) -> tuple[Segment, Axis]:
    """The first `size` positions, at most a segment, and the others."""
    head, rest = axis[0], axis[1:]
    if segment_size(head) == size:
        return head, rest
    left, right = _cut_segment(head, size)
    return left, (right, *rest)


def _cut_segment(segment: Segment, position: int) -> tuple[Segment, Segment]:
    """Cuts a product in two: at its outermost factor, or else everything in it freezes."""
    size, head, rest = segment_size(segment), segment[0], segment[1:]
    inner = segment_size(rest)
    if head.size == 1:
        left, right = _cut_segment(rest, position)
        return (head, *left), (head, *right)
    if all(isinstance(factor, Wild) for factor in segment):
        return (Wild(position),), (Wild(size - position),)
    if position % inner == 0:
        outer = position // inner
        if isinstance(head, Wild):
            return (Wild(outer), *rest), (Wild(head.size - outer), *rest)
        assert isinstance(head, Atom)
        left, right = _part_of(head, outer), _part_of(head, head.size - outer)
        head.link = ((left,), (right,))
        return (left, *rest), (right, *rest)
    why = Cause(Reason.BOUNDARY)
    freeze((segment,), why)
    return mixed_axis(position, why)[0], mixed_axis(size - position, why)[0]


def _take(factors: Segment, size: int) -> tuple[Segment, Segment] | None:
    """The outermost factors with product `size`, and the others; None if they do not nest."""
    head: list[Factor] = []
    factors = _factors(factors)
    while factors and size > 1:
        first, rest = factors[0], factors[1:]
        if size % first.size == 0:
            head.append(first)
            size, factors = size // first.size, rest
        elif first.size % size == 0 and (parts := _divide(first, size)):
            head.append(parts[0])
            size, factors = 1, (parts[1], *rest)
        else:
            return None
    return tuple(head), factors


def _divide(factor: Factor, outer: int) -> tuple[Factor, Factor] | None:
    """Divides a factor into an outer one of this size and an inner one."""
    inner = factor.size // outer
    if isinstance(factor, Wild):
        return Wild(outer), Wild(inner)
    if isinstance(factor, Atom):
        parts = _part_of(factor, outer), _part_of(factor, inner)
        factor.link = (parts,)
        return parts
    heads: list[Segment] = []
    shared: Axis = wild_axis(inner)
    for segment in factor.segments:
        if segment_size(segment) % inner:
            return None
        taken = _take(segment, segment_size(segment) // inner)
        if taken is None:
            return None
        heads.append(taken[0])
        shared = join(shared, (taken[1],))
    return Sum(tuple(heads)), Sum(shared)


def _join_products(x: Segment, y: Segment) -> Segment:
    """Ties products of equal size: refined where their cumulative products nest, else frozen."""
    x, y = _factors(x), _factors(y)
    if segment_size(x) == 1:
        for one, other in zip(x, y, strict=False):
            _join_heads((one,), (other,))
        return x if any(isinstance(f, Atom) for f in x) else y
    out: list[Factor] = [factor for factor in x if factor.size == 1 and factor in y]
    while True:
        x, y = _without_ones(_factors(x)), _without_ones(_factors(y))
        if not x:
            return tuple(out)
        size = min(x[0].size, y[0].size)
        if isinstance(x[0], Sum) or isinstance(y[0], Sum):
            size = max(f.size for f in (x[0], y[0]) if isinstance(f, Sum))
        taken_x, taken_y = _take(x, size), _take(y, size)
        if taken_x is None or taken_y is None:
            why = Cause(Reason.PRODUCTS)
            freeze((x,), why)
            freeze((y,), why)
            return (*out, *mixed_axis(segment_size(x), why)[0])
        (head_x, x), (head_y, y) = taken_x, taken_y
        out.append(_join_heads(head_x, head_y))


def _without_ones(segment: Segment) -> Segment:
    """The product without factors of a single position."""
    return tuple(factor for factor in segment if factor.size > 1)


def _join_heads(x: Segment, y: Segment) -> Factor:
    x, y = _factors(x), _factors(y)  # taking one head may have divided the other
    if len(x) == len(y) == 1:
        first, second = x[0], y[0]
        if isinstance(first, Wild):
            return second
        if isinstance(second, Wild):
            return first
        if isinstance(first, Atom) and isinstance(second, Atom):
            return _tie_roots(first, second)
    return Sum(join((x,), (y,)))


def tie(x: Atom, y: Atom) -> None:
    """Ties two atoms of equal size, whatever they have become; single positions as well."""
    _join_heads((x,), (y,))


def _tie_roots(x: Atom, y: Atom) -> Atom:
    if x is not y:
        x.frozen, x.mixed = x.frozen or y.frozen, x.mixed or y.mixed
        y.link = ((x,),)
    return x
