"""One test a rule and a trap: the groups that must be found, and that they are symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.symmetry_checks import MLP, assert_symmetric, hidden, normal, sizes
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dimat_jax.symmetries import find_symmetries
from dimat_jax.symmetries.rules import RULES

pytestmark = pytest.mark.usefixtures("x64")


def test_elementwise_keeps_a_hidden_layer():
    assert sizes(hidden(lambda v, h: jnp.tanh(h) * 2 + jnp.where(h > 0, h, 0.1 * h))) == [7]


@pytest.mark.parametrize("name", ["log2", "one_minus_square", "polynomial", "reciprocal"])
def test_elementwise_functions_of_later_releases(name):
    if not hasattr(lax, name):
        pytest.skip(f"JAX {jax.__version__} has no lax.{name}.")
    more = [[1.0, 2.0, 3.0]] if name == "polynomial" else []
    assert sizes(hidden(lambda v, h: getattr(lax, name)(3 + jnp.tanh(h), *more))) == [7]


def test_a_gradient_taken_in_the_forward_pass():
    """That of tanh is a primitive of its own from JAX 0.11 on."""
    assert sizes(hidden(lambda v, h: jax.grad(lambda h: jnp.tanh(h).sum())(h))) == [7]


def test_size_one_axes_broadcast_without_ties():
    def function(v, x):
        return lax.mul(x[:, None, :] @ v["a"], jnp.ones((1, 1, 1))) @ v["b"]

    found = assert_symmetric(function, normal(0, **MLP), normal(1, x=(4, 3))["x"])
    assert sizes(found) == [7]


def test_two_layers_of_equal_size_are_not_tied():
    def function(v, x):
        return jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]

    v = normal(0, a=(3, 5), b=(5, 5), c=(5, 5))
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [5, 5]


def test_residual_ties():
    def function(v, x):
        h = x @ v["a"]
        return (h + jnp.tanh(h @ v["b"])) @ v["c"]

    v = normal(0, a=(3, 5), b=(5, 5), c=(5, 2))
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [5]


# Wildcards


def test_one_mask_in_two_layers_does_not_tie_their_heads():
    mask = np.tril(np.ones((4, 4), bool))

    def attention(v, x, name):
        q = jnp.einsum("td,dhk->thk", x, v[name + "q"])
        k = jnp.einsum("td,dhk->thk", x, v[name + "k"])
        scores = jnp.where(mask[None], jnp.einsum("thk,shk->hts", q, k), -1e9)
        return jnp.einsum("hts,sd,hde->te", jax.nn.softmax(scores), x, v[name + "v"])

    def function(v, x):
        return attention(v, attention(v, x, "1"), "2")

    shape = dict.fromkeys(("1q", "1k", "2q", "2k"), (3, 2, 5)) | dict.fromkeys(
        ("1v", "2v"), (2, 3, 3)
    )
    found = assert_symmetric(function, normal(0, **shape), normal(1, x=(4, 3))["x"])
    assert sizes(found) == [(2, 5), (2, 5), 2, 2, 3]


def test_a_uniform_constant_is_free_and_another_freezes_and_is_reported():
    assert sizes(hidden(lambda v, h: h * np.full(7, 2.0))) == [7]
    found = hidden(lambda v, h: h * np.arange(7.0))
    assert sizes(found) == []
    assert any("a captured constant float64[7]" in note for note in found.notes)
    assert {(part.path, part.axis) for part in found.frozen} >= {("a", 1), ("b", 0)}


def test_zero_and_minus_zero_are_not_uniform_and_not_a_number_is():
    signed = np.array([0.0, 0, 0, -0.0, 0, 0, 0])
    assert sizes(hidden(lambda v, h: jnp.arctan2(jnp.abs(h) * 0, signed) + h)) == []
    assert sizes(hidden(lambda v, h: jnp.where(np.full(7, np.nan) > 0, 0.0, h))) == [7]
    assert sizes(hidden(lambda v, h: h + np.full((0, 7), np.nan).sum(0))) == [7]


def test_captured_weights_are_reported():
    weights = normal(5, b=(7, 2))["b"]

    def function(v, x):
        return (x @ v["a"]) @ weights

    found = assert_symmetric(function, normal(0, a=(3, 7)), normal(1, x=(4, 3))["x"])
    assert sizes(found) == []
    assert any("a captured constant float64[7,2]" in note for note in found.notes)


def test_iota_freezes_its_own_dimension_only():
    assert sizes(hidden(lambda v, h: h + lax.broadcasted_iota(float, (4, 7), 0))) == [7]
    assert sizes(hidden(lambda v, h: h + lax.broadcasted_iota(float, (4, 7), 1))) == []


# Segments


def test_slices_and_concatenation_are_segments():
    def between(v, h):
        gate, value = jnp.split(h, [3], axis=1)
        return jnp.concatenate([jnp.tanh(value), gate], 1)

    assert sizes(hidden(between)) == [3, 4]


def test_segments_meet_in_their_common_refinement():
    def between(v, h):
        return jnp.concatenate([h[:, :2], h[:, 2:] ** 2], 1) + jnp.concatenate(
            [h[:, :5], h[:, 5:]], 1
        )

    assert sizes(hidden(between)) == [2, 2, 3]


def test_a_boundary_through_a_product_freezes():
    def between(v, h):
        h = h.reshape(4, 2, 6)
        return jnp.concatenate([(h - h.max(2, keepdims=True)).reshape(4, 12)[:, :5], x_rest(h)], 1)

    def x_rest(h):
        return h.reshape(4, 12)[:, 5:]

    assert sizes(hidden(between, {"a": (3, 12), "b": (12, 2)})) == []


def test_padding_is_a_free_segment_and_negative_padding_freezes():
    def longer(v, h):
        return jnp.pad(h, ((0, 0), (2, 3)))

    assert sizes(hidden(longer, {"a": (3, 7), "b": (12, 2)})) == [2, 3, 7]

    def shorter(v, h):
        return lax.pad(h, 0.0, ((0, 0, 0), (-1, 0, 0)))

    assert sizes(hidden(shorter, {"a": (3, 7), "b": (6, 2)})) == []


def test_padding_between_units_freezes():
    def apart(v, h):
        return lax.pad(h, 0.0, ((0, 0, 0), (0, 0, 1)))

    assert sizes(hidden(apart, {"a": (3, 7), "b": (13, 2)})) == []


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_padding_of_rows_by_rows_leaves_units_whole(mode):
    """JAX pads every axis in turn, those by nothing with empty slices."""
    assert sizes(hidden(lambda v, h: jnp.pad(h, ((1, 1), (0, 0)), mode=mode))) == [7]


def test_barriers_and_names_pass():
    def barrier(v, h):
        return lax.optimization_barrier((h, v["b"]))[0]

    assert sizes(hidden(barrier)) == [7]
    assert sizes(hidden(lambda v, h: checkpoint_name(h, "hidden"))) == [7]


def test_roll_and_stride():
    assert sizes(hidden(lambda v, h: jnp.roll(h, 2, axis=1))) == [2, 5]
    assert sizes(hidden(lambda v, h: h[:, ::2], {"a": (3, 7), "b": (4, 2)})) == []


def test_an_atom_tied_to_its_own_shift():
    assert sizes(hidden(lambda v, h: h + jnp.roll(h, 2, axis=1))) == []
    found = hidden(lambda v, h: h + jnp.roll(h, 3, axis=1), {"a": (3, 6), "b": (6, 2)})
    assert sizes(found) == [3]


def test_tile_and_repeat():
    found = hidden(lambda v, h: jnp.tile(h, (1, 2)), {"a": (3, 7), "b": (14, 2)})
    assert sizes(found) == [(7, 2), 7]
    found = hidden(lambda v, h: jnp.repeat(h, 2, 1), {"a": (3, 7), "b": (14, 2)})
    assert sizes(found) == [(7, 2), 7]


def test_crelu_permutes_both_halves():
    found = hidden(lambda v, h: jnp.concatenate([h, -h], 1), {"a": (3, 7), "b": (14, 2)})
    assert sizes(found) == [7]
    assert len(found.groups["a"].sites) == 3


# Products


def test_factors_that_nest_refine_and_others_freeze():
    def split(shape):
        def between(v, h):
            blocks = h.reshape(4, *shape)
            return (blocks - blocks.max(2, keepdims=True)).reshape(4, 12)

        return between

    shapes = {"a": (3, 12), "b": (12, 2)}
    assert sizes(hidden(split((2, 6)), shapes)) == [(2, 6), 2]
    nested = hidden(lambda v, h: split((2, 6))(v, h) + split((4, 3))(v, h), shapes)
    assert sizes(nested) == [(2, 2), (2, 2, 3), 2]
    assert sizes(hidden(lambda v, h: split((3, 4))(v, h) + split((4, 3))(v, h), shapes)) == []


def test_channel_shuffle():
    def shuffle(v, h):
        return h.reshape(4, 3, 4).swapaxes(1, 2).reshape(4, 12)

    assert sizes(hidden(shuffle, {"a": (3, 12), "b": (12, 2)})) == [(3, 4), 3]
    tied = hidden(lambda v, h: h + shuffle(v, h), {"a": (3, 12), "b": (12, 2)})
    assert sizes(tied) == []


def test_pixel_shuffle_keeps_the_channels():
    def function(v, x):
        y = jnp.einsum("hwc,cd->hwd", x, v["a"]).reshape(2, 3, 2, 2, 5)
        return y.transpose(0, 2, 1, 3, 4).reshape(4, 6, 5) @ v["b"]

    v = normal(0, a=(3, 20), b=(5, 2))
    assert sizes(assert_symmetric(function, v, normal(1, x=(2, 3, 3))["x"])) == [5]


def test_flatten_keeps_the_channel_factor():
    def function(v, x):
        return jnp.einsum("nhwc,cd->nhwd", x, v["a"]).reshape(2, -1) @ v["b"]

    found = assert_symmetric(
        function, normal(0, a=(3, 7), b=(12 * 7, 2)), normal(1, x=(2, 4, 3, 3))["x"]
    )
    assert sizes(found) == [7]
    assert found.groups["a"].sites[1].factor == (12, 7, 1)


def test_flatten_of_concatenated_channels():
    def function(v, x):
        h = jnp.concatenate([x @ v["a"], jnp.tanh(x @ v["b"])], -1)
        return h.reshape(2, -1) @ v["c"]

    v = normal(0, a=(3, 4), b=(3, 5), c=(54, 2))
    found = assert_symmetric(function, v, normal(1, x=(2, 3, 2, 3))["x"])
    assert sizes(found) == [4, 5]
    assert len(found.groups["a"].sites) == 1 + 6


def test_an_outer_product_of_two_layers():
    def function(v, x):
        return jnp.einsum("bi,bj->bij", x @ v["a"], x @ v["b"]).reshape(4, 15) @ v["c"]

    v = normal(0, a=(3, 3), b=(3, 5), c=(15, 2))
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [3, 5]


# One atom twice


def test_recurrent_kernel_is_permuted_on_both_sides():
    def function(v, x):
        h = jnp.tanh(x @ v["a"])
        for _ in range(2):
            h = jnp.tanh(h @ v["w"] + x @ v["a"])
        return h @ v["b"]

    v = normal(0, a=(3, 5), w=(5, 5), b=(5, 2))
    found = assert_symmetric(function, v, normal(1, x=(4, 3))["x"])
    assert sizes(found) == [5]
    assert [site.axis for site in found.groups["a"].sites if site.path == "w"] == [0, 1]


def test_a_matrix_plus_its_transpose():
    found = hidden(lambda v, h: h @ (v["w"] + v["w"].T), {**MLP, "w": (7, 7)})
    assert sizes(found) == [7]


def test_gram_matrix():
    def function(v, x):
        h = x @ v["a"]
        return jnp.sum((h.T @ h) * v["w"])

    v = normal(0, a=(3, 5), w=(5, 5))
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [5]


# Convolutions


def convolve(x, kernel, groups=1, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=numbers, feature_group_count=groups, **options
    )


def image_net(shapes, between):
    def function(v, x):
        return between(v, convolve(x, v["a"])).mean((1, 2)) @ v["b"]

    return assert_symmetric(function, normal(0, **shapes), normal(1, x=(2, 4, 4, 3))["x"])


def test_convolution():
    shapes = {"a": (3, 3, 3, 7), "w": (3, 3, 7, 5), "b": (5, 2)}
    assert sizes(image_net(shapes, lambda v, h: convolve(h, v["w"]))) == [5, 7]


def test_depthwise_convolution_shares_its_group():
    shapes = {"a": (3, 3, 3, 7), "w": (3, 3, 1, 7), "b": (7, 2)}
    assert sizes(image_net(shapes, lambda v, h: convolve(h, v["w"], groups=7))) == [7]


def test_depthwise_convolution_with_a_multiplier():
    shapes = {"a": (3, 3, 3, 5), "w": (3, 3, 1, 10), "b": (10, 2)}
    found = image_net(shapes, lambda v, h: convolve(h, v["w"], groups=5))
    assert sizes(found) == [(5, 2), 5]


def test_grouped_convolution():
    shapes = {"a": (3, 3, 3, 6), "w": (3, 3, 3, 10), "b": (10, 2)}
    found = image_net(shapes, lambda v, h: convolve(h, v["w"], groups=2))
    assert sizes(found) == [(2, 3), (2, 5), 2]


def test_batch_groups_freeze():
    shapes = {"a": (3, 3, 3, 7), "w": (3, 3, 7, 4), "b": (4, 2)}
    found = image_net(shapes, lambda v, h: convolve(h, v["w"], batch_group_count=2))
    assert sizes(found) == []


def test_pooling_over_space_passes_and_over_channels_freezes():
    def over_space(v, h):
        return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def over_channels(v, h):
        return lax.reduce_window(h, 0.0, lax.add, (1, 1, 1, 2), (1, 1, 1, 1), "SAME")

    shapes = {"a": (3, 3, 3, 7), "b": (7, 2)}
    assert sizes(image_net(shapes, over_space)) == [7]
    assert sizes(image_net(shapes, over_channels)) == []


# Random bits, unknown primitives


def test_dropout_freezes_and_is_reported():
    def function(v, x):
        h = x @ v["a"]
        return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h, 0) @ v["b"]

    found = assert_symmetric(function, normal(0, **MLP), normal(1, x=(4, 3))["x"])
    assert sizes(found) == []
    assert any("random bits" in note for note in found.notes)


def test_keys_and_counters_are_no_groups():
    def function(v, x):
        noise = jax.random.normal(jax.random.wrap_key_data(v["key"]), (4, 1))
        return (x @ v["a"] + noise) @ v["b"] + v["count"]

    v = normal(0, **MLP) | {"key": jnp.array([1, 2], jnp.uint32), "count": jnp.array(3)}
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [7]


def test_a_primitive_without_a_rule_freezes_what_it_touches_and_is_reported():
    def between(v, h):
        return h + jax.pure_callback(lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h)

    found = hidden(between)
    assert sizes(found) == []
    assert any("pure_callback" in note for note in found.notes)


def test_dead_code_and_unread_leaves():
    def function(v, x):
        jnp.linalg.qr(v["a"])
        jnp.cumsum(v["unread"])
        return (x @ v["a"]) @ v["b"]

    v = normal(0, **MLP, unread=(9,))
    found = assert_symmetric(function, v, normal(1, x=(4, 3))["x"])
    assert sizes(found) == [7]
    assert not found.notes


def test_outputs_are_frozen():
    found = find_symmetries(lambda v, x: x @ v["a"], normal(0, a=(3, 7)), jnp.ones((4, 3)))
    assert sizes(found) == []


def test_the_table_names_no_primitive_twice():
    assert len(RULES) > 120
