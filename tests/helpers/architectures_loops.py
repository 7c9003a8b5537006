"""Small recurrent, looped and rematerialised architectures; see `architectures.py`."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.architectures_helpers import normal, weights


def lstm():
    """One group: state and output share units, the four fused gates are segments of one axis."""
    variables = weights(inward=(5, 28), recurrent=(7, 28), bias=(28,), head=(7, 3))

    def function(v, x):
        def step(carry, x_t):
            h, c = carry
            gates = x_t @ v["inward"] + h @ v["recurrent"] + v["bias"]
            write, forget, read, new = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(write) * jnp.tanh(new)
            h = jax.nn.sigmoid(read) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros((len(x), 7)), jnp.zeros((len(x), 7)))
        (h, _), _ = jax.lax.scan(step, start, x.swapaxes(0, 1))
        return h @ v["head"]

    return function, variables, (normal(2, 4, 5),)


def _gru(v, h, x_t, size):
    inward, recurrent = x_t @ v["inward"], h @ v["recurrent"] + v["bias"]
    reset, update = jnp.split(
        jax.nn.sigmoid(inward[:, : 2 * size] + recurrent[:, : 2 * size]), 2, -1
    )
    new = jnp.tanh(inward[:, 2 * size :] + reset * recurrent[:, 2 * size :])
    return (1 - update) * new + update * h


def gru():
    """One group: three fused gates as segments, the recurrent kernel on both axes."""
    variables = weights(inward=(5, 21), recurrent=(7, 21), bias=(21,), head=(7, 3))

    def function(v, x):
        def step(h, x_t):
            h = _gru(v, h, x_t, 7)
            return h, h

        _, outputs = jax.lax.scan(step, jnp.zeros((len(x), 7)), x.swapaxes(0, 1))
        return outputs.mean(0) @ v["head"]

    return function, variables, (normal(2, 4, 5),)


def bidirectional():
    """Forward and backward states are two groups, concatenated for the head."""
    variables = {
        "forward": weights(inward=(4, 21), recurrent=(7, 21), bias=(21,)),
        "backward": weights(inward=(4, 15), recurrent=(5, 15), bias=(15,)),
        "head": normal(12, 3),
    }

    def run(v, x, size, reverse):
        def step(h, x_t):
            h = _gru(v, h, x_t, size)
            return h, h

        start = jnp.zeros((x.shape[1], size))
        return jax.lax.scan(step, start, x, reverse=reverse)[1]

    def function(v, x):
        x = x.swapaxes(0, 1)
        states = [run(v["forward"], x, 7, False), run(v["backward"], x, 5, True)]
        return jnp.concatenate(states, -1).mean(0) @ v["head"]

    return function, variables, (normal(2, 3, 4),)


def scanned_layers():
    """The residual stream, one for all layers, and each layer's own hidden units."""
    variables = weights(stem=(5, 6), up=(3, 6, 8), bias=(3, 8), down=(3, 8, 6), head=(6, 2))

    def function(v, x):
        def layer(h, w):
            up, bias, down = w
            return h + jax.nn.relu(h @ up + bias) @ down, None

        h, _ = jax.lax.scan(layer, x @ v["stem"], (v["up"], v["bias"], v["down"]))
        return h @ v["head"]

    return function, variables, (normal(2, 5),)


def while_loop():
    """The looped kernel is tied on both axes; the number of turns is an input."""
    variables = weights(stem=(5, 6), a=(6, 6), bias=(6,), head=(6, 2))

    def function(v, x, turns):
        h = jax.lax.fori_loop(
            0, turns, lambda _, h: jnp.tanh(h @ v["a"] + v["bias"]), x @ v["stem"]
        )
        return h @ v["head"]

    return function, variables, (normal(2, 5), np.int32(3))


def symmetric_kernel():
    """`W + W.T` ties both axes of the kernel; the kernel stands on two axes of one group."""
    variables = weights(stem=(5, 6), a=(6, 6), head=(6, 2))

    def function(v, x):
        return jnp.tanh(jnp.tanh(x @ v["stem"]) @ (v["a"] + v["a"].T)) @ v["head"]

    return function, variables, (normal(2, 5),)


def cond():
    """Both branches read one hidden layer and must agree on the units that they return."""
    variables = weights(stem=(5, 6), a=(6, 7), b=(6, 7), head=(7, 2))

    def function(v, x, flag):
        h = jax.nn.relu(x @ v["stem"])
        h = jax.lax.cond(flag, lambda z: jnp.tanh(z @ v["a"]), lambda z: jnp.sin(z @ v["b"]), h)
        return h @ v["head"]

    return function, variables, (normal(2, 5), np.bool_(True))


def remat():
    """As without rematerialisation: residual stream and hidden layer."""
    variables = weights(stem=(5, 6), up=(6, 8), down=(8, 6), head=(6, 2))

    def function(v, x):
        block = jax.checkpoint(lambda h, up, down: h + jax.nn.silu(h @ up) @ down)
        return block(x @ v["stem"], v["up"], v["down"]) @ v["head"]

    return function, variables, (normal(2, 5),)


LOOPS = {
    "lstm": (lstm, {7: 1}),
    "gru": (gru, {7: 1}),
    "bidirectional": (bidirectional, {7: 1, 5: 1}),
    "scanned_layers": (scanned_layers, {6: 1, (3, 8): 1}),
    "while_loop": (while_loop, {6: 1}),
    "symmetric_kernel": (symmetric_kernel, {6: 1}),
    "cond": (cond, {6: 1, 7: 1}),
    "remat": (remat, {6: 1, 8: 1}),
}
