"""RelaySGD's tree, and its steps where the tree is the method's own choice."""

import hypothesis
import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest
from helpers.algorithm_references import relay_sum
from helpers.algorithm_table import GRAPHS
from helpers.quadratics import models, run_of, steps_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS

relay_sgd = METHODS["relay_sgd"].gossip


def edges_of(graph: topology.Topology) -> nx.Graph:
    (matrix,) = graph.mixing_matrices
    np.testing.assert_array_equal(matrix != 0, matrix.T != 0)
    edges = nx.from_numpy_array(matrix != 0)
    edges.remove_edges_from(list(nx.selfloop_edges(edges)))
    return edges


@hypothesis.given(st.integers(1, 12), st.floats(0.2, 1), st.integers(0, 1000))
@hypothesis.settings(deadline=None, max_examples=50)
def test_it_relays_along_a_spanning_tree_of_the_graph(agents, probability, seed):
    given = nx.compose(
        nx.random_labeled_tree(agents, seed=seed), nx.gnp_random_graph(agents, probability, seed)
    )
    graph = topology.from_graph(nx.from_numpy_array(nx.to_numpy_array(given, range(agents))))
    tree = relay_sgd.graph(graph)
    assert nx.is_tree(edges_of(tree))
    assert set(edges_of(tree).edges) <= set(edges_of(graph).edges)
    np.testing.assert_array_equal(relay_sgd.graph(graph).mixing_matrices, tree.mixing_matrices)


@pytest.mark.parametrize("graph", ["ring", "fully connected"])
def test_on_a_graph_with_cycles_its_first_steps_are_those_on_the_tree(graph, x64):
    run = run_of(GRAPHS[graph], [0.1, 0.08, 0.2, 0.05, 0.1, 0.1], noise=0.3)
    on_tree = run._replace(topology=relay_sgd.graph(run.topology))
    expected = np.stack(list(relay_sum(run.start, steps_of(on_tree))))
    np.testing.assert_allclose(models(relay_sgd, run), expected, atol=1e-10)


def test_it_averages_everyone_as_they_were_when_they_set_out(x64):
    """Vogels et al. 2021, equation 2: agent j's model comes ``distance − 1`` steps late."""
    run = run_of(GRAPHS["chain"], np.zeros(12))
    later = models(relay_sgd, run)
    history = [run.start, *later]
    late = np.maximum(np.abs(np.subtract.outer(range(5), range(5))) - 1, 0)
    for t in range(late.max(), len(later)):
        for i in range(5):
            arrived = [history[t - late[i, j]][j] for j in range(5)]
            np.testing.assert_allclose(later[t][i], np.mean(arrived, 0), atol=1e-12)


@pytest.mark.parametrize("name", ["disconnected", "exponential"])
def test_it_needs_edges_both_ways_that_join_everyone(name):
    with pytest.raises(ValueError, match=rf"'{name}' agents \[1, 2, 3.*connected"):
        relay_sgd.graph(topology.make(name, 8))
