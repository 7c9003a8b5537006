"""Slices whose other axes are permuted in their own way."""

import jax
import jax.numpy as jnp
import pytest
from helpers.symmetry_checks import assert_symmetric, normal, sizes
from jax import lax

from dimat_jax.symmetries.reasons import Reason

pytestmark = pytest.mark.usefixtures("x64")

X = normal(9, x=(2, 5, 3))["x"]


def attention(q, k, v):
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", scores, v)


@pytest.mark.parametrize("shape", [(6, 24), (6, 3, 2, 4), (6, 3, 8)], ids=str)
@pytest.mark.parametrize("take", ["index", "unstack", "split"])
def test_fused_projection_sliced_by_index(shape, take):
    """Stream 6, heads 2, and for each head 4 query/key units and 4 value units."""

    def function(v, x):
        h = x @ v["stem"]
        fused = jnp.tensordot(h, v["qkv"], 1).reshape(2, 5, 3, 2, 4)
        if take == "split":
            parts = [part[:, :, 0] for part in jnp.split(fused, 3, axis=2)]
        else:
            parts = jnp.unstack(fused, axis=2)
            parts = parts if take == "unstack" else [fused[:, :, i] for i in range(3)]
        return (h + attention(*parts).reshape(2, 5, 8) @ v["out"]).mean(1) @ v["head"]

    v = normal(0, stem=(3, 6), qkv=shape, out=(8, 6), head=(6, 2))
    assert sizes(assert_symmetric(function, v, X)) == [(2, 4), (2, 4), 2, 6]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (lambda v, product: product, [4, 4]),
        (lambda v, product: product + v["bias"], [4]),
        (lambda v, product: product + product.sum(1, keepdims=True), [4]),
    ],
    ids=["example", "a bias for all three", "a sum over the three"],
)
def test_the_worked_example(before, expected):
    """Of the module: query and key share their units, and values have their own."""

    def function(v, x):
        product = before(v, jnp.tensordot(x, v["qkv"], 1))
        q, k, value = jnp.unstack(product, axis=1)
        return jax.nn.softmax(q @ k.T) @ value @ v["out"]

    v = normal(0, qkv=(6, 3, 4), bias=(4,), out=(4, 2))
    found = assert_symmetric(function, v, normal(1, x=(5, 6))["x"])
    assert sizes(found) == expected
    qkv = [site for group in found.groups.values() for site in group.sites if site.path == "qkv"]
    rows = [place.segment for site in qkv for place in site.within]
    assert sorted(rows) == ([(0, 1), (1, 1), (2, 1)] if expected == [4, 4] else [])


STACK = {"in": (3, 5), "a": (3, 5, 7), "b": (3, 7, 5), "out": (5, 2)}


def test_stacked_layers_in_a_python_loop():
    def function(v, x):
        h = x @ v["in"]
        for a, b in zip(v["a"], v["b"], strict=True):
            h = h + jnp.tanh(h @ a) @ b
        return h @ v["out"]

    found = assert_symmetric(function, normal(0, **STACK), X)
    assert sizes(found) == [5, 7, 7, 7]
    within = [
        site.within[0].segment for g in found.groups.values() for site in g.sites if site.within
    ]
    assert within == [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)]


def test_a_bias_used_by_every_layer_ties_them():
    def function(v, x):
        h = x @ v["in"]
        for a, b in zip(v["a"], v["b"], strict=True):
            h = h + jnp.tanh(h @ a + v["bias"]) @ b
        return h @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK, bias=(7,)), X)) == [5, 7]


def test_a_slice_and_the_whole_used_side_by_side():
    """The whole, summed over layers, no longer tells which layer: one permutation for all."""

    def function(v, x):
        h = x @ v["in"]
        h = h + jnp.tanh(h @ v["a"][0]) @ v["b"][0] + jnp.tanh(h @ v["a"].sum(0)) @ v["b"][1]
        return (h + jnp.tanh(h @ v["a"][2]) @ v["b"][2]) @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK), X)) == [5, 7]


def test_overlapping_slices_are_tied():
    def function(v, x):
        h = x @ v["in"]
        for part in (slice(0, 2), slice(1, 3)):
            h = h + jnp.einsum("btd,lde,lef->btf", h, v["a"][part], v["b"][part])
        return h @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK), X)) == [5, 7]


