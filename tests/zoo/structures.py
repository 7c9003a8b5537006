"""Models of other shapes: graphs, sequences, ordinary differential equations."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jraph
from zoo.exhibits import Exhibit, attention, images, random_like


def equinox_of(module: Any, function: Any, *inputs: Any):
    """An Equinox module's arrays, and ``function(module, *inputs)`` of them."""
    arrays, static = eqx.partition(module, eqx.is_array)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    return lambda v, *xs: function(eqx.combine(v, static), *xs), random_like(shapes), inputs


def perceptron():
    """A multilayer perceptron."""
    module = eqx.nn.MLP(6, 4, width_size=16, depth=2, key=jax.random.key(0))
    return equinox_of(module, lambda m, x: jax.vmap(m)(x), images(3, 6))


def attending():
    """Self-attention by itself: what it reads and gives is fixed."""
    module = eqx.nn.MultiheadAttention(3, 12, key=jax.random.key(0))
    return equinox_of(module, lambda m, x: m(x, x, x), images(5, 12))


class Reader(eqx.Module):
    """A recurrent network with an output layer."""

    cell: Any
    head: eqx.nn.Linear


def recurrent(kind: Any):
    """The last hidden state of a scanned cell, read by an output layer."""
    keys = jax.random.split(jax.random.key(0))
    module = Reader(kind(6, 10, key=keys[0]), eqx.nn.Linear(10, 4, key=keys[1]))

    def function(module: Reader, x: Any) -> Any:
        zeros = jnp.zeros(10)
        state = (zeros, zeros) if kind is eqx.nn.LSTMCell else zeros
        state, _ = jax.lax.scan(lambda h, x: (module.cell(x, h), None), state, x)
        return module.head(state[0] if isinstance(state, tuple) else state)

    return equinox_of(module, function, images(5, 6))


def neural_ode():
    """A perceptron that says where states go, followed by a solver of adaptive steps."""
    field = eqx.nn.MLP(4, 4, width_size=16, depth=2, key=jax.random.key(0))

    def function(field: eqx.nn.MLP, x: Any) -> Any:
        term = diffrax.ODETerm(lambda t, y, args: jnp.tanh(jax.vmap(field)(y)))
        steps = diffrax.PIDController(rtol=1e-3, atol=1e-6)
        out = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0, 1, 0.1, x, stepsize_controller=steps)
        return out.ys[-1]

    return equinox_of(field, function, images(3, 4))


def graph_convolution():
    """Two graph convolutions (Kipf and Welling) on a small graph."""
    senders, receivers = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 3, 0, 2])

    def function(v: Any, nodes: Any) -> Any:
        graph = jraph.GraphsTuple(
            nodes, None, receivers, senders, None, jnp.array([4]), jnp.array([5])
        )
        hidden = jraph.GraphConvolution(lambda x: jax.nn.relu(x @ v["first"]))(graph)
        return jraph.GraphConvolution(lambda x: x @ v["second"])(hidden).nodes

    shapes = {"first": (6, 16), "second": (16, 3)}
    variables = random_like({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
    return function, variables, (images(4, 6),)


EXHIBITS = [
    Exhibit("MLP", "equinox", perceptron, 2 * [(16,)], "its two hidden layers"),
    Exhibit("Attention", "equinox", attending, attention(3, 4), "heads and their units"),
    Exhibit(
        "GRU", "equinox", lambda: recurrent(eqx.nn.GRUCell), [(10,)], "all gates share the state"
    ),
    Exhibit(
        "LSTM", "equinox", lambda: recurrent(eqx.nn.LSTMCell), [(10,)], "all gates share the state"
    ),
    Exhibit("Neural ODE", "diffrax", neural_ode, 2 * [(16,)], "the hidden layers of its field"),
    Exhibit("Graph convolution", "jraph", graph_convolution, [(16,)], "the hidden features"),
]
