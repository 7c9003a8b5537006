"""How one network reaches everyone."""

import hypothesis
import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest

from dimat_jax import topology


@hypothesis.given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=50)
def test_each_agent_hears_from_its_parent_on_a_shortest_way_from_its_root(n, p, seed):
    hears = np.random.default_rng(seed).random((n, n)) < p
    graph = topology.from_matrix(hears * 1.0)
    parents, roots = topology.flood(graph)
    edges = nx.from_numpy_array(hears.T, create_using=nx.DiGraph)  # an edge from whom is heard
    taken = set()
    for root in dict.fromkeys(roots.tolist()):
        mine = np.flatnonzero(roots == root).tolist()
        left = edges.subgraph(set(edges) - taken)
        distances = nx.single_source_shortest_path_length(left, root)
        assert set(distances) == set(mine) and parents[root] == root == min(set(edges) - taken)
        for agent in set(mine) - {root}:
            assert hears[agent, parents[agent]]
            assert distances[agent] == distances[int(parents[agent])] + 1
        taken |= set(mine)
    assert taken == set(range(n))


def test_a_tree_takes_the_edges_of_all_rounds():
    tree = topology.flood(topology.one_peer_exponential(8))
    assert set(tree.roots) == {0}


@pytest.mark.parametrize("graph", [topology.disconnected(3), topology.ring(2)])
def test_where_nobody_is_heard_everyone_is_a_root(graph):
    roots = [0, 1, 2] if graph.agents == 3 else [0, 0]
    assert topology.flood(graph).roots.tolist() == roots
