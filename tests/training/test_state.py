"""What an agent carries from step to step, and what it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.agents import AGENTS, SHAPE, remembering
from helpers.small_runs import assert_trees_equal, linear_softmax

import dimat_jax as dj
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import count_loss, init_population

BATCH = {"inputs": jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)}


@pytest.mark.parametrize("same", [False, True])
def test_initial_states_differ_between_agents_unless_they_must_not(same):
    task, optimizer = dj.classification(remembering()), OPTIMIZERS["momentum"]()
    state = init_population(task, optimizer, jax.random.key(0), AGENTS, BATCH, same=same)
    kernels = np.asarray(state.variables["params"]["kernel"])
    assert kernels.shape == (AGENTS, 16, 4)
    assert len({kernel.tobytes() for kernel in kernels}) == (1 if same else AGENTS)
    keys = np.asarray(jax.random.key_data(state.key))
    assert len({key.tobytes() for key in keys}) == AGENTS
    assert (state.step == 0).all() and (state.diverged == -1).all() and (state.loss == 0).all()
    zeros = jax.tree.map(jnp.zeros_like, state.variables["params"])
    assert_trees_equal(state.optimizer.trace, zeros)


def test_a_population_can_be_made_of_shapes_only():
    shapes = jax.eval_shape(
        lambda key: init_population(
            dj.classification(linear_softmax()), OPTIMIZERS["adam"](), key, AGENTS, BATCH
        ),
        jax.random.key(0),
    )
    assert shapes.variables["params"]["kernel"].shape == (AGENTS, 16, 4)
    assert shapes.optimizer.nu["bias"].shape == (AGENTS, 4)


@pytest.mark.parametrize(
    ("diverged", "loss", "expected"),
    [(-1, 2.0, -1), (-1, np.inf, 7), (-1, np.nan, 7), (3, np.nan, 3), (3, 2.0, 3)],
)
def test_a_loss_is_added_and_the_first_that_is_not_finite_noted(diverged, loss, expected):
    total, first = count_loss(jnp.ones(()), jnp.int32(diverged), jnp.asarray(loss), jnp.int32(7))
    np.testing.assert_array_equal(total, 1 + loss)
    assert int(first) == expected


def test_a_sum_of_losses_keeps_its_dtype():
    total, _ = count_loss(jnp.ones(()), jnp.int32(-1), jnp.ones((), jnp.bfloat16), jnp.int32(0))
    assert total.dtype == jnp.float32
