import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax.models.batch_norm import BatchNorm, batch_normalize

EPSILON = 1e-5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(2.0, 3.0, shape))


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5)], ids=str)
def test_it_is_the_layer_of_flax(x64, shape):
    x = normal(0, *shape)
    for running in (False, True):
        ours = BatchNorm(running, 0.9, EPSILON, jnp.float64)
        theirs = nn.BatchNorm(running, momentum=0.9, epsilon=EPSILON, param_dtype=jnp.float64)
        variables = theirs.init(jax.random.key(0), x)
        assert jax.tree.all(
            jax.tree.map(np.array_equal, variables, ours.init(jax.random.key(0), x))
        )
        leaves, structure = jax.tree.flatten(variables)
        variables = structure.unflatten([0.5 + abs(normal(i, 5)) for i, _ in enumerate(leaves)])

        def outcome(module, x=x, variables=variables):
            def loss(params, x):
                y, updated = module.apply(
                    {**variables, "params": params}, x, mutable=["batch_stats"]
                )
                return jnp.sum(jnp.sin(y)), (y, updated)

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

        for a, b in zip(*map(jax.tree.leaves, (outcome(theirs), outcome(ours))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_flow_through_the_statistics_too(x64):
    x, scale, bias = normal(0, 4, 3, 5), normal(1, 5), normal(2, 5)

    def plain(x, scale, bias):
        mean, variance = x.mean((0, 1)), x.var((0, 1))
        return (x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias, mean, variance

    def total(function):
        def of(*args):
            return sum(jnp.sum(jnp.sin(out)) for out in function(*args))

        return jax.grad(of, argnums=(0, 1, 2))(x, scale, bias)

    ours = total(lambda *args: batch_normalize(*args, EPSILON))
    for a, b in zip(total(plain), ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_a_constant_channel_has_no_variance_below_zero():
    x = jnp.full((64, 3), 1000.1, jnp.float32)
    y, _, variance = batch_normalize(x, jnp.ones(3), jnp.zeros(3), EPSILON)
    assert (np.asarray(variance) >= 0).all() and np.isfinite(np.asarray(y)).all()
