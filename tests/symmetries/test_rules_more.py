"""Rules of what JAX and Equinox have besides: matrices, ragged products, functions of one's own."""

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.symmetry_checks import MLP, assert_symmetric, hidden, normal, sizes
from jax import lax

from dimat_jax.symmetries import rule
from dimat_jax.symmetries.axes import freeze, mixed_axis
from dimat_jax.symmetries.rules import RULES

pytestmark = pytest.mark.usefixtures("x64")

X = normal(9, x=(6, 3))["x"]
ROOT = np.random.default_rng(3).normal(size=(6, 6))
MATRIX = ROOT @ ROOT.T + np.eye(6)


def between(function, shapes=MLP, tolerance=1e-10, **more):
    """Groups of x·a, a function of that, of a matrix and of variables, ·b."""

    def network(v, x, m):
        return function(x @ v["a"], m, v) @ v["b"]

    return assert_symmetric(network, normal(0, **shapes, **more), X, MATRIX, tolerance=tolerance)


# Ragged products


@pytest.mark.parametrize("given", [True, False], ids=["input", "constant"])
def test_a_mixture_of_experts_by_ragged_products(given):
    """The stream, and the experts' hidden units: the same for all, by whose order rows go."""

    def function(v, x, counts):
        counts = counts if given else jnp.array([2, 0, 4])
        h = jax.nn.relu(lax.ragged_dot(x @ v["stem"], v["up"], counts))
        return lax.ragged_dot(h, v["down"], counts) @ v["head"]

    v = normal(0, stem=(3, 5), up=(3, 5, 7), down=(3, 7, 5), head=(5, 2))
    found = assert_symmetric(function, v, X, jnp.array([2, 0, 4]))
    assert sizes(found) == [5, 5, 7]


def test_the_gradient_of_a_ragged_product_has_the_groups_first():
    def function(v, x, counts):
        loss = lambda up: (lax.ragged_dot(x @ v["stem"], up, counts) @ v["head"]).sum()  # noqa: E731
        return jax.grad(loss)(v["up"]).sum(0).max(0).sum()

    v = normal(0, stem=(3, 5), up=(3, 5, 7), head=(7, 2))
    found = assert_symmetric(function, v, X, jnp.array([2, 0, 4]))
    assert sizes(found) == [2, 5, 7]


# Reductions by functions of one's own


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: a + b, [7]),
        (jnp.maximum, [7]),
        (lambda a, b: b, []),
        (lambda a, b: a + 2 * b, []),
        (lambda a, b: jnp.ones(()), []),
    ],
    ids="sum maximum last weighted constant".split(),
)
def test_a_reduction_by_a_function_passes_if_it_is_symmetric(function, expected):
    """That of units; over other axes any function may be used."""
    one = jnp.ones(()) * 0.5  # no neutral element, by which JAX would know the function
    found = hidden(lambda v, h: h * lax.reduce(h, one, function, (1,))[:, None])
    assert sizes(found) == expected
    assert sizes(hidden(lambda v, h: h + lax.reduce(h, one, function, (0,)))) == [7]


def test_a_reduction_of_several_operands():
    def by(function):
        return lambda v, h: h * sum(lax.reduce((h, h**2), (0.5, 1.5), function, (1,)))[:, None]

    assert sizes(hidden(by(lambda a, b: (a[0] + b[0], a[1] * b[1])))) == [7]
    assert sizes(hidden(by(lambda a, b: (a[0] + b[1], a[1] * b[0])))) == []


def test_windows_by_a_function():
    def pooled(h):
        return lax.reduce_window(h, 0.0, lambda a, b: a + b * 1.0, (2, 1), (1, 1), "SAME")

    assert sizes(hidden(lambda v, h: pooled(h))) == [7]
    assert sizes(hidden(lambda v, h: pooled(h.T).T)) == []


# Linear algebra


@pytest.mark.parametrize(
    "function",
    [
        lambda h, m, v: jnp.linalg.solve(m, h),
        lambda h, m, v: jax.scipy.linalg.solve_triangular(m, h, lower=True),
        lambda h, m, v: lax.linalg.triangular_solve(m, h.T).T,
        lambda h, m, v: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(m), True), h),
        lambda h, m, v: jax.scipy.sparse.linalg.cg(lambda y: m @ y, h)[0],
    ],
    ids="solve triangular right cholesky cg".split(),
)
def test_right_hand_sides_of_linear_equations(function):
    found = between(function)
    assert sizes(found) == [7]
    assert not found.notes


