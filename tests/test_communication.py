"""Bytes that agents send."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax import communication, topology

VARIABLES = {
    "params": {"kernel": np.zeros((3, 5), np.float32), "bias": np.zeros(5, np.float64)},
    "batch_stats": {"mean": jnp.zeros(7, jnp.bfloat16), "seen": np.zeros((), np.int32)},
}
BYTES = 15 * 4 + 5 * 8 + 7 * 2 + 4


def test_the_bytes_of_a_network_are_those_of_all_its_leaves():
    assert communication.variables_bytes(VARIABLES) == BYTES
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES)
    assert communication.variables_bytes(shapes) == BYTES


@pytest.mark.parametrize(
    ("graph", "messages"),
    [
        (topology.ring(8), 2),
        (topology.ring(2), 1),
        (topology.fully_connected(8), 7),
        (topology.disconnected(8), 0),
        (topology.star(8), 2 * 7 / 8),
        (topology.torus(4, 4), 4),
        (topology.hypercube(8), 3),
        (topology.exponential(8), 3),
        (topology.one_peer_exponential(8), 1),
    ],
    ids=lambda value: value.name if isinstance(value, topology.Topology) else str(value),
)
def test_an_agent_sends_its_network_to_each_that_averages_it(graph, messages):
    for round in range(2 * graph.period):
        sent = communication.merge_bytes(graph, round, VARIABLES)
        assert sent == pytest.approx(messages * BYTES)


@hypothesis.given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_messages_are_the_edges_of_the_round(period, agents, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((period, agents, agents)) * rng.integers(0, 2, (period, agents, agents))
    graph = topology.from_matrix(weights)
    for round in range(period + 1):
        edges = sum(len(graph.neighbors(agent, round)) for agent in range(agents))
        sent = communication.merge_bytes(graph, round, VARIABLES)
        assert sent == pytest.approx(edges * BYTES / agents)
