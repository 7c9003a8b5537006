"""One MLP and one convnet, written in Linen, NNX, Equinox and plain JAX; see `architectures.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from helpers.architectures_helpers import convolve, dense, images, max_pool, normal, weights


def _randomised(tree):
    """Random float64 values in place of every initial value, zeros and ones included."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = weights(**{str(i): leaf.shape for i, leaf in enumerate(leaves)})
    return jax.tree.unflatten(structure, list(drawn.values()))


def _linen(module, x):
    """The module's function, and random values for its variables; nothing is computed."""
    return module.apply, _randomised(jax.eval_shape(module.init, jax.random.key(0), x))


def _nnx(make, x):
    """As `_linen`, for a function that makes the module."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return lambda v, x: nnx.merge(graph, v)(x), _randomised(state), (x,)


def _equinox(make, x):
    """As `_linen`; Equinox modules take one example and hold their parameters."""
    abstract = eqx.filter_eval_shape(make, jax.random.key(0))
    variables, static = eqx.partition(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    function = lambda v, x: jax.vmap(eqx.combine(v, static))(x)  # noqa: E731
    return function, _randomised(variables), (x,)


def plain_mlp():
    """Two hidden layers."""
    shapes = dict(a=(5, 7), a_bias=(7,), b=(7, 11), b_bias=(11,), c=(11, 3), c_bias=(3,))

    def function(v, x):
        h = dense(v, "b", dense(v, "a", x, jax.nn.relu), jax.nn.relu)
        return dense(v, "c", h)

    return function, weights(**shapes), (normal(2, 5),)


def linen_mlp():
    """Two hidden layers."""
    module = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(11), nn.relu, nn.Dense(3)])
    return *_linen(module, normal(2, 5)), (normal(2, 5),)


def nnx_mlp():
    """Two hidden layers."""

    def make():
        rngs = nnx.Rngs(0)
        a, b, c = (nnx.Linear(*size, rngs=rngs) for size in ((5, 7), (7, 11), (11, 3)))
        return nnx.Sequential(a, nnx.relu, b, nnx.relu, c)

    return _nnx(make, normal(2, 5))


def equinox_mlp():
    """Two hidden layers; Equinox keeps kernels as `[out, in]`."""

    def make(key):
        a, b, c = (eqx.nn.Linear(*size, key=key) for size in ((5, 7), (7, 11), (11, 3)))
        relu = eqx.nn.Lambda(jax.nn.relu)
        return eqx.nn.Sequential([a, relu, b, relu, c])

    return _equinox(make, normal(2, 5))


def plain_convnet():
    """Two convolutions and a hidden layer."""
    shapes = dict(a=(3, 3, 3, 5), a_bias=(5,), b=(3, 3, 5, 7), b_bias=(7,))
    shapes |= dict(c=(7, 11), c_bias=(11,), d=(11, 2), d_bias=(2,))

    def function(v, x):
        h = jax.nn.relu(convolve(x, v["a"]) + v["a_bias"])
        h = jax.nn.relu(convolve(max_pool(h), v["b"]) + v["b_bias"]).mean((1, 2))
        return dense(v, "d", dense(v, "c", h, jax.nn.relu))

    return function, weights(**shapes), (images(),)


class _LinenConvnet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(7, (3, 3))(x)).mean((1, 2))
        return nn.Dense(2)(nn.relu(nn.Dense(11)(x)))


def linen_convnet():
    """Two convolutions and a hidden layer."""
    return *_linen(_LinenConvnet(), images()), (images(),)


class _NnxConvnet(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Conv(3, 5, (3, 3), rngs=rngs), nnx.Conv(5, 7, (3, 3), rngs=rngs)
        self.c, self.d = nnx.Linear(7, 11, rngs=rngs), nnx.Linear(11, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.a(x)), (2, 2), (2, 2))
        x = nnx.relu(self.b(x)).mean((1, 2))
        return self.d(nnx.relu(self.c(x)))


def nnx_convnet():
    """Two convolutions and a hidden layer."""
    return _nnx(lambda: _NnxConvnet(nnx.Rngs(0)), images())


class _EquinoxConvnet(eqx.Module):
    a: eqx.nn.Conv2d
    b: eqx.nn.Conv2d
    c: eqx.nn.Linear
    d: eqx.nn.Linear

    def __call__(self, x):
        x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(self.a(x)))
        x = jax.nn.relu(self.b(x)).mean((1, 2))
        return self.d(jax.nn.relu(self.c(x)))


def equinox_convnet():
    """Two convolutions and a hidden layer; Equinox keeps channels in front."""

    def make(key):
        return _EquinoxConvnet(
            eqx.nn.Conv2d(3, 5, 3, padding=1, key=key),
            eqx.nn.Conv2d(5, 7, 3, padding=1, key=key),
            eqx.nn.Linear(7, 11, key=key),
            eqx.nn.Linear(11, 2, key=key),
        )

    return _equinox(make, np.moveaxis(images(), -1, 1))


class _StochasticDepth(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dense(6)(x)
        branch = nn.Dense(6)(nn.Dropout(0.1)(nn.gelu(nn.Dense(9)(x)), deterministic))
        x = x + nn.Dropout(0.5, broadcast_dims=(1, 2))(branch, deterministic)
        return nn.Dense(2)(nn.LayerNorm()(x))


def stochastic_depth():
    """Stream and hidden units: at evaluation nothing is dropped."""
    return *_linen(_StochasticDepth(), normal(2, 5, 7)), (normal(2, 5, 7),)


class _BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(2)(x.mean((1, 2)))


def batch_norm():
    """One group: kernel, bias, the norm's scale and bias, its running statistics, the head."""
    function, variables = _linen(_BatchNorm(), images())
    return function, jax.tree.map(lambda leaf: abs(leaf) + 0.1, variables), (images(),)


