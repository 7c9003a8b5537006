"""The evaluator, and what primitives that hold jaxprs mean, whatever JAX calls their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dimat_jax.jaxprs import (
    bind,
    branches_of,
    called,
    enter_or_bind,
    evaluate,
    named_call,
    named_jit,
    scan_of,
    while_of,
)

X = jnp.arange(12.0).reshape(3, 4)


def equation(function, *args, name):
    """The first equation of a primitive in a function's jaxpr."""
    eqns = jax.make_jaxpr(function)(*args).jaxpr.eqns
    return next(eqn for eqn in eqns if eqn.primitive.name == name)


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, g: (3 * g,))


@jax.custom_batching.custom_vmap
def squared(x):
    return x * x


squared.def_vmap(lambda size, batched, x: (x * x, True))


@pytest.mark.parametrize(
    "function",
    [jax.jit(jnp.tanh), jax.checkpoint(jnp.tanh), doubled, tripled, squared]
    + [lax.composite(jnp.tanh, "my.tanh")],
    ids="jit checkpoint custom_jvp custom_vjp custom_vmap composite".split(),
)
def test_what_just_evaluates_a_jaxpr(function):
    (eqn,) = jax.make_jaxpr(function)(X).jaxpr.eqns
    inner = called(eqn)
    (result,) = jax.core.eval_jaxpr(inner.jaxpr, inner.consts, X)
    np.testing.assert_array_equal(result, function(X))


def test_what_does_more_than_evaluate_a_jaxpr():
    for function in (lambda x: lax.map(jnp.tanh, x), lambda x: lax.reduce(x, 0.0, lax.add, (0,))):
        assert called(jax.make_jaxpr(function)(X).jaxpr.eqns[-1]) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    """Two constants, one carry, one input, one output."""

    def function(a, b, c, x):
        def step(carry, x):
            return carry * a + b, carry + x

        return lax.scan(step, c, x, reverse=reverse, unroll=2)

    one = X[0]
    eqn = equation(function, one, one, one, X, name="scan")
    scan = scan_of(eqn)
    assert (scan.num_consts, scan.num_carry) == (2, 1)
    assert (scan.length, scan.reverse, scan.unroll) == (3, reverse, 2)
    assert len(scan.body.jaxpr.invars) == 4
    assert scan.split("abcx") == (["a", "b"], ["c"], ["x"])


def test_the_scan_of_a_gradient():
    """It is made by other code of JAX, with its parts nested."""

    def function(c, x):
        return lax.scan(jax.checkpoint(lambda c, x: (c * x, None)), c, x)[0].sum()

    eqns = jax.make_jaxpr(jax.grad(function))(X[0], X).jaxpr.eqns
    scans = [scan_of(eqn) for eqn in eqns if eqn.primitive.name == "scan"]
    assert [scan.reverse for scan in scans] == [False, True]
    assert all(scan.length == 3 and scan.num_carry == 1 for scan in scans)
    assert scans[1].split(range(3)) == ([], [0], [1, 2])


def test_while():
    def function(limit, a, x):
        return lax.while_loop(lambda x: x.sum() < limit, lambda x: x + a, x)

    loop = while_of(equation(function, 9.0, X, X, name="while"))
    assert loop.split("lax") == (["l"], ["a"], ["x"])
    assert loop.cond.out_avals[0].dtype == bool and loop.body.out_avals[0].shape == X.shape


def test_branches():
    def function(x):
        return lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)

    names = [
        b.jaxpr.eqns[0].primitive.name for b in branches_of(equation(function, X, name="cond"))
    ]
    assert names == ["cos", "sin"]  # The index 0 is false.


CONSTANT = np.arange(4.0, dtype=np.float32)


def nested(x):
    """A captured constant, literals, an output that is an input, calls within calls."""

    @jax.checkpoint
    def inner(x):
        return jax.jit(lambda x: jnp.sin(x) * CONSTANT)(x) + 1.0

    return tripled(inner(x)), x, 2.0