def test_attention_from_one_stack_of_square_kernels():
    """What varies along heads does so along those of its own slice.

    Query, key, value and output kernel share an axis, so that the stream splits as the heads do.
    """

    def function(v, x):
        h = x @ v["in"]
        q, k, value = ((h @ v["w"][i]).reshape(2, 5, 2, 3) for i in range(3))
        return (h + attention(q, k, value).reshape(2, 5, 6) @ v["w"][3]) @ v["out"]

    v = normal(0, **{"in": (3, 6)}, w=(4, 6, 6), out=(6, 2))
    assert sizes(assert_symmetric(function, v, X)) == [(2, 3), (2, 3), (2, 3), 2, 2]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (lambda w: (w**2).sum(), [5, 7, 7, 7]),
        (lambda w: jnp.abs(w).max((1, 2)), [5, 7, 7, 7]),
        (lambda w: w.mean(0).max(), [5, 7]),
    ],
    ids=["weight decay", "norm of each layer", "mean layer"],
)
def test_the_whole_stack_used_besides_its_slices(penalty, expected):
    """Only what mixes the layers unit by unit ties their units."""

    def function(v, x):
        h = x @ v["in"]
        for a, b in zip(v["a"], v["b"], strict=True):
            h = h + jnp.tanh(h @ a) @ b
        return h @ v["out"], penalty(v["a"])

    assert sizes(assert_symmetric(function, normal(0, **STACK), X)) == expected


def test_a_slice_that_nothing_reads_is_frozen():
    """The first three columns: each row has its own order of those that are summed over."""

    def function(v, x):
        used, _ = jnp.split(v["a"], 2, 2)
        return jnp.tanh(used @ v["b"]).max(1)

    found = assert_symmetric(function, normal(0, a=(2, 4, 6), b=(3,)), X)
    assert sizes(found) == [(2, 4), 3]
    assert {part.size for part in found.frozen if part.cause.reason is Reason.UNREAD} == {2, 3, 4}


@pytest.mark.parametrize(
    "rows",
    [
        lambda table, x: table[:6],
        lambda table, x: table.astype(jnp.float32)[:6],
        lambda table, x: jnp.split(table, [6, 8])[0],
        lambda table, x: lax.dynamic_slice(table, (0, 0), (6, 5)),
        lambda table, x: jnp.tanh(table * 2)[2:][:6],
        lambda table, x: table.reshape(3, 4, 5)[:2, :3].reshape(6, 5),
        lambda table, x: lax.cond(x.sum() > 0, lambda: table[:6], lambda: table[1:7]),
        lambda table, x: jnp.zeros((14, 5)).at[:12].set(table)[:6],
        lambda table, x: jax.jit(lambda table: (table[:6], table[6:]))(table)[0],
    ],
    ids="slice cast split dynamic again reshape cond set jit".split(),
)
def test_rows_that_the_inputs_do_not_reach(rows):
    """Of a table of 12 positions, for inputs of 6: longer ones may read the others."""

    def function(v, x):
        return jnp.tanh(x @ v["stem"] + rows(v["table"], x)) @ v["head"]

    v = normal(0, stem=(3, 5), table=(12, 5), head=(5, 2))
    found = assert_symmetric(function, v, normal(9, x=(6, 3))["x"])
    assert sizes(found) == [5]
    assert [site.axis for site in found.groups["stem"].sites if site.path == "table"] == [1]


def test_units_that_are_left_out_are_no_group():
    def function(v, x):
        return jnp.tanh(x @ v["a"])[..., :3] @ v["b"]

    found = assert_symmetric(function, normal(0, a=(3, 7), b=(3, 2)), X)
    assert sizes(found) == [3]
    (unread,) = (part for part in found.frozen if part.cause.reason is Reason.UNREAD)
    assert (unread.path, unread.axis, unread.size) == ("a", 1, 4)


def test_slices_of_a_reversed_axis_are_tied():
    def function(v, x):
        h = x @ v["in"]
        reversed_a = v["a"][::-1]
        both = reversed_a * v["a"]
        for i in range(3):
            h = h + jnp.tanh(h @ both[i]) @ v["b"][i]
        return h @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK), X)) == [5, 7]
