"""One agent's state, and a model that remembers what it has seen, for the tests of training."""

import jax
import jax.numpy as jnp

import dimat_jax as dj
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import AgentState
from helpers.small_runs import linear_softmax, random_variables

AGENTS, SHAPE = 4, (4, 4, 1)


def number(key):
    """A key as two exact floats: what would be drawn from it, without compiling a generator."""
    return (jax.random.key_data(key) % 2**16).astype(float)


def remembering() -> dj.Model:
    """A model whose statistics are the mean of the last batch seen in training, and its key."""
    plain = linear_softmax()

    def init(key, x):
        start = {"mean": jnp.zeros(x.shape[1:]), "key": jnp.zeros(2)}
        return {**plain.init(key, x), "batch_stats": start}

    def apply(variables, x, train=False, key=None):
        logits, _ = plain.apply(variables, x)
        if not train:
            return logits, variables
        seen = {"mean": x.mean(0), "key": number(key)}
        return logits, {**variables, "batch_stats": seen}

    return dj.Model(init, apply)


def first_state(model, name, agents=AGENTS):
    """States of random variables at the first step."""
    variables = random_variables(model, SHAPE, agents)
    zero = jnp.zeros(agents, jnp.int32)
    return AgentState(
        variables=variables,
        optimizer=jax.vmap(OPTIMIZERS[name]().init)(variables["params"]),
        key=jax.random.split(jax.random.key(0), agents),
        step=zero,
        rate_scale=jnp.ones(agents),
        loss=jnp.zeros(agents),
        diverged=zero - 1,
    )