def test_evaluating_arrays_gives_what_the_function_gives():
    closed = jax.make_jaxpr(nested)(X)
    seen = []

    def hook(path, eqn, operands):
        seen.append((path, eqn.primitive.name))
        return enter_or_bind(path, eqn, operands, hook)

    for found, expected in zip(evaluate(closed, [X], hook), nested(X), strict=True):
        np.testing.assert_array_equal(found, expected)
    paths = [path for path, _ in seen]
    assert len(set(paths)) == len(paths) and max(map(len, paths)) == 3
    # A call comes before what is in it, and what is in it is one index deeper.
    sine = next(path for path, name in seen if name == "sin")
    names = dict(seen)
    assert [names[sine[:depth]] for depth in (1, 2, 3)] == ["remat2", "jit", "sin"]


def test_a_hook_may_replace_an_equation_anywhere():
    def hook(path, eqn, operands):
        if eqn.primitive.name == "sin":
            return [jnp.cos(*operands)]
        return enter_or_bind(path, eqn, operands, hook)

    found, *_ = evaluate(jax.make_jaxpr(nested)(X), [X], hook)
    np.testing.assert_allclose(found, 3 * (jnp.cos(X) * CONSTANT + 1), rtol=1e-6)


def test_evaluating_what_is_known_of_values():
    """Which inputs an output depends on: values are sets, constants know nothing."""

    def function(x, y, z):
        return x + 1.0, jax.jit(jnp.multiply)(x, y), CONSTANT * 2, z

    def hook(path, eqn, operands):
        inner = called(eqn)
        if inner is not None:
            return evaluate(inner, operands, hook, lambda _: frozenset(), path)
        return [frozenset().union(*operands)] * len(eqn.outvars)

    closed = jax.make_jaxpr(function)(X, X, X)
    found = evaluate(closed, [frozenset(name) for name in "xyz"], hook, lambda _: frozenset())
    assert found == [{"x"}, {"x", "y"}, set(), {"z"}]


def test_an_operand_that_is_read_twice_and_several_results():
    (eqn,) = jax.make_jaxpr(lambda x: x * x)(X).jaxpr.eqns
    np.testing.assert_array_equal(*bind(eqn, [X, X]), X * X)
    (eqn,) = jax.make_jaxpr(lambda x: jnp.split(x, 2, axis=1))(X).jaxpr.eqns
    parts = enter_or_bind((0,), eqn, [X], lambda path, eqn, operands: bind(eqn, operands))
    np.testing.assert_array_equal(jnp.concatenate(parts, 1), X)


@pytest.mark.parametrize("prevent_cse", [True, False, (True, False)])
def test_what_is_computed_once_more_gets_the_barrier_that_jax_gives_it(prevent_cse):
    def loss(x, y):
        return jax.checkpoint(lambda x, y: jnp.sin(jnp.sin(x) * y), prevent_cse=prevent_cse)(x, y)

    def again(*args):
        def hook(path, eqn, operands):
            return enter_or_bind(path, eqn, operands, hook)

        closed = jax.make_jaxpr(gradient)(*args)
        return evaluate(closed, args, hook)[0]

    gradient = jax.grad(lambda x, y: loss(x, y).sum())
    ours, jaxs = (jax.jit(f).lower(X, X).as_text() for f in (again, gradient))
    assert ours.count("optimization_barrier") == jaxs.count("optimization_barrier")
    barred = [line.count("%") for line in ours.splitlines() if "optimization_barrier" in line]
    assert barred == [
        line.count("%") for line in jaxs.splitlines() if "optimization_barrier" in line
    ]
    np.testing.assert_allclose(again(X, X), gradient(X, X), rtol=1e-6)


def test_calls_of_named_functions():
    @named_jit
    def halved(x):
        return x / 2

    @jax.jit
    def other(x):
        return x / 2

    for function, name in ((halved, "halved"), (jax.vmap(halved), "halved"), (other, None)):
        (eqn,) = jax.make_jaxpr(function)(X).jaxpr.eqns
        assert named_call(eqn) == name
    composite = lax.composite(jnp.tanh, "dimat_jax.halved")
    assert named_call(jax.make_jaxpr(composite)(X).jaxpr.eqns[0]) is None  # Not ours, not a jit.
