"""What a topology is: spectral gaps, neighbour slots, checks, graphs and matrices of one's own."""

import math

import hypothesis
import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest
from helpers.graphs import GRAPHS

from dimat_jax import topology as T

FEW = hypothesis.settings(deadline=None, max_examples=30)


def contraction(matrix):
    """The second largest singular value, found without a singular value decomposition."""
    centred = matrix - 1 / len(matrix)
    return math.sqrt(max(np.linalg.eigvalsh(centred @ centred.T)[-1], 0.0))


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{graph.name}-{graph.agents}")
def test_every_graph_is_doubly_stochastic_and_connected(graph):
    T.check_doubly_stochastic(graph, tolerance=1e-12)
    T.check_connected(graph)
    assert 0 < graph.spectral_gap <= 1
    if graph.period == 1:
        assert graph.spectral_gap == pytest.approx(1 - contraction(graph.mixing_matrices[0]))


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{graph.name}-{graph.agents}")
def test_neighbor_slots_mix_as_the_matrix_does(graph):
    x = np.random.default_rng(0).normal(size=(graph.agents, 3))
    shapes = set()
    for round in range(graph.period + 1):
        sources, weights = T.neighbor_slots(graph, round)
        shapes.add(sources.shape)
        assert sources.dtype == np.int32
        np.testing.assert_array_equal(sources[:, 0], np.arange(graph.agents))
        mixed = np.einsum("is,isd->id", weights, x[sources])
        np.testing.assert_allclose(mixed, graph.mixing_matrix(round) @ x)
        for i in range(graph.agents):
            used = [int(j) for j, w in zip(sources[i, 1:], weights[i, 1:], strict=True) if w]
            assert used == graph.neighbors(i, round)
    assert len(shapes) == 1


def test_slots_hold_no_more_than_the_largest_neighbourhood():
    assert T.neighbor_slots(T.ring(9))[0].shape == (9, 3)
    assert T.neighbor_slots(T.disconnected(9))[0].shape == (9, 1)
    assert T.neighbor_slots(T.one_peer_exponential(8))[0].shape == (8, 2)


def test_the_gap_of_graphs_in_parts_is_not_negative_by_rounding():
    parts = [T.disconnected(n) for n in range(2, 65)]
    parts += [T.from_matrix(np.kron(np.eye(3), np.full((n, n), 1 / n))) for n in (3, 6, 7)]
    assert {graph.spectral_gap for graph in parts} == {0.0}
    assert T.from_matrix(2 * np.eye(2)).spectral_gap < 0  # not doubly stochastic: it is so


def test_the_gap_of_a_period_is_per_round():
    half = np.array([[0.75, 0.25], [0.25, 0.75]])
    static, twice = T.from_matrix(half), T.from_matrix([half, half])
    assert static.spectral_gap == pytest.approx(0.5)
    assert twice.spectral_gap == pytest.approx(0.5)


@FEW
@hypothesis.given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 100))
def test_any_graph_gets_metropolis_hastings_weights(n, p, seed):
    graph = nx.gnp_random_graph(n, p, seed)
    made = T.from_graph(graph)
    T.check_doubly_stochastic(made, tolerance=1e-12)
    matrix = made.mixing_matrices[0]
    np.testing.assert_array_equal(matrix, matrix.T)
    for i in range(n):
        assert made.neighbors(i) == sorted(graph.neighbors(i))
        for j in graph.neighbors(i):
            assert matrix[i, j] == pytest.approx(1 / (1 + max(graph.degree(i), graph.degree(j))))
    assert (made.spectral_gap > 1e-9) == nx.is_connected(graph)
    if not nx.is_connected(graph):
        with pytest.raises(ValueError, match="not connected"):
            T.check_connected(made)


def test_from_graph_takes_nodes_in_their_order_and_ignores_loops():
    graph = nx.MultiGraph([("b", "a"), ("b", "a"), ("b", "b"), ("b", "c")])
    made = T.from_graph(graph)
    assert [made.neighbors(i) for i in range(3)] == [[1, 2], [0], [0]]
    T.check_doubly_stochastic(made)


def test_from_matrix_keeps_the_weights():
    matrix = np.array([[0.9, 0.1], [0.3, 0.7]])
    graph = T.from_matrix(matrix.astype(np.float32).tolist())
    assert graph.mixing_matrices.dtype == np.float64
    np.testing.assert_allclose(graph.mixing_matrices[0], matrix, rtol=1e-6)
    assert T.from_matrix(np.stack([matrix] * 3)).period == 3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.from_graph(nx.DiGraph([(0, 1)])), "need an undirected graph"),
        (lambda: T.from_graph(nx.Graph()), "the graph has none"),
        (lambda: T.from_matrix(np.eye(2) + 1j), "of real numbers"),
        (lambda: T.from_matrix(np.ones((2, 3))), r"\[agents, agents\] or .*not \[2, 3\]"),
        (
            lambda: T.from_matrix([[1, np.nan], [0, 1]]),
            r"entry \(0, 1\) is nan.*not a finite number",
        ),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("make", [T.from_matrix, lambda a: T.Topology("matrix", np.array(a))])
def test_negative_weights_are_refused_and_named(make):
    swap = np.array([[1.1, -0.1], [-0.1, 1.1]])  # doubly stochastic but for its signs
    with pytest.raises(ValueError, match=r"'matrix': entry \(0, 1\) is -0\.1, below 0\.$"):
        make(swap[None])
    with pytest.raises(ValueError, match=r"'matrix' in round 1: entry \(0, 1\) is -0\.1, below"):
        make([np.eye(2), swap])
    with pytest.raises(ValueError, match=r"entry \(1, 0\) is inf, which is not a finite number"):
        make([np.eye(2), [[1, 0], [np.inf, 1]]])
    make([np.eye(2), np.full((2, 2), 0.5)])


def test_which_row_or_column_is_not_stochastic_and_by_how_much():
    with pytest.raises(ValueError, match=r"row 1 sums to 1\.1, \+0\.1 away from 1"):
        T.check_doubly_stochastic(T.from_matrix([[0.5, 0.5], [0.5, 0.6]]))
    with pytest.raises(ValueError, match=r"column 0 sums to 1\.8, \+0\.8 away from 1"):
        T.check_doubly_stochastic(T.from_matrix([[0.6, 0.2, 0.2]] * 3))


def test_who_is_cut_off():
    with pytest.raises(ValueError, match=r"agents \[2, 3\] do not exchange models with agent 0"):
        T.check_connected(T.from_graph(nx.Graph([(0, 1), (2, 3)])))
    one_way = T.from_matrix([[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"agents \[1\]"):
        T.check_connected(one_way)


def test_a_period_connects_what_single_rounds_do_not():
    hypercube = T.base_k(4, 1)
    for matrix in hypercube.mixing_matrices:
        with pytest.raises(ValueError, match="not connected"):
            T.check_connected(T.from_matrix(matrix))
        assert T.from_matrix(matrix).spectral_gap == pytest.approx(0)
    T.check_connected(hypercube)