def linen_lstm():
    """One group: Linen's optimised cell concatenates the gates' kernels itself."""
    x = normal(2, 4, 5)
    cell = nn.OptimizedLSTMCell(7, param_dtype=jnp.result_type(float))
    function, variables = _linen(nn.RNN(cell), x)
    outer = {"rnn": variables, "head": normal(7, 3)}
    return lambda v, x: function(v["rnn"], x)[:, -1] @ v["head"], outer, (x,)


def linen_attention():
    """Stream, heads, query/key size and value size (Linen gives both the same number)."""
    module = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=20, out_features=6)
    attention, variables = _linen(module, normal(2, 5, 6))
    outer = {"attention": variables, "stem": normal(7, 6), "head": normal(6, 2)}

    def function(v, x):
        h = x @ v["stem"]
        return (h + attention(v["attention"], h)) @ v["head"]

    return function, outer, (normal(2, 5, 7),)


LIBRARIES = {
    "plain_mlp": (plain_mlp, {7: 1, 11: 1}),
    "linen_mlp": (linen_mlp, {7: 1, 11: 1}),
    "nnx_mlp": (nnx_mlp, {7: 1, 11: 1}),
    "equinox_mlp": (equinox_mlp, {7: 1, 11: 1}),
    "plain_convnet": (plain_convnet, {5: 1, 7: 1, 11: 1}),
    "linen_convnet": (linen_convnet, {5: 1, 7: 1, 11: 1}),
    "nnx_convnet": (nnx_convnet, {5: 1, 7: 1, 11: 1}),
    "equinox_convnet": (equinox_convnet, {5: 1, 7: 1, 11: 1}),
    "stochastic_depth": (stochastic_depth, {6: 1, 9: 1}),
    "batch_norm": (batch_norm, {6: 1}),
    "linen_lstm": (linen_lstm, {7: 1}),
    "linen_attention": (linen_attention, {6: 1, 4: 1, (4, 5): 2}),
}
