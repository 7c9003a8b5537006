"""Messages and bytes that agents send, by method and graph."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.algorithm_table import GOSSIP, GOSSIPING, MERGES, MERGING

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, communication
from dimat_jax.algorithms.communication import rounds_per_epoch, sent, traffic
from dimat_jax.algorithms.fedavg import federated_averaging

VARIABLES = {
    "params": {"kernel": np.zeros((3, 5), np.float32), "bias": np.zeros(5, np.float64)},
    "batch_stats": {"mean": jnp.zeros(7, jnp.bfloat16), "seen": np.zeros((), np.int32)},
}
PARAMS, STATISTICS, NUMBER = 15 * 4 + 5 * 8, 7 * 2 + 4, 4
EVERYTHING = PARAMS + STATISTICS


def size_of(row) -> int:
    """Bytes of a message, from a method's update rule as the table has it."""
    message = row.message
    content = message.parameters * PARAMS + message.statistics * STATISTICS
    return content + message.scalars * NUMBER


PART = GOSSIPING | MERGES
MESSAGE = {
    name: size_of(row)
    for name, row in (GOSSIP | MERGING).items()
    if name not in ("local_sgd", "final_wa", "final_dimat")
    and not name.startswith("relay_sgd")
    and not (row.message.to_everyone or row.message.to_server)
}
"""Bytes of a message of the methods that work on the given graph."""

NEIGHBORS = {
    "ring 8": (topology.ring(8), 2),
    "ring 2": (topology.ring(2), 1),
    "fully connected": (topology.fully_connected(8), 7),
    "disconnected": (topology.disconnected(8), 0),
    "star": (topology.star(8), 2 * 7 / 8),
    "torus": (topology.torus(4, 4), 4),
    "hypercube": (topology.hypercube(8), 3),
    "exponential": (topology.exponential(8), 3),
    "one-peer exponential": (topology.one_peer_exponential(8), 1),
}
"""A graph, and the neighbours of an agent in the mean."""


def test_the_bytes_of_a_network_are_those_of_all_its_leaves():
    assert communication.variables_bytes(VARIABLES) == EVERYTHING
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES)
    assert communication.variables_bytes(shapes) == EVERYTHING


@pytest.mark.parametrize("method", MESSAGE)
@pytest.mark.parametrize(("graph", "neighbors"), NEIGHBORS.values(), ids=NEIGHBORS)
def test_a_message_goes_to_each_that_hears_from_its_sender(method, graph, neighbors):
    for first in range(graph.period):
        for number in (0, 1, 2 * graph.period + 1):
            message = PART[method].message
            found = traffic(message, graph, first, number, VARIABLES)
            sent_each = number * neighbors * (2 if method == "cga" else 1)  # a model, a gradient
            assert found.exchanges == number
            assert found.messages.sum() == pytest.approx(sent_each * graph.agents)
            assert found.total == found.bytes.sum() == MESSAGE[method] * found.messages.sum()
            mean = sent(message, graph, first, number, VARIABLES)
            assert mean == pytest.approx(sent_each * MESSAGE[method])


