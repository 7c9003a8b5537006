"""Distance from consensus, and divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax.simulation.measure import Diverged, check_finite, consensus_distance, is_finite


def test_the_distance_from_consensus_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 4))
    variables = {
        "params": {"a": jnp.asarray(kernel), "b": jnp.asarray(bias)},
        "batch_stats": {"mean": jnp.asarray(rng.normal(size=(5, 2)))},
    }
    flat = np.concatenate([kernel.reshape(5, -1), bias], 1)
    expected = np.sqrt((np.linalg.norm(flat - flat.mean(0), axis=1) ** 2).mean())
    assert consensus_distance(variables) == pytest.approx(expected, rel=1e-6)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), variables)
    assert consensus_distance(same) == 0


def test_masked_lanes_are_not_counted():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    all_of_them = consensus_distance({"params": {"a": kernel[:5]}})
    assert consensus_distance({"params": {"a": kernel}}, agents=5) == pytest.approx(all_of_them)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_network_is_finite_if_its_squares_are(value):
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    assert is_finite({"params": params})
    assert not is_finite({"params": params | {"a": params["a"].at[1].set(value)}})


def test_the_agent_that_diverged_first_is_named():
    check_finite(np.full(3, -1), np.full(3, True), 0.1)
    with pytest.raises(ValueError, match="agent 2 was not finite at step 1"):
        check_finite(np.array([-1, 5, 0, 3]), np.full(4, False), 0.1)


def test_parameters_that_are_not_finite_are_said_where_no_loss_was():
    with pytest.raises(Diverged, match="parameters of agent 1 are not finite.*rate, 0.5"):
        check_finite(np.full(3, -1), np.array([True, False, False]), 0.5)
