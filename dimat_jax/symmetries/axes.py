"""Axes of tensors as sequences of segments, each an ordered product of factors.

A factor is an `Atom` (positions that a permutation may reorder), a `Wild` (positions along which
the tensor is constant, so that every permutation leaves it as it is) or a `Sum` (an axis of several
segments that stands inside a product, as concatenated channels in a flattened feature map).

Atoms are the nodes of a union-find structure: an atom that was unified with another one, cut into
segments or divided into factors *links* to the axis it stands for. Axes refer to atoms lazily, so
that whatever is learnt of an atom later reaches every axis that it stands on. Every operation only
ever unifies, refines or freezes; where two structures do not nest, it freezes what they consist of.

Examples, with letters for atoms, ``·`` between the factors of a product, outermost first, and ``|``
between segments:

    a dense kernel [784, 100]                            784: a       100: b
    concatenate([4, 16], [4, 32]) along the last axis    4: n         48: c | d
    reshape [4, 2, 5] -> [4, 10], 2 heads of size 5      4: n         10: h·e
    reshape [4, 3, 3, 48] -> [4, 432], 48 being c | d    4: n         432: y·x·(c | d)    (a `Sum`)
    ... and its part from row 144 on, of 3 rows          4: n         288: y'·x·(c | d)   (y cut)
    broadcast of a scalar to [4, 10]                     4: wild      10: wild
    the bias [10] that is added to h·e above             10: b, which links to h·e from there on

An example for union-find: in ``x @ a + y`` with ``a`` [784, 100] and ``y`` [4, 100], the product
has the axes n, b and ``y`` has m, c. The sum unifies n with m and b with c: c links to b, so that
any other leaf with c on it is permuted as the columns of ``a`` are.
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
    """Positions along which a tensor is constant: they unify nothing."""

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
    # The common case, and this is called more often than anything else: nothing to resolve. A Sum
    # has no `link`, and getattr then gives the Sum itself, which is not None.
    if all(type(f) is Wild or getattr(f, "link", f) is None for part in axis for f in part):
        return axis
    return tuple(part for segment in axis for part in _spread(_factors(segment)))


def _factors(segment: Iterable[Factor]) -> Segment:
    """The product in terms of roots, flattened: h·b is h·x·y once b links to x·y."""
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
    # Factors of a single position may stand before the Sum, and stay before each of its segments.
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


def unify(x: Axis, y: Axis) -> Axis:
    """Unifies two axes of equal size position by position and returns what they have become.

    Where one is wild, the other one's structure stands in the result, and nothing is unified.

        a            with b                   gives a; b links to a
        c | d        with b                   gives c | d; b links to c | d
        c | d        with e | f               gives c | d' | d", where c, d, e, f have the sizes
                                              16, 32, 32, 16: e links to c | d', f to d"
        h·e          with b                   gives h·e; b links to h·e
        h·e          with wild positions      gives h·e
        a·b (3, 4)   with c·d (4, 3)          gives a mixed axis: they do not nest, and freeze
    """
    x, y = resolve(x), resolve(y)
    if x == y or axis_size(x) == 1:
        return x
    out: list[Segment] = []
    while x and y:
        # The longer of the two leading segments is cut where the shorter one ends.
        size = min(segment_size(x[0]), segment_size(y[0]))
        (first, x), (second, y) = _first(x, size), _first(y, size)
        out.append(_unify_products(first, second))
        # The rest of an axis may have an atom that was cut, or unified, just now.
        x, y = resolve(x), resolve(y)
    return tuple(out)


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cuts the axis into consecutive pieces of these sizes, refining the atoms it cuts.

    c | d (16, 32)    into 16 and 32    gives c and d
    a (48)            into 16 and 32    gives a' and a"; a links to a' | a"
    h·e (2, 5)        into 5 and 5      gives h'·e and h"·e; h links to h' | h", of size 1
    h·e (2, 5)        into 4 and 6      gives mixed axes: the boundary is in a head; both freeze
    """
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
    """Row-major reshape of a tensor with these axes. Blocks whose factors do not nest freeze.

    A block is the shortest run of old axes with as many positions as a run of new ones.

        [4, 10] -> [4, 2, 5]        n, a          gives n, a', a"; a links to a'·a"
        [4, 2, 5] -> [4, 10]        n, h, e       gives n, h·e
        [4, 3, 3, 48] -> [36, 48]   n, y, x, c    gives n·y·x, c
        [6, 4] -> [4, 6]            a, b          gives mixed axes: 6 and 4 do not nest, and freeze
    """
    before, after = [axis_size(axis) for axis in axes], list(sizes)
    if 0 in before:
        return tuple(wild_axis(size) for size in sizes)
    out: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        # A block is complete when both sides have as many positions.
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
    # The block is one long product, of which each new axis takes the outermost factors.
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
    # A factor of a single position is no place to cut; both parts keep it.
    if head.size == 1:
        left, right = _cut_segment(rest, position)
        return (head, *left), (head, *right)
    if all(isinstance(factor, Wild) for factor in segment):
        return (Wild(position),), (Wild(size - position),)
    # h·e of 2·5 cut at 5: position 1 of the outermost factor, after which all of e follows.
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
        # Of 4·6: 12 takes 4 whole and 3 of the 6; of 12: 4 leaves 3; of 6: 4 is not to be had.
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
    # (a·e | b·e) is (a | b)·e: what is inner must be one and the same for all segments.
    heads: list[Segment] = []
    shared: Axis = wild_axis(inner)
    for segment in factor.segments:
        if segment_size(segment) % inner:
            return None
        taken = _take(segment, segment_size(segment) // inner)
        if taken is None:
            return None
        heads.append(taken[0])
        shared = unify(shared, (taken[1],))
    return Sum(tuple(heads)), Sum(shared)


def _unify_products(x: Segment, y: Segment) -> Segment:
    """Unifies products of equal size: refined where their cumulative products nest, else frozen."""
    x, y = _factors(x), _factors(y)
    # Factors of a single position have no order, but their atoms tell slices apart (`slices`).
    if segment_size(x) == 1:
        for one, other in zip(x, y, strict=False):
            _unify_heads((one,), (other,))
        return x if any(isinstance(f, Atom) for f in x) else y
    out: list[Factor] = [factor for factor in x if factor.size == 1 and factor in y]
    while True:
        x, y = _without_ones(_factors(x)), _without_ones(_factors(y))
        if not x:
            return tuple(out)
        # 12·2 with 4·6: the outermost 4 of 12 goes with 4; what is left is 3·2 with 6.
        size = min(x[0].size, y[0].size)
        # A Sum is not divided if it can be helped: (c | d)·e with b·e' takes 48 of both.
        if isinstance(x[0], Sum) or isinstance(y[0], Sum):
            size = max(f.size for f in (x[0], y[0]) if isinstance(f, Sum))
        taken_x, taken_y = _take(x, size), _take(y, size)
        if taken_x is None or taken_y is None:
            why = Cause(Reason.PRODUCTS)
            freeze((x,), why)
            freeze((y,), why)
            return (*out, *mixed_axis(segment_size(x), why)[0])
        (head_x, x), (head_y, y) = taken_x, taken_y
        out.append(_unify_heads(head_x, head_y))


def _without_ones(segment: Segment) -> Segment:
    """The product without factors of a single position."""
    return tuple(factor for factor in segment if factor.size > 1)


def _unify_heads(x: Segment, y: Segment) -> Factor:
    x, y = _factors(x), _factors(y)  # taking one head may have divided the other
    if len(x) == len(y) == 1:
        first, second = x[0], y[0]
        if isinstance(first, Wild):
            return second
        if isinstance(second, Wild):
            return first
        if isinstance(first, Atom) and isinstance(second, Atom):
            return _link_roots(first, second)
    return Sum(unify((x,), (y,)))


def unify_atoms(x: Atom, y: Atom) -> None:
    """Unifies two atoms of equal size, whatever they have become; single positions as well."""
    _unify_heads((x,), (y,))


def _link_roots(x: Atom, y: Atom) -> Atom:
    if x is not y:
        # No ranks: chains stay short, for `_factors` compresses the paths that it goes.
        x.frozen, x.mixed = x.frozen or y.frozen, x.mixed or y.mixed
        y.link = ((x,),)
    return x
