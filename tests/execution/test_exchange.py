"""What moves between agents, wherever they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import assert_trees_close, assert_trees_equal, execution_of

from dimat_jax.execution.exchange import mix, take
from dimat_jax.execution.placement import place


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_each_lane_takes_what_another_has(devices):
    execution = execution_of(8, devices)
    tree = {"x": np.arange(16.0).reshape(8, 2), "seen": np.arange(8)}
    sources = np.array([3, 0, 7, 7, 1, 2, 5, 6], np.int32)
    lanes = sources[execution.agent_of_lane]
    found = jax.jit(take)(place(execution, tree), jnp.asarray(lanes))
    assert_trees_equal(found, {name: x[lanes] for name, x in tree.items()})


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_each_lane_gets_an_average_in_the_leafs_own_dtype(devices):
    execution = execution_of(8, devices)
    rng = np.random.default_rng(0)
    matrix = rng.random((execution.all_lanes, execution.all_lanes))
    matrix[:, 8:] = 0  # of masked lanes nobody takes anything
    tree = {"x": rng.normal(size=(8, 2, 3)), "half": rng.normal(size=8)}
    placed = place(execution, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))
    placed["half"] = placed["half"].astype(jnp.bfloat16)
    found = jax.jit(mix)(jnp.asarray(matrix, jnp.float32), placed)
    assert found["half"].dtype == jnp.bfloat16
    expected = np.tensordot(matrix[:, :8], tree["x"], 1)
    assert_trees_close(found["x"], expected, 1e-6)
    np.testing.assert_allclose(
        np.asarray(found["half"], np.float32), matrix[:, :8] @ tree["half"], atol=0.1
    )