@hypothesis.given(
    st.integers(1, 3), st.integers(1, 6), st.integers(0, 4), st.integers(0, 9), st.integers(0, 99)
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_messages_are_the_edges_of_the_exchanges(period, agents, first, number, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((period, agents, agents)) * rng.integers(0, 2, (period, agents, agents))
    graph = topology.from_matrix(weights)
    counts = np.zeros(agents, int)
    for exchange in range(first, first + number):
        for agent in range(agents):
            for sender in graph.neighbors(agent, exchange % period):
                counts[sender] += 1
    found = traffic(PART["sgp"].message, graph, first, number, VARIABLES)
    np.testing.assert_array_equal(found.messages, counts)
    np.testing.assert_array_equal(found.bytes, counts * (PARAMS + NUMBER))
    assert found.total == found.bytes.sum()


@pytest.mark.parametrize("agents", [2, 5, 8])
def test_a_server_hears_from_its_clients_and_answers_all(agents):
    for method, size in {"fedavg": EVERYTHING, "centralized": PARAMS}.items():
        graph = PART[method].graph(topology.ring(agents))
        found = traffic(PART[method].message, graph, 0, 3, VARIABLES)
        np.testing.assert_array_equal(found.messages, [3] * agents)
        assert found.bytes.sum() == 3 * agents * size
        assert found.total == 2 * 3 * agents * size


def test_of_some_clients_only_those_send():
    part = federated_averaging(fraction=0.25)
    graph = part.graph(topology.ring(8))
    for exchange in range(graph.period):
        found = traffic(part.message, graph, exchange, 1, VARIABLES)
        assert sorted(found.messages) == [0] * 6 + [1] * 2
        assert found.total == (2 + 8) * EVERYTHING


@pytest.mark.parametrize("graph", [topology.ring(6), topology.fully_connected(7)])
def test_relay_sends_along_a_tree(graph):
    part = PART["relay_sgd"]
    found = traffic(part.message, part.graph(graph), 4, 5, VARIABLES)
    assert found.messages.sum() == 5 * 2 * (graph.agents - 1)
    assert found.total == found.messages.sum() * (PARAMS + NUMBER)


@pytest.mark.parametrize("method", ["local_sgd", "universe", "final_wa", "final_dimat"])
def test_what_takes_everyones_networks_is_sent_to_everyone_whatever_the_graph(method):
    part = PART[method]
    found = traffic(part.message, part.graph(topology.ring(8)), 0, 1, VARIABLES)
    np.testing.assert_array_equal(found.messages, [7] * 8)
    assert found.total == 8 * 7 * EVERYTHING


def test_many_exchanges_are_counted_at_once():
    graph = topology.one_peer_exponential(8)
    steps = 10**6  # a second if each step's matrix were looked at
    assert traffic(PART["dsgd"].message, graph, 0, steps, VARIABLES).total == 8 * steps * PARAMS


@pytest.mark.parametrize("agents", [2, 5, 10])
@pytest.mark.parametrize(
    ("method", "an_epoch"),
    [("dimat", 0.5), ("wa", 0.5), ("cdsgd", 100), ("sgp", 100), ("cga", 200)],
)
def test_the_papers_rounds_per_epoch(method, an_epoch, agents):
    # 100 steps: CIFAR's 50,000 images over 5 agents in batches of 100. The paper takes them for
    # every number of agents.
    steps = 50_000 // 5 // 100
    for graph, neighbors in (
        (topology.fully_connected(agents), agents - 1),
        (topology.ring(agents), 2),
    ):
        if agents > 2:  # a ring of two is fully connected
            found = rounds_per_epoch(METHODS[method], graph, steps)
            assert found == pytest.approx(an_epoch * neighbors)


def test_rounds_per_epoch_by_steps_and_merging_frequency():
    ring = topology.ring(10)
    assert rounds_per_epoch(METHODS["cdsgd"], ring, 50_000 // 10 // 100) == 50 * 2
    assert rounds_per_epoch(METHODS["wa"], ring, 100, epochs_per_round=4) == 0.25 * 2
    assert rounds_per_epoch(METHODS["dsgd"], topology.one_peer_exponential(8), 100) == 100
    assert rounds_per_epoch(METHODS["final_wa"], ring, 100) == 0
    assert rounds_per_epoch(METHODS["local_only"], ring, 100) == 0


def test_rounds_per_epoch_of_several_parts_add_up():
    both = METHODS["cdsgd"]._replace(merge=METHODS["local_sgd"].merge, final=METHODS["wa"].merge)
    ring = topology.ring(10)
    # Two neighbours in each of 100 steps, and nine others in a merge every other epoch.
    assert rounds_per_epoch(both, ring, 100) == 100 * 2 + 9 / 2
