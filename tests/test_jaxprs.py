"""What the primitives that hold jaxprs mean, whatever this JAX release calls their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dimat_jax.jaxprs import branches_of, called, scan_of, while_of

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
