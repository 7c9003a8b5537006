"""Permuting as a group action, against a NumPy reference; and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.symmetry_checks import normal, reference_permute, shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat_jax.symmetries import (
    Group,
    Permutations,
    Place,
    Site,
    Symmetries,
    compose,
    find_symmetries,
    invert,
    permute,
    random_permutations,
)


def stacked_attention(v, x):
    """Two scanned layers of attention: heads vary along layers, units along layers and heads."""

    def layer(h, w):
        q, k, value = (jnp.einsum("td,dhe->the", h, w[name]) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
        mixed = jnp.einsum("hts,shd->thd", scores, value).reshape(len(h), -1)
        return h + mixed @ w["out"], None

    return jax.lax.scan(layer, x @ v["in"], {name: v[name] for name in ("q", "k", "v", "out")})[
        0
    ].sum()


V = normal(0, **{"in": (3, 5)}, **dict.fromkeys("qkv", (2, 5, 3, 4)), out=(2, 12, 5))
X = normal(1, x=(6, 3))["x"]
SYMMETRIES = find_symmetries(stacked_attention, V, X)


def assert_equal(x, y):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_array_equal(a, b)


@jax.jit
def draw(seed):
    return random_permutations(jax.random.key(seed), SYMMETRIES)


def test_heads_in_layers():
    assert sorted(shapes(SYMMETRIES).values()) == [(2, 3), (2, 3, 4), (2, 3, 4), (5,)]


def test_random_permutations_are_permutations():
    for name, permutation in draw(0).items():
        size = SYMMETRIES.groups[name].size
        assert permutation.dtype == jnp.int32
        np.testing.assert_array_equal(
            jnp.sort(permutation, -1), np.broadcast_to(np.arange(size), permutation.shape)
        )


def test_permute_against_numpy():
    permutations = draw(0)
    expected = reference_permute(SYMMETRIES, permutations, V)
    assert_equal(permute(SYMMETRIES, permutations, V), expected)
    assert any((np.asarray(V[name]) != expected[name]).any() for name in V)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_group_action(first, then):
    """permute ∘ permute = permute(compose); invert undoes; compose is associative."""
    p, q = draw(first), draw(then)
    identity = {name: np.broadcast_to(np.arange(x.shape[-1]), x.shape) for name, x in p.items()}
    for left, right in zip(*both_sides(p, q, identity, V), strict=True):
        assert_equal(left, right)


@jax.jit
def both_sides(p, q, identity, v):
    once = permute(SYMMETRIES, p, v)
    left = [
        permute(SYMMETRIES, q, once),
        permute(SYMMETRIES, invert(p), once),
        dict(compose(p, invert(p))),
        dict(compose(invert(p), p)),
        compose(compose(p, q), p),
    ]
    return left, [
        permute(SYMMETRIES, compose(p, q), v),
        v,
        identity,
        identity,
        compose(p, compose(q, p)),
    ]


def test_plain_dicts_do_where_nothing_varies_along_another_group():
    symmetries = Symmetries({"g": Group(3, (Site("w", 0, (0, 3), (1, 3, 1)),))})
    p, q = {"g": np.array([1, 2, 0])}, {"g": np.array([1, 0, 2])}
    np.testing.assert_array_equal(compose(p, q)["g"], p["g"][q["g"]])
    np.testing.assert_array_equal(invert(p)["g"], [2, 0, 1])
    w = np.array([10.0, 11.0, 12.0])
    np.testing.assert_array_equal(permute(symmetries, p, {"w": w})["w"], w[p["g"]])


def test_plain_dicts_of_groups_that_vary_need_the_symmetries():
    p, q = draw(0), draw(1)
    plain, other = dict(p), dict(q)
    with pytest.raises(ValueError, match=r"'q\[2\]' has shape \(2, 3\).*symmetries="):
        invert(plain)
    with pytest.raises(ValueError, match="symmetries="):
        compose(plain, other)
    assert_equal(invert(plain, SYMMETRIES), invert(p))
    assert_equal(compose(plain, other, SYMMETRIES), compose(p, q))


def test_copies_and_unions_know_along_what_groups_vary():
    p = draw(0)
    one, rest = {"in": p["in"]}, Permutations({k: p[k] for k in p if k != "in"}, p.outer)
    for same in (p.copy(), rest | one, one | rest):
        assert isinstance(same, Permutations)
        assert_equal(invert(same), invert(p))


def test_lists_and_wide_integers_are_taken(x64):
    kernel = permute(SYMMETRIES, {"in": [4, 3, 2, 1, 0]}, V)["in"]
    np.testing.assert_array_equal(kernel, V["in"][:, ::-1])
    traced = jax.jit(lambda i: permute(SYMMETRIES, {"in": list(i)}, V)["in"])(jnp.arange(5)[::-1])
    np.testing.assert_array_equal(traced, kernel)
    wide = {"in": np.arange(5, dtype=np.int64)}
    for composed in (compose(wide, {}), compose({}, wide), compose(wide, wide), invert(wide)):
        assert composed["in"].dtype == jnp.int32


def test_absent_groups_stay_as_they_are():
    p = draw(0)
    some = {name: p[name] for name in list(p)[:1]}
    rest = Permutations({name: p[name] for name in list(p)[1:]}, p.outer)
    assert_equal(permute(SYMMETRIES, {}, V), V)
    both = compose(some, rest)
    assert_equal(
        permute(SYMMETRIES, rest, permute(SYMMETRIES, some, V)), permute(SYMMETRIES, both, V)
    )
    assert set(both) == set(p)


def test_jit_vmap_and_pytree():
    p, q = draw(0), draw(1)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), p, q)
    assert isinstance(stacked, Permutations) and stacked.outer == p.outer
    many = jax.jit(jax.vmap(lambda p: permute(SYMMETRIES, p, V)))(stacked)
    assert_equal(jax.tree.map(lambda x: x[1], many), permute(SYMMETRIES, q, V))
    composed = jax.vmap(compose)(stacked, stacked)
    assert_equal(jax.tree.map(lambda x: x[1], composed), compose(q, q))


def test_limited_sites():
    """A site limited to positions of another axis, and one in a segment's inner factor."""
    place = Place(0, (1, 1), (1, 1, 1))
    sites = (Site("w", 1, (2, 6), (2, 3, 1), within=(place,)),)
    symmetries = Symmetries({"g": Group(3, sites)})
    w = np.arange(20.0).reshape(2, 10)
    out = permute(symmetries, {"g": np.array([2, 0, 1])}, {"w": w})["w"]
    np.testing.assert_array_equal(out[0], w[0])
    np.testing.assert_array_equal(out[1], [10, 11, 14, 12, 13, 17, 15, 16, 18, 19])


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"nothing": np.arange(5)}, "no permutation group 'nothing'"),
        ({"in": np.arange(4)}, r"'in' has shape \(4,\) but must have shape \(5,\)"),
        ({"in": np.arange(5.0)}, "has dtype float"),
        (
            {"in": np.array([0, 1, 2, 2, 4])},
            "'in' lacks index 3: each of 0 to 4 must be there once",
        ),
        ({"in": np.array([0, 1, 2, 3, -1])}, "'in' lacks index 4"),
        ({"in": np.array([1, 2, 3, 4, 5])}, "'in' lacks index 0"),
    ],
)
def test_bad_permutations(permutations, message):
    with pytest.raises(ValueError, match=message):
        permute(SYMMETRIES, permutations, V)


def test_what_is_no_permutation_is_neither_inverted_nor_composed():
    twice, good = {"a": np.array([0, 0, 2])}, {"a": np.array([0, 2, 1])}
    for call in (lambda: invert(twice), lambda: compose(twice, good), lambda: compose(good, twice)):
        with pytest.raises(ValueError, match="'a' lacks index 1"):
            call()


def test_bad_variables():
    p = {"in": np.arange(5)}
    with pytest.raises(ValueError, match="no leaf 'in'"):
        permute(SYMMETRIES, p, {name: x for name, x in V.items() if name != "in"})
    with pytest.raises(ValueError, match=r"Leaf 'in' has shape \(3, 4\) but"):
        permute(SYMMETRIES, p, V | {"in": np.ones((3, 4))})


def test_print_is_a_table():
    table = str(SYMMETRIES).splitlines()
    assert table[0].split() == ["group", "size", "leaves"]
    assert all(any(line.startswith(name) for line in table) for name in SYMMETRIES.groups)
    assert "2 x 3 x 4" in str(SYMMETRIES)
