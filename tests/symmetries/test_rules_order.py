"""Reductions, what depends on the order of units, and indices: a test a rule and a trap."""

import jax
import jax.numpy as jnp
import pytest
from helpers.symmetry_checks import MLP, assert_symmetric, hidden, normal, sizes
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
    for change in ("add", "subtract", "multiply", "min", "max"):
        assert sizes(hidden(lambda v, h: getattr(h.at[2], change)(h[0]))) == [7]  # noqa: B023


def sequences(between, shapes=MLP):
    """Groups of x·a, something between for each of 4 sequences of 5, ·b."""

    def function(v, x, n):
        return jax.vmap(between)(jnp.tanh(x @ v["a"]), n) @ v["b"]

    return assert_symmetric(
        function, normal(0, **shapes), normal(1, x=(4, 5, 3))["x"], jnp.array([0, 3, 1, 2])
    )


@pytest.mark.parametrize(
    "between",
    [
        lambda h, n: h[n],
        lambda h, n: h[-n],
        lambda h, n: jnp.take(h, n, axis=0, mode="fill"),
        lambda h, n: h[jnp.array([0, 2]) + n // 2],
        lambda h, n: lax.dynamic_slice(h, (n, 0), (3, 7)),
        lambda h, n: lax.dynamic_index_in_dim(h, n, 0),
        lambda h, n: jnp.roll(h, n, 0),
        lambda h, n: lax.dynamic_update_slice(jnp.zeros((9, 7)), h, (n, 0)),
        lambda h, n: jnp.zeros((9, 7)).at[n].set(h[0]),
        lambda h, n: h.at[n].add(h[n + 1]),
        lambda h, n: h.at[n].multiply(h[0]) + h.at[n].max(h[1]),
        lambda h, n: jax.vmap(lambda k: h[(n + k) % 5])(jnp.arange(3)),
        lambda h, n: jnp.take_along_axis(h, jnp.full((1, 7), n), 0),
        lambda h, n: jnp.where(jnp.arange(5)[:, None] < n, h, h[n]),
        lambda h, n: jax.lax.fori_loop(0, 3, lambda i, s: s.at[i].set(h[n]), h),
    ],
    ids="""
    index negative take list slice index_in roll cache set add multiply twice along where loop
    """.split(),
)
def test_indexing_by_a_number_for_each_sequence_leaves_units_whole(between):
    assert sizes(sequences(between)) == [7]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda h: h.at[:, 2].set(0.0), [2, 4]),
        (lambda h: h.at[:, 3:].set(0.0), [3, 4]),
        (lambda h: h.at[:, 3:].multiply(2.0), [3, 4]),
        (lambda h: h.at[:, 2:5].set(jnp.tanh(h[:, 2:5])), [2, 2, 3]),
        (lambda h: jnp.zeros((4, 7)).at[:, :4].set(h[:, :4]).at[:, 4:].set(h[:, 4:] ** 2), [3, 4]),
        (lambda h: h.at[1:3, 2:5].add(1.0), [2, 2, 3]),
        (lambda h: h.at[:, -1].add(h[:, 0]), [5]),
        (lambda h: jnp.zeros_like(h).at[1:].set(h[:-1]), [7]),
        (lambda h: lax.dynamic_update_slice(h, jnp.tanh(h[:, 2:5]), (0, 2)), [2, 2, 3]),
        (lambda h: lax.dynamic_update_slice(h, h[:, :3] * 2, (0, 99)), [3]),
        (
            lambda h: jnp.concatenate([lax.dynamic_slice(h, (0, 4), (4, 3)), h[:, :4] ** 2], 1),
            [3, 4],
        ),
        (lambda h: h.at[:, jnp.array([0, 3])].set(0.0), []),
        (lambda h: h.at[:, jnp.argmax(h[0])].set(0.0), []),
    ],
    ids="unit part scaled squashed halves box last shift update moved slice list computed".split(),
)
def test_writing_into_part_of_an_axis(between, expected):
    """At a known position it is cut there; what nothing reads is no group."""
    assert sizes(hidden(lambda v, h: between(h))) == expected


@pytest.mark.parametrize("last", [lambda x: 3, lambda x: 3 + jnp.argmax(x[0]) // 9])
def test_a_counter_is_not_known_inside_a_loop(last):
    """Its first value is; the row that is taken by it is another one in each step."""

    def function(v, x):
        def step(i, h):
            return jnp.tanh(h @ lax.dynamic_index_in_dim(v["w"], i, keepdims=False))

        return lax.fori_loop(0, last(x), step, x @ v["a"]) @ v["b"]

    v = normal(0, a=(3, 7), w=(3, 7, 7), b=(7, 3))
    assert sizes(assert_symmetric(function, v, normal(1, x=(4, 3))["x"])) == [7]
