"""What a method is made of: its parts, and who hears from whom as data."""

import hypothesis
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from helpers.small_runs import execution_of
from hypothesis import strategies as st

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm, exchanges
from dimat_jax.algorithms.base import descend, doubly_stochastic, mix, neighbors
from dimat_jax.algorithms.stepping import round_of
from dimat_jax.execution.placement import place, replicate
from dimat_jax.merging.merger import SLOTS_AT_ONCE

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
        matrix, sources, mask, reverse = (np.asarray(x[round]) for x in rounds[:4])
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
    for before, after in zip(plain[:4], padded[:4], strict=True):
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


@hypothesis.given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=4)
def test_agents_mix_by_routes_as_by_the_matrix(agents, devices, seed):
    """Whatever the devices, in every round of a graph that changes, and with masked lanes."""
    execution = execution_of(agents, -(-agents // -(-agents // devices)))
    rng = np.random.default_rng(seed)
    sparse = (rng.random((agents, agents)) < 0.2) * rng.random((agents, agents))
    mine = topology.from_matrix(np.stack([sparse, np.eye(agents), sparse.T]))
    graphs = [topology.ring(agents), topology.base_k(agents, 1), mine]
    tree = {"x": rng.normal(size=(agents, 3)), "half": rng.normal(size=agents)}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    placed = place(execution, {**tree, "half": tree["half"].astype(jnp.bfloat16)})
    for graph in graphs:
        rounds = exchanges(graph, execution)
        few = rounds.sources.shape[-1] <= 1 + SLOTS_AT_ONCE
        assert (rounds.route is not None) == few

        @jax.jit
        def mixed(exchanges, turn, tree):
            now = round_of(exchanges, turn)
            return mix(now, tree), neighbors(now, tree)

        for round in range(graph.period):
            found, heard = mixed(rounds, round, placed)
            expected = graph.mixing_matrix(round) @ np.asarray(tree["x"])
            np.testing.assert_allclose(found["x"][:agents], expected, atol=1e-5)
            assert found["half"].dtype == jnp.bfloat16
            sources, _ = topology.neighbor_slots(graph, round)
            assert len(heard) == sources.shape[1] - 1
            for slot, of_slot in enumerate(heard, 1):
                np.testing.assert_array_equal(of_slot["x"][:agents], tree["x"][sources[:, slot]])


@pytest.mark.parametrize("graph", [topology.ring(8), topology.one_peer_exponential(8)])
def test_mixing_within_a_step_gathers_from_nobody_but_neighbours(graph):
    execution = execution_of(8, 8)
    rounds = replicate(execution, exchanges(graph, execution))
    params = place(execution, {"x": np.ones((8, 100), np.float32)})
    mixed = jax.jit(lambda rounds, turn, tree: mix(round_of(rounds, turn), tree))
    text = mixed.lower(rounds, 1, params).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text
