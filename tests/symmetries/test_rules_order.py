"""Reductions, what depends on the order of units, and indices: a test a rule and a trap."""

import jax
import jax.numpy as jnp
import pytest
from helpers.symmetry_checks import assert_symmetric, hidden, normal, sizes
from jax import lax

pytestmark = pytest.mark.usefixtures("x64")


def test_symmetric_reductions_are_free_over_segments_too():
    def between(v, h):
        both = jnp.concatenate([h, h**2], 1)
        return h * jax.nn.logsumexp(both, axis=1, keepdims=True) / both.max(1, keepdims=True)

    assert sizes(hidden(between)) == [7]


@pytest.mark.parametrize(
    "ordered",
    [
        lambda h: h * jnp.argmax(h, axis=1, keepdims=True),
        lambda h: jnp.take_along_axis(h, jnp.argsort(h, axis=1), axis=1) + h,
        lambda h: jnp.cumsum(h, axis=1),
        lambda h: h[:, ::-1],
        lambda h: jnp.abs(jnp.fft.fft(h)),
        lambda h: jnp.concatenate([lax.top_k(h, 3)[0], h[:, :4]], 1),
        lambda h: jnp.diff(h, axis=1, append=0),
        lambda h: jnp.linalg.qr(h.T @ h)[0] @ h[0] + h,
    ],
    ids="argmax argsort cumsum rev fft top_k diff qr".split(),
)
def test_order_freezes(ordered):
    assert sizes(hidden(lambda v, h: ordered(h))) == []


def test_a_fourier_transform_freezes_what_it_transforms_only():
    """A filter for each channel over time, as in a global filter network."""

    def function(v, x):
        signal = jnp.tanh(jnp.einsum("bti,ih->bht", x, v["a"]))
        filtered = jnp.fft.irfft(jnp.fft.rfft(signal) * v["filter"])
        return jnp.einsum("bht,ho->bto", filtered, v["b"])

    v = normal(0, a=(3, 7), filter=(7, 4), b=(7, 2))
    found = assert_symmetric(function, v, normal(1, x=(2, 6, 3))["x"])
    assert sizes(found) == [7]
    assert not found.notes


def test_sort_freezes_its_result_only():
    found = hidden(lambda v, h: jnp.sort(jnp.tanh(h), axis=1))
    assert sizes(found) == [7]
    assert [site.path for site in found.groups["a"].sites] == ["a"]


def test_embedding_passes_whole_axes_only():
    def function(v, tokens):
        return jax.nn.softmax(v["e"][tokens] @ v["w"]) @ v["e"].T

    tokens = jnp.array([[0, 3, 1], [2, 2, 4]])
    found = assert_symmetric(function, normal(0, e=(5, 3), w=(3, 3)), tokens)
    assert sizes(found) == [3]
    assert [site.axis for site in found.groups["e"].sites] == [1, 0, 1]


def test_an_axis_that_a_gather_drops_without_an_index_freezes():
    """It takes the first position of it."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(), collapsed_slice_dims=(0, 1), start_index_map=(0,)
    )

    def function(v, x):
        return lax.gather(x @ v["a"], jnp.array([[0], [2]]), numbers, (1, 1))

    assert sizes(assert_symmetric(function, normal(0, a=(3, 7)), normal(1, x=(4, 3))["x"])) == []


def test_axes_whose_values_are_indices_freeze():
    def function(v, x):
        return v["table"][jnp.argmax(x @ v["a"], axis=1)]

    found = assert_symmetric(function, normal(0, a=(3, 5), table=(5, 2)), normal(1, x=(4, 3))["x"])
    assert sizes(found) == []


def test_dynamic_slice_and_update():
    def between(v, h):
        row = lax.dynamic_slice(h, (1, 0), (1, 7))
        return lax.dynamic_update_slice(h, row * 2, (2, 0))

    assert sizes(hidden(between)) == [7]
    assert sizes(hidden(lambda v, h: h.at[:, 2].set(0.0))) == []
    for change in ("add", "subtract", "multiply", "min", "max"):
        assert sizes(hidden(lambda v, h: getattr(h.at[2], change)(h[0]))) == [7]  # noqa: B023
