"""What a method is made of: its parts, and who hears from whom as data."""

import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from helpers.small_runs import execution_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm, exchanges
from dimat_jax.algorithms.base import descend, doubly_stochastic

GOSSIP, MERGE = METHODS["cdsgd"].gossip, METHODS["wa"].merge
GRAPHS = [
    topology.ring(5),
    topology.star(5),
    topology.disconnected(3),
    topology.exponential(7),
    topology.one_peer_exponential(4),
    topology.from_graph(nx.path_graph(4), "chain"),
]


def test_a_method_may_have_any_of_its_parts_or_none():
    assert Algorithm("nothing").parts() == {}
    assert Algorithm("some", merge=MERGE).parts() == {"merge": MERGE}
    every = Algorithm("all", gossip=GOSSIP, merge=MERGE, final=MERGE)
    assert every.parts() == {"gossip": GOSSIP, "merge": MERGE, "final": MERGE}


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_an_exchange_says_who_hears_from_whom(graph):
    rounds = exchanges(graph)
    assert len(rounds.matrix) == graph.period
    for round in range(graph.period):
        matrix, sources, mask, reverse = (np.asarray(x[round]) for x in rounds)
        np.testing.assert_allclose(matrix, graph.mixing_matrix(round), atol=1e-7)
        np.testing.assert_array_equal(sources[:, 0], range(graph.agents))
        assert not mask[:, 0].any()
        for i in range(graph.agents):
            neighbors = sources[i][mask[i] > 0].tolist()
            assert sorted(neighbors) == sorted(graph.neighbors(i, round))
            assert set(sources[i][mask[i] == 0]) <= {i}
            for slot, j in enumerate(sources[i].tolist()):
                back = reverse[i, slot]
                hears = mask[i, slot] > 0 and i in graph.neighbors(j, round)
                assert (sources[j, back] == i and mask[j, back] > 0) if hears else back == 0


def test_a_masked_lane_hears_what_the_last_agent_hears_and_nobody_hears_from_it():
    graph, execution = topology.base_k(5, 1), execution_of(5, 3)
    assert execution.all_lanes == 6
    plain, padded = exchanges(graph), exchanges(graph, execution)
    for before, after in zip(plain, padded, strict=True):
        np.testing.assert_array_equal(after[:, :5, : before.shape[2]], before)
        np.testing.assert_array_equal(after[:, 5], after[:, 4])
    assert padded.matrix.shape == (graph.period, 6, 6)
    assert not padded.matrix[:, :, 5].any() and not (padded.sources == 5).any()


def test_a_graph_must_be_doubly_stochastic_where_it_says_so():
    assert doubly_stochastic(GRAPHS[0]) is GRAPHS[0]
    rows_only = topology.from_matrix([[0.5, 0.5], [0.2, 0.8]], name="mine")
    with pytest.raises(ValueError, match="'mine' is not doubly stochastic: column 0 sums to 0.7"):
        doubly_stochastic(rows_only)


def test_a_step_down_keeps_the_dtype_of_each_leaf():
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(3)}
    found = descend(params, jnp.asarray(0.5), params)
    assert {name: x.dtype for name, x in found.items()} == {
        name: x.dtype for name, x in params.items()
    }
    np.testing.assert_array_equal(found["single"], 0.5)
