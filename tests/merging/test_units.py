"""Where preactivations are: which bias, which gain, and what cannot be corrected."""

import jax
import jax.numpy as jnp
import pytest

import dimat_jax as dj
from dimat_jax.merging.units import find_units

IMAGE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def units_of(model, x=IMAGE):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return find_units(dj.find_symmetries(model, variables, x), model, variables, x)


def units_of_function(function, params, x):
    return find_units(dj.find_symmetries(function, params, x), function, params, x)


@pytest.mark.parametrize(
    "name, norm, layers, gain",
    [
        ("mlp", "none", 3, "kernel"),
        ("mlp", "batch", 3, "scale"),
        ("vgg11", "none", 8, "kernel"),
        ("vgg11", "batch", 8, "scale"),
        ("vgg11", "layer", 8, "scale"),
        ("resnet20", "none", 21, "kernel"),
        ("resnet20", "batch", 21, "scale"),
    ],
)
def test_every_hidden_layer_of_the_zoo_is_found(name, norm, layers, gain):
    units = units_of(dj.models.make(name, num_classes=4, width=0.125, norm=norm))
    assert len(units.found) == layers and units.missing == ()
    for unit in units.found:
        assert unit.bias.endswith("/bias") and unit.gain.endswith(f"/{gain}")
        assert unit.bias.rpartition("/")[0] == unit.gain.rpartition("/")[0]


def test_attention_has_a_head_and_a_unit_axis():
    units = units_of(dj.models.vit(num_classes=4))
    query = next(u for u in units.found if u.bias.endswith("query/bias"))
    assert len(query.shape) == 2 and query.dims == (2, 3) and query.axes == (1, 2)
    assert units.missing == ()


KERNELS = {"a": jnp.ones((5, 6)), "b": jnp.ones((6, 7)), "out": jnp.ones((7, 3))}
PARAMS = KERNELS | {"bias_a": jnp.ones(6), "bias_b": jnp.ones((1, 7))}


def plain(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"] + p["bias_a"]) @ p["b"] + p["bias_b"]) @ p["out"]


def no_bias(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias_b"]) @ p["out"]


def used_twice(p, x):
    return plain(p, x) + jnp.square(x @ p["a"]) @ p["b"] @ p["out"]


def normalised_weights(p, x):
    kernel = p["a"] / jnp.linalg.norm(p["a"])
    return plain(p | {"a": kernel}, x)


def in_a_loop(p, x):
    def body(carry, _):
        return carry + jax.nn.relu(x @ p["a"] + p["bias_a"]), None

    hidden, _ = jax.lax.scan(body, jnp.zeros((2, 6)), length=3)
    return jax.nn.relu(hidden @ p["b"] + p["bias_b"]) @ p["out"]


@pytest.mark.parametrize(
    "function, found, missing",
    [
        (plain, {("bias_a", "a"), ("bias_b", "b")}, set()),
        (no_bias, {("bias_b", "b")}, {"a"}),
        (used_twice, set(), {"a", "b"}),
        (normalised_weights, {("bias_b", "b")}, {"a"}),
        (in_a_loop, {("bias_b", "b")}, {"a", "bias_a"}),
        (jax.jit(jax.remat(plain)), {("bias_a", "a"), ("bias_b", "b")}, set()),
    ],
)
def test_what_cannot_be_corrected_is_said(function, found, missing):
    units = units_of_function(function, PARAMS, jnp.ones((2, 5)))
    assert {(unit.bias, unit.gain) for unit in units.found} == found
    assert set(units.missing) == missing


def test_axes_of_size_one_and_the_order_of_axes_do_not_matter():
    def channels_first(p, x):
        hidden = jax.lax.conv(x, p["kernel"], (1, 1), "SAME") + p["bias"]
        return jax.nn.relu(hidden).mean((2, 3)) @ p["out"]

    params = {
        "kernel": jnp.ones((6, 3, 3, 3)),
        "bias": jnp.ones((6, 1, 1)),
        "out": jnp.ones((6, 2)),
    }
    (unit,) = units_of_function(channels_first, params, jnp.ones((2, 3, 8, 8))).found
    assert (unit.bias, unit.gain) == ("bias", "kernel")
    assert unit.dims == (1, None, None) and unit.axes == (0, None, None)
