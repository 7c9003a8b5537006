"""The worked examples of `axes`: what unifying, cutting and reshaping make of axes."""

import pytest

from dimat_jax.symmetries.axes import (
    Atom,
    Sum,
    Wild,
    atoms,
    axis_size,
    cut,
    free_axis,
    freeze,
    reshape,
    resolve,
    unify,
    wild_axis,
)
from dimat_jax.symmetries.reasons import Cause, Reason

INPUT = Cause(Reason.INPUT)


def sizes(axis):
    """The axis as segments of factors' sizes; a Sum is a list, what is wild is negative."""
    return [tuple(map(size_of, segment)) for segment in resolve(axis)]


def size_of(factor):
    if isinstance(factor, Sum):
        return sizes(factor.segments)
    return -factor.size if isinstance(factor, Wild) else factor.size


def product(*sizes):
    return (tuple(Atom(size) for size in sizes),)


def segments(*sizes):
    return tuple((Atom(size),) for size in sizes)


def frozen(axis):
    return {atom.frozen for atom in atoms(axis)}


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (product(16), product(16), [(16,)]),
        (segments(16, 32), product(48), [(16,), (32,)]),
        (segments(16, 32), segments(32, 16), [(16,), (16,), (16,)]),
        (product(2, 5), product(10), [(2, 5)]),
        (product(12, 2), product(4, 6), [(4, 3, 2)]),
        (product(2, 5), wild_axis(10), [(2, 5)]),
        (wild_axis(10), product(2, 5), [(2, 5)]),
    ],
)
def test_unify(x, y, expected):
    both = unify(x, y)
    assert sizes(both) == expected and frozen(both) == {None}
    for axis in (x, y):
        if not sizes(axis) == [(-10,)]:
            assert resolve(axis) == resolve(both)


def test_products_that_do_not_nest_freeze():
    x, y = product(3, 4), product(4, 3)
    both = unify(x, y)
    assert sizes(both) == [(12,)] and all(atom.mixed for atom in atoms(both))
    assert frozen(x) == frozen(y) == frozen(both) == {Cause(Reason.PRODUCTS)}


def test_what_is_learnt_of_one_axis_reaches_those_unified_with_it_before():
    x, y, z = free_axis(6), free_axis(6), free_axis(6)
    unify(x, y)
    unify(z, y)
    freeze(z, INPUT)
    assert frozen(x) == {INPUT}
    cut(x, [2, 4])
    assert sizes(y) == sizes(z) == [(2,), (4,)]


def test_cut():
    whole = product(48)
    pieces = cut(whole, [16, 32])
    assert [sizes(piece) for piece in pieces] == [[(16,)], [(32,)]]
    assert resolve(whole) == pieces[0] + pieces[1]
    heads = product(2, 5)
    assert [sizes(piece) for piece in cut(heads, [5, 5])] == [[(1, 5)], [(1, 5)]]
    assert frozen(heads) == {None}
    heads = product(2, 5)
    assert [axis_size(piece) for piece in cut(heads, [4, 6])] == [4, 6]
    assert frozen(heads) == {Cause(Reason.BOUNDARY)}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([product(4), product(10)], [4, 2, 5], [[(4,)], [(2,)], [(5,)]]),
        ([product(4), product(2), product(5)], [4, 10], [[(4,)], [(2, 5)]]),
        ([product(n) for n in (4, 3, 3, 48)], [36, 48], [[(4, 3, 3)], [(48,)]]),
        ([product(3), segments(16, 32)], [144], [[(3, [(16,), (32,)])]]),
        ([wild_axis(6), wild_axis(4)], [24], [[(-6, -4)]]),
    ],
)
def test_reshape(before, after, expected):
    axes = reshape(tuple(before), after)
    assert list(map(axis_size, axes)) == after
    assert [sizes(axis) for axis in axes] == expected
    assert all(frozen(axis) <= {None} for axis in axes)


def test_a_reshape_whose_factors_do_not_nest_freezes():
    before = product(6), product(4)
    axes = reshape(before, [4, 6])
    for axis in (*before, *axes):
        assert frozen(axis) == {Cause(Reason.RESHAPE)}


def test_a_row_of_a_flattened_map_of_concatenated_channels():
    """[3, 3, 48] -> [432], of which rows 1 and 2: the channels' segments stay as they are."""
    (flat,) = reshape((product(3), product(3), segments(16, 32)), [432])
    first, rest = cut(flat, [144, 288])
    assert sizes(first) == [(1, 3, [(16,), (32,)])] and sizes(rest) == [(2, 3, [(16,), (32,)])]