@pytest.mark.parametrize(
    "function",
    [
        lambda m: jnp.linalg.cholesky(m),
        lambda m: jnp.linalg.solve(m, jnp.ones((7, 6, 1))),
        lambda m: jnp.linalg.inv(m),
        lambda m: jnp.linalg.eigvalsh(m)[..., None],
        lambda m: jnp.linalg.svd(m)[1][..., None],
        lambda m: jnp.linalg.qr(m)[1],
        lambda m: jnp.linalg.slogdet(m)[1][..., None, None],
    ],
    ids="cholesky solve inv eigvalsh svd qr slogdet".split(),
)
def test_a_matrix_for_each_unit(function):
    found = between(
        lambda h, m, v: function(jnp.einsum("th,ij->hij", h**2 + 1, m)).sum((1, 2)), tolerance=1e-8
    )
    assert sizes(found) == [7]


def test_a_matrix_of_units_freezes_and_is_reported():
    found = between(lambda h, m, v: jnp.linalg.solve(h.T @ h + 9 * jnp.exp(-(h.T @ h)), h.T).T)
    assert sizes(found) == []
    assert "no rule for the primitive 'lu'" in " ".join(found.notes)


def test_an_implicit_layer():
    """An equilibrium, found in a loop, with a linear solver for its derivative."""

    def function(v, x):
        def gap(y):
            return y - 0.1 * jnp.tanh(y @ v["w"]) - x @ v["a"]

        def solve(gap, y):
            return lax.fori_loop(0, 30 + x.shape[0] * 0, lambda i, y: y - gap(y), y)

        def tangent(g, y):
            return jax.scipy.sparse.linalg.gmres(g, y)[0]

        return lax.custom_root(gap, x @ v["a"], solve, tangent) @ v["b"]

    assert sizes(assert_symmetric(function, normal(0, **MLP, w=(7, 7)), X)) == [7]


# Equinox


@pytest.mark.parametrize("kind", ["lax", "bounded", "checkpointed"])
@pytest.mark.parametrize("vmapped", [False, True], ids=["whole", "vmapped"])
def test_loops_of_equinox(kind, vmapped):
    """`select_if_vmap`, `unvmap_any` and `maybe_set` are in them."""

    def trajectory(v, y):
        def step(state):
            i, y, seen = state
            y = y + 0.1 * jnp.tanh(y @ v["up"]) @ v["down"]
            return i + 1, y, seen.at[i].set(y)

        start = 0, y, jnp.zeros((5, *y.shape))
        buffers = lambda state: state[2]  # noqa: E731
        return eqxi.while_loop(
            lambda state: state[0] < 3 + (state[1].sum() > 99),
            step,
            start,
            max_steps=5,
            kind=kind,
            buffers=None if kind == "lax" else buffers,
        )

    def function(v, x):
        run = lambda y: trajectory(v, y)[1:]  # noqa: E731
        last, seen = (jax.vmap(run) if vmapped else run)(x @ v["a"])
        return last @ v["b"] + seen.sum(1 if vmapped else 0) @ v["b"]

    found = assert_symmetric(function, normal(0, **MLP, up=(7, 5), down=(5, 7)), X)
    assert sizes(found) == [5, 7]
    assert not found.notes


def test_reductions_and_identities_of_equinox():
    def scaled(v, h):
        size = eqxi.unvmap_max((h * 9).astype(int)) + eqxi.unvmap_any(h > 3)
        return eqxi.nontraceable(h) * (size + eqxi.unvmap_all(h > -99))

    assert sizes(hidden(scaled)) == [7]


def test_a_module_that_raises_is_reported():
    """`eqx.error_if` hands the units to a callback."""
    found = hidden(lambda v, h: eqx.error_if(h, h[0, 0] > 1e9, "too large"))
    assert sizes(found) == [] and "pure_callback" in found.notes[0]


# From outside


def test_a_rule_from_outside():
    """A primitive of one's own, that reverses rows and doubles units."""
    mine = jax.extend.core.Primitive("mine")
    mine.def_impl(lambda x: 2 * x[::-1])
    mine.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(
        mine, jax.interpreters.mlir.lower_fun(lambda x: 2 * x[::-1], multiple_results=False)
    )
    assert sizes(hidden(lambda v, h: mine.bind(h))) == []

    @rule("mine")
    def _mine(equation, x):
        freeze(x[0], equation.cause)
        return [(mixed_axis(equation.shapes[0][0], equation.cause), *x[1:])]

    try:
        assert sizes(hidden(lambda v, h: mine.bind(h))) == [7]
    finally:
        del RULES["mine"]
