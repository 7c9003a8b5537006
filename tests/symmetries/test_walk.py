"""Primitives that hold jaxprs: calls, scan, while, cond."""

import functools

import jax
import jax.numpy as jnp
import pytest
from helpers.symmetry_checks import assert_symmetric, normal, sizes
from jax import lax

pytestmark = pytest.mark.usefixtures("x64")

MLP = {"a": (3, 7), "b": (7, 2)}
X = normal(9, x=(4, 3))["x"]


@jax.custom_vjp
def twice(x):
    return 2 * x


twice.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


@jax.custom_batching.custom_vmap
def thrice(x):
    return 3 * x


thrice.def_vmap(lambda size, batched, x: (3 * x, True))


def by_platform(x):
    return lax.platform_dependent(x, cpu=jnp.tanh, default=jnp.sin)


@pytest.mark.parametrize(
    "call",
    [jax.jit, jax.checkpoint, jax.jit(jax.checkpoint(jax.nn.silu)), jax.nn.relu, twice, thrice]
    + [by_platform, lax.composite(jnp.tanh, "my.tanh")],
    ids="jit remat nested custom_jvp custom_vjp custom_vmap platform_dependent composite".split(),
)
def test_calls_are_walked_through(call):
    inner = call(jnp.tanh) if call in (jax.jit, jax.checkpoint) else call

    def function(v, x):
        return inner(x @ v["a"]) @ v["b"]

    found = assert_symmetric(function, normal(0, **MLP), X)
    assert sizes(found) == [7]
    assert not found.notes


def test_one_function_called_twice_ties_nothing():
    layer = jax.jit(lambda w, h: jnp.tanh(h @ w))

    def function(v, x):
        return layer(v["b"], layer(v["a"], x)) @ v["c"]

    v = normal(0, a=(3, 3), b=(3, 3), c=(3, 2))
    assert sizes(assert_symmetric(function, v, X)) == [3, 3]


def stack_of_layers(v, x, **options):
    def layer(h, w):
        return h + jnp.tanh(h @ w["a"]) @ w["b"], None

    h, _ = lax.scan(layer, x @ v["in"], {name: v[name] for name in "ab"}, **options)
    return h @ v["out"]


STACK = {"in": (3, 5), "a": (4, 5, 7), "b": (4, 7, 5), "out": (5, 2)}


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 2}])
def test_layers_under_scan_have_their_own_hidden_units(options):
    function = functools.partial(stack_of_layers, **options)
    found = assert_symmetric(function, normal(0, **STACK), X)
    assert sizes(found) == [(4, 7), 5]
    assert found.groups["a"].outer == tuple(found.positions)


def test_a_bias_shared_by_scanned_layers_ties_them():
    def function(v, x):
        def layer(h, w):
            return h + jnp.tanh(h @ w["a"] + v["bias"]) @ w["b"], None

        return lax.scan(layer, x @ v["in"], {name: v[name] for name in "ab"})[0] @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK, bias=(7,)), X)) == [5, 7]


def test_nested_scans_over_the_same_layers_are_not_in_step():
    def function(v, x):
        def outer(h, w):
            def inner(h, u):
                return h + jnp.tanh(h @ w["a"]) @ u["b"], None

            return lax.scan(inner, h, {"b": v["b"]})[0], None

        return lax.scan(outer, x @ v["in"], {"a": v["a"]})[0] @ v["out"]

    assert sizes(assert_symmetric(function, normal(0, **STACK), X)) == [5, 7]


def test_a_carry_that_starts_as_zeros_is_not_wild():
    """A recurrent network: one pass with a wild carry would leave the kernel's rows free."""

    def function(v, x):
        def cell(h, row):
            h = jnp.tanh(row @ v["a"] + h @ v["w"])
            return h, h

        last, every = lax.scan(cell, jnp.zeros(5), x)
        return last @ v["b"], every.sum(0) @ v["b"]

    v = normal(0, a=(3, 5), w=(5, 5), b=(5, 2))
    found = assert_symmetric(function, v, X)
    assert sizes(found) == [5]
    assert {site.axis for site in found.groups["a"].sites if site.path == "w"} == {0, 1}


def test_a_carry_of_zeros_that_rotates():
    """What is carried reaches the other half a step later: a fixpoint in several rounds."""

    def function(v, x):
        def cell(h, row):
            new = jnp.concatenate([h[3:], row @ v["a"]])
            return new, None

        return lax.scan(cell, jnp.zeros(6), x)[0] @ v["b"]

    assert sizes(assert_symmetric(function, normal(0, a=(3, 3), b=(6, 2)), X)) == [3]


def test_a_carry_of_zeros_that_is_split_otherwise():
    def function(v, x):
        def cell(h, row):
            blocks = h.reshape(2, 3)
            return (blocks - blocks.max(1, keepdims=True)).reshape(6) + row @ v["a"], None

        return lax.scan(cell, jnp.zeros(6), x)[0] @ v["b"]

    assert sizes(assert_symmetric(function, normal(0, a=(3, 6), b=(6, 2)), X)) == [(2, 3), 2]


def test_while_and_fori():
    def function(v, x):
        def body(state):
            i, h = state
            return i + 1, jnp.tanh(h @ v["w"])

        return lax.while_loop(lambda state: state[0] < 3, body, (0, x @ v["a"]))[1] @ v["b"]

    v = normal(0, a=(3, 5), w=(5, 5), b=(5, 2))
    assert sizes(assert_symmetric(function, v, X)) == [5]

    def counted(v, x):
        return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ v["w"]) * i, x @ v["a"]) @ v["b"]

    assert sizes(assert_symmetric(counted, v, X)) == [5]


def test_the_condition_of_a_loop_may_depend_on_units_only_symmetrically():
    def function(v, x, pick):
        def condition(h):
            return pick(h) < 10

        return lax.while_loop(condition, lambda h: h * 2, jnp.abs(x @ v["a"]) + 0.1) @ v["b"]

    total = functools.partial(function, pick=jnp.sum)
    assert sizes(assert_symmetric(total, normal(0, **MLP), X)) == [7]
    first = functools.partial(function, pick=lambda h: h[0, 0])
    assert sizes(assert_symmetric(first, normal(0, **MLP), X)) == [6]


def test_branches_of_a_conditional_join():
    def function(v, x):
        h = x @ v["a"]
        return lax.cond(x.sum() > 0, lambda: h, lambda: x @ v["c"]) @ v["b"]

    found = assert_symmetric(function, normal(0, **MLP, c=(3, 7)), X)
    assert sizes(found) == [7]
    assert {site.path for site in found.groups["a"].sites} == {"a", "b", "c"}


def test_a_branch_of_zeros_ties_nothing():
    def function(v, x):
        h = lax.cond(x.sum() > 0, lambda: x @ v["a"], lambda: jnp.zeros((4, 7)))
        return h @ v["b"]

    assert sizes(assert_symmetric(function, normal(0, **MLP), X)) == [7]


def test_gradients_inside_the_function():
    """A function that trains a step: as symmetric as its loss, in the 2 outputs as well."""

    def function(v, x):
        def loss(v):
            return jnp.mean((jax.nn.gelu(x @ v["a"]) @ v["b"]) ** 2)

        new = jax.tree.map(lambda p, g: p - 0.1 * g, v, jax.grad(loss)(v))
        return loss(new)

    found = assert_symmetric(function, normal(0, **MLP), X)
    assert sizes(found) == [2, 7]
    assert not found.notes
