"""What is read, where, in which shape; and that the model is evaluated, not another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.symmetry_checks import normal, random
from jax import lax

from dimat_jax.symmetries import (
    find_symmetries,
    permute,
    read_activations,
    read_sites,
)

X = normal(9, x=(4, 3))["x"]
MLP = normal(0, a=(3, 7), b=(7, 5), c=(5, 2))


def mlp(v, x):
    return jax.nn.relu(jax.jit(jnp.tanh)(x @ v["a"]) @ v["b"]) @ v["c"]


def read(function, v, x, what=read_sites):
    return jax.jit(what(find_symmetries(function, v, x), function))(v, x)


def shapes(found):
    return {key: [tensor.shape for tensor in tensors] for key, tensors in found.items()}


def test_what_the_next_layer_reads():
    found = read(mlp, MLP, X)
    assert list(found) == [("a",), ("b",)]
    h = jnp.tanh(X @ MLP["a"])
    np.testing.assert_allclose(found["a",][0], h, rtol=1e-5)
    np.testing.assert_allclose(found["b",][0], jax.nn.relu(h @ MLP["b"]), rtol=1e-5)


def test_another_batch_size_jit_and_vmap():
    function = read_activations(find_symmetries(mlp, MLP, X), mlp)
    more = jnp.concatenate([X, X, X])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), MLP)
    many = jax.jit(jax.vmap(function, in_axes=(0, None)))(stacked, more)
    assert shapes(many) == {"a": [(2, 12, 7)], "b": [(2, 12, 5)]}
    np.testing.assert_allclose(many["a"][0][0], function(MLP, more)["a"][0], rtol=1e-5)


def test_sharded_over_devices():
    """One agent a device, as the simulator matches them."""
    mesh = jax.make_mesh((4,), ("agents",), axis_types=(jax.sharding.AxisType.Auto,))
    function = read_activations(find_symmetries(mlp, MLP, X), mlp)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf * i for i in range(4)]), MLP)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(jax.P("agents"), jax.P()), out_specs=jax.P("agents"))
    def every(v, x):
        return jax.tree.map(lambda leaf: leaf[None], function(jax.tree.map(lambda w: w[0], v), x))

    found = every(stacked, X)
    expected = jax.vmap(function, in_axes=(0, None))(stacked, X)
    np.testing.assert_allclose(found["b"][0], expected["b"][0], rtol=1e-5, atol=1e-6)


def test_activations_of_a_permuted_network_are_permuted():
    symmetries = find_symmetries(mlp, MLP, X)
    p = random(symmetries, 0)
    function = jax.jit(read_activations(symmetries, mlp))
    before, after = function(MLP, X), function(permute(symmetries, p, MLP), X)
    for name, permutation in p.items():
        np.testing.assert_allclose(after[name][0], before[name][0][:, permutation], rtol=1e-5)


def test_one_tensor_is_listed_once_and_in_network_order():
    def function(v, x):
        h = x @ v["a"]
        h = h + jnp.tanh(h @ v["b"]) + jnp.sin(h @ v["c"])
        return h @ v["d"]

    v = normal(0, a=(3, 7), b=(7, 7), c=(7, 7), d=(7, 2))
    (stream,) = read(function, v, X).values()
    assert len(stream) == 2
    np.testing.assert_allclose(stream[1] @ v["d"], function(v, X), rtol=1e-4)


def test_attention_carries_heads_and_units_jointly():
    def function(v, x):
        q, k, u = (jnp.einsum("td,dhe->the", x, v[name]) for name in "qku")
        scores = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
        return jnp.einsum("thd,hde->te", jnp.einsum("hts,shd->thd", scores, u), v["o"])

    v = normal(0, q=(3, 2, 5), k=(3, 2, 5), u=(3, 2, 7), o=(2, 7, 4))
    assert shapes(read(function, v, X)) == {
        ("q[1]", "q[2]"): [(4, 2, 5), (4, 2, 5)],
        ("q[1]", "u"): [(4, 2, 7)],
    }
    assert shapes(read(function, v, X, read_activations)) == {
        "q[1]": [(4, 5, 2), (4, 5, 2), (4, 7, 2)],
        "q[2]": [(4, 2, 5), (4, 2, 5)],
        "u": [(4, 2, 7)],
    }


def test_scanned_layers_are_stacked():
    def function(v, x):
        def layer(h, w):
            return h + jnp.tanh(h @ w["a"]) @ w["b"], None

        return lax.scan(layer, x @ v["in"], {name: v[name] for name in "ab"}, reverse=True)[0].sum()

    v = normal(0, **{"in": (3, 5)}, a=(2, 5, 7), b=(2, 7, 5))
    found = read(function, v, X, read_activations)
    assert shapes(found) == {"in": [(2, 4, 5)], "a": [(2, 4, 7)]}
    last = jnp.tanh((X @ v["in"]) @ v["a"][1])
    np.testing.assert_allclose(found["a"][0][1], last, rtol=1e-4)


def test_flattened_and_concatenated_axes():
    def function(v, x):
        maps = jnp.concatenate([x[:, None] @ v["a"], x[:, None] @ v["b"] * jnp.ones((1, 1))], -1)
        maps = jnp.tanh(maps * jnp.arange(1.0, 3.0)[:, None])
        return maps.reshape(4, -1) @ v["c"]

    v = normal(0, a=(3, 5), b=(3, 7), c=(24, 2))
    found = read(function, v, X)
    assert shapes(found) == {("a",): [(4, 2, 5)], ("b",): [(4, 2, 7)]}
    np.testing.assert_allclose(found["b",][0][:, 1], jnp.tanh(2 * X @ v["b"]), rtol=1e-5)


def test_a_group_that_is_only_summed_is_read_there():
    def function(v, x):
        return jnp.tanh(x @ v["a"]).sum(1)

    v = normal(0, a=(3, 7))
    assert shapes(read(function, v, X)) == {("a",): [(4, 7)]}


def test_a_group_of_variables_alone_is_read_there():
    def function(v, x):
        return x @ (v["a"] @ v["b"])

    v = normal(0, a=(3, 7), b=(7, 2))
    assert shapes(read(function, v, X)) == {("a",): [(3, 7), (2, 7)]}


def test_a_while_loop_is_read_at_its_last_step():
    def function(v, x):
        def step(state):
            i, h = state
            return i + 1, h + jnp.tanh(h @ v["up"]) @ v["down"]

        return lax.while_loop(lambda state: state[0] < 3, step, (0, x @ v["a"]))[1] @ v["b"]

    v = normal(0, a=(3, 5), up=(5, 7), down=(7, 5), b=(5, 2))
    found = read(function, v, X)
    assert shapes(found) == {("a",): [(4, 5), (4, 5)], ("up",): [(4, 7)]}
    h = X @ v["a"]
    for _ in range(2):
        h = h + jnp.tanh(h @ v["up"]) @ v["down"]
    np.testing.assert_allclose(found["a",][0], h, rtol=1e-4)
    np.testing.assert_allclose(found["up",][0], jnp.tanh(h @ v["up"]), rtol=1e-4)
    np.testing.assert_allclose(found["a",][1] @ v["b"], function(v, X), rtol=1e-4)


def test_a_loop_in_a_scan_in_a_loop():
    def function(v, x):
        def layer(h, w):
            return lax.fori_loop(
                0, x.shape[0] - 1 + (h.sum() > 9), lambda i, h: jnp.tanh(h @ w), h
            ), None

        def twice(h):
            return lax.scan(layer, h, v["w"])[0]

        return lax.while_loop(lambda h: h.sum() > 9, twice, twice(x @ v["a"])) @ v["b"]

    v = normal(0, a=(3, 5), w=(2, 5, 5), b=(5, 2))
    found = read(function, v, X)
    assert shapes(found) == {("a",): [(2, 4, 5), (2, 4, 5), (4, 5)]}
    # The outer loop has no step: of it there are zeros.
    assert not np.asarray(found["a",][1]).any()
    np.testing.assert_allclose(found["a",][2] @ v["b"], function(v, X), rtol=1e-4)


def test_branches_are_read_where_they_are_taken():
    def function(v, x, which):
        h = x @ v["a"]
        branches = [lambda: jnp.tanh(h) @ v["b"], lambda: jnp.sin(h) @ v["c"]]
        return lax.switch(which, branches)

    v = normal(0, a=(3, 5), b=(5, 2), c=(5, 2))
    symmetries = find_symmetries(function, v, X, 0)
    for which in (0, 1):
        first, second = jax.jit(read_sites(symmetries, function))(v, X, which)["a",]
        taken, other = (first, second) if which == 0 else (second, first)
        expected = (jnp.tanh, jnp.sin)[which](X @ v["a"])
        np.testing.assert_allclose(taken, expected, rtol=1e-5)
        assert not np.asarray(other).any()


def test_branches_for_platforms_are_evaluated_but_not_read():
    def function(v, x):
        h = lax.platform_dependent(x @ v["a"], cpu=lambda h: h @ v["w"], default=jnp.tanh)
        return h @ v["b"]

    found = read(function, normal(0, a=(3, 5), w=(5, 5), b=(5, 2)), X)
    assert shapes(found) == {("a",): [(4, 5)]}


def test_a_gram_matrix_is_no_read_site():
    """It carries the group twice; what it is made of is read, for want of anything better."""

    def function(v, x):
        h = x @ v["a"]
        return jnp.einsum("ij,ij->", h.T @ h, v["w"])

    found = read(function, normal(0, a=(3, 5), w=(5, 5)), X)
    assert shapes(found) == {("a",): [(4, 5), (4, 5)]}


def test_another_function_is_refused():
    symmetries = find_symmetries(mlp, MLP, X)
    with pytest.raises(ValueError, match="found for another function"):
        read_sites(symmetries, lambda v, x: v["c"].sum())(MLP, X)
