"""Permutations that vary along heads, layers and groups: where they may and where they may not."""

import jax
import jax.numpy as jnp
import pytest
from helpers.symmetry_checks import assert_symmetric, normal, sizes

pytestmark = pytest.mark.usefixtures("x64")

X = normal(9, x=(2, 5, 3))["x"]
ATTENTION = {name: (3, 2, 4) for name in "qkv"} | {"out": (2, 4, 6)}


def attention(v, x, between=lambda q: q):
    q, k, value = (jnp.einsum("btd,dhe->bthe", x, v[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", between(q), k))
    return jnp.einsum("bthd,hde->bte", jnp.einsum("bhts,bshd->bthd", scores, value), v["out"])


def test_heads_have_their_own_units():
    assert sizes(assert_symmetric(attention, normal(0, **ATTENTION), X)) == [(2, 4), (2, 4), 2]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda q: q + q.mean(2, keepdims=True), [(2, 4), 2, 4]),
        (lambda q: q + q[:, :, ::-1], [4, 4]),
        (lambda q: q * jnp.cumsum(q, axis=2), [4, 4]),
        (lambda q: q + jnp.flip(q, 3), [(2, 4), 2]),
    ],
    ids=["mean over heads", "reversed heads", "cumulative heads", "reversed units"],
)
def test_what_mixes_heads(between, expected):
    def function(v, x):
        return attention(v, x, between)

    found = assert_symmetric(function, normal(0, **ATTENTION), X)
    assert sizes(found) == expected


def test_a_scale_shared_by_the_heads_ties_their_units():
    def function(v, x):
        return attention(v, x, lambda q: q * v["scale"])

    assert sizes(assert_symmetric(function, normal(0, **ATTENTION, scale=(4,)), X)) == [
        (2, 4),
        2,
        4,
    ]


def test_mixing_positions_by_a_product():
    """[T, T] @ [T, g] leaves every tensor with both axes, and yet mixes the positions."""

    def function(v, x):
        h = v["a"][None] * x[..., :1]
        h = h + jnp.einsum("st,btg->bsg", v["mix"], h)
        return jnp.einsum("bsg,sg->b", h, v["b"])

    v = normal(0, a=(5, 7), mix=(5, 5), b=(5, 7))
    assert sizes(assert_symmetric(function, v, X)) == [7]


def test_positions_without_mixing():
    def function(v, x):
        return jnp.einsum("btg,tg->b", jnp.tanh(v["a"][None] * x[..., :1]), v["b"])

    v = normal(0, a=(5, 7), b=(5, 7))
    found = assert_symmetric(function, v, X)
    assert sizes(found) == [(5, 7)]
    assert list(found.positions.values()) == [5]


def test_group_norm():
    def function(v, x):
        h = (x @ v["a"]).reshape(2, 5, 3, 4)
        h = (h - h.mean(3, keepdims=True)) / jnp.sqrt(h.var(3, keepdims=True) + 1e-5)
        return (h.reshape(2, 5, 12) * v["scale"]) @ v["b"]

    v = normal(0, a=(3, 12), scale=(12,), b=(12, 2))
    assert sizes(assert_symmetric(function, v, X)) == [(3, 4), 3]
