"""Graphs: closed forms of the spectral gap, weights, neighbour slots, checks and bad input."""

import math

import hypothesis
import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest

from dimat_jax import topology as T
from dimat_jax.algorithms import METHODS

FEW = hypothesis.settings(deadline=None, max_examples=30)


def contraction(matrix):
    """The second largest singular value, found without a singular value decomposition."""
    centred = matrix - 1 / len(matrix)
    return math.sqrt(max(np.linalg.eigvalsh(centred @ centred.T)[-1], 0.0))


@pytest.mark.parametrize("n", [3, 4, 5, 10, 16, 20, 64])
def test_ring_has_its_closed_form(n):
    ring = T.ring(n)
    assert ring.spectral_gap == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3)
    np.testing.assert_allclose(ring.mixing_matrices[0, 0, [0, 1, -1]], 1 / 3)


def test_ring_of_two_averages():
    np.testing.assert_array_equal(T.ring(2).mixing_matrices, np.full((1, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("n", "gap"), [(5, 0.461), (10, 0.127), (16, 0.051), (20, 0.033), (64, 0.003)]
)
def test_ring_has_the_tabulated_gaps(n, gap):
    assert T.ring(n).spectral_gap == pytest.approx(gap, abs=5e-4)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
def test_exponential_and_hypercube_have_their_closed_form(n):
    expected = 2 / (1 + math.log2(n))
    assert T.exponential(n).spectral_gap == pytest.approx(expected)
    assert T.hypercube(n).spectral_gap == pytest.approx(expected)


@pytest.mark.parametrize(("n", "gap"), [(8, 2 / 3), (16, 0.5), (64, 1 / 3)])
def test_exponential_both_ways_has_the_tabulated_gaps(n, gap):
    assert T.exponential(n, directed=False).spectral_gap == pytest.approx(gap)


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (4, 4), (8, 8), (3, 7)])
def test_torus_has_its_closed_form(rows, cols):
    """Its eigenvalues are (1 + 2 cos + 2 cos) / 5 over all pairs of frequencies."""
    angles = [2 * np.cos(2 * np.pi * np.arange(n) / n) for n in (rows, cols)]
    eigenvalues = np.abs((1 + angles[0][:, None] + angles[1]).ravel()[1:]) / 5
    assert T.torus(rows, cols).spectral_gap == pytest.approx(1 - eigenvalues.max())


def test_torus_has_the_tabulated_gaps():
    assert T.torus(4, 4).spectral_gap == pytest.approx(0.4)
    assert T.torus(8, 8).spectral_gap == pytest.approx(0.117, abs=5e-4)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_extremes(n):
    np.testing.assert_allclose(T.fully_connected(n).mixing_matrices, 1 / n)
    assert T.fully_connected(n).spectral_gap == 1
    np.testing.assert_array_equal(T.disconnected(n).mixing_matrices[0], np.eye(n))
    assert T.disconnected(n).spectral_gap == pytest.approx(0)


def test_the_gap_of_graphs_in_parts_is_not_negative_by_rounding():
    parts = [T.disconnected(n) for n in range(2, 65)]
    parts += [T.from_matrix(np.kron(np.eye(3), np.full((n, n), 1 / n))) for n in (3, 6, 7)]
    assert {graph.spectral_gap for graph in parts} == {0.0}
    assert T.from_matrix(2 * np.eye(2)).spectral_gap < 0  # not doubly stochastic: it is so


def test_one_agent_alone():
    assert T.fully_connected(1).spectral_gap == 1
    assert T.disconnected(1).neighbors(0) == []


@pytest.mark.parametrize("n", [4, 6, 10])
def test_bipartite_has_its_closed_form(n):
    """Complete bipartite with equal sides: eigenvalues 1, 1/(n/2 + 1) and (1 - n/2)/(1 + n/2)."""
    half = n // 2
    smallest = np.linalg.eigvalsh(T.bipartite(n).mixing_matrices[0])[0]
    assert smallest == pytest.approx((1 - half) / (1 + half))
    assert T.bipartite(n).neighbors(0) == list(range(1, n, 2))


def test_star_has_its_closed_form():
    """Leaves that sum to 0 shrink by 1 - 1/n; the centre against all leaves averages at once."""
    assert T.star(7).spectral_gap == pytest.approx(1 / 7)
    assert T.star(7).neighbors(3) == [0]


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_one_peer_exponential_averages_exactly_in_a_period(n):
    graph = T.one_peer_exponential(n)
    product = np.eye(n)
    for matrix in graph.mixing_matrices:
        product = matrix @ product
    np.testing.assert_allclose(product, 1 / n, atol=1e-15)
    assert graph.period == math.log2(n)
    assert graph.spectral_gap == 1
    hops = [graph.neighbors(0, round) for round in range(graph.period)]
    assert hops == [[2**t] for t in range(graph.period)]
    assert graph.neighbors(0, graph.period) == graph.neighbors(0, 0)


@pytest.mark.parametrize("n", [3, 7, 12])
def test_base_k_averages_exactly_in_a_period(n):
    assert T.base_k(n, 1).spectral_gap == 1
    assert T.base_k(n, n - 1).period == 1


def test_the_gap_of_a_period_is_per_round():
    half = np.array([[0.75, 0.25], [0.25, 0.75]])
    static, twice = T.from_matrix(half), T.from_matrix([half, half])
    assert static.spectral_gap == pytest.approx(0.5)
    assert twice.spectral_gap == pytest.approx(0.5)


GRAPHS = [
    *[make(n) for n in (2, 5, 8) for make in (T.ring, T.star, T.bipartite, T.fully_connected)],
    *[T.exponential(n) for n in (2, 3, 6, 11)],
    *[T.base_k(n, k) for n in (3, 5, 12, 23) for k in (1, 2)],
    *[T.hypercube(8), T.one_peer_exponential(8), T.torus(2, 3), T.torus(3, 4)],
    *[T.erdos_renyi(9, 0.4, seed) for seed in range(3)],
    *[T.random_regular(10, 3, seed) for seed in range(3)],
]


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


def test_random_graphs_are_the_same_for_a_seed():
    for make in (lambda s: T.erdos_renyi(12, 0.3, s), lambda s: T.random_regular(12, 3, s)):
        np.testing.assert_array_equal(make(1).mixing_matrices, make(1).mixing_matrices)
        assert not np.array_equal(make(1).mixing_matrices, make(2).mixing_matrices)


@FEW
@hypothesis.given(st.integers(3, 20), st.data())
def test_random_regular_graphs_are_regular(n, data):
    degree = data.draw(st.integers(2, n - 1).filter(lambda d: n * d % 2 == 0))
    graph = T.random_regular(n, degree)
    assert {len(graph.neighbors(i)) for i in range(n)} == {degree}
    assert np.unique(graph.mixing_matrices[graph.mixing_matrices > 0]) == pytest.approx(
        1 / (1 + degree)
    )


def test_from_matrix_keeps_the_weights():
    matrix = np.array([[0.9, 0.1], [0.3, 0.7]])
    graph = T.from_matrix(matrix.astype(np.float32).tolist())
    assert graph.mixing_matrices.dtype == np.float64
    np.testing.assert_allclose(graph.mixing_matrices[0], matrix, rtol=1e-6)
    assert T.from_matrix(np.stack([matrix] * 3)).period == 3


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_digraph_is_one_that_only_push_sum_can_use(n):
    graph = T.digraph(n)
    matrix = graph.mixing_matrix()
    np.testing.assert_allclose(matrix.sum(0), 1)
    assert np.abs(matrix.sum(1) - 1).max() > 0.1 and (matrix != matrix.T).any()
    T.check_connected(graph)
    assert graph.neighbors(2) == [0, 1]  # of which 0 sends two places ahead
    with pytest.raises(ValueError, match="not doubly stochastic"):
        T.check_doubly_stochastic(graph)
    METHODS["sgp"].graph(graph)


@pytest.mark.parametrize("name", T.TOPOLOGIES)
def test_every_name_makes_its_graph(name):
    graph = T.make(name, 16)
    assert graph.name == name
    assert graph.mixing_matrices.shape == (graph.period, 16, 16)
    assert graph.mixing_matrices.dtype == np.float64


def test_options_by_name():
    assert T.make("base_k", 16, k=3).period == 2
    np.testing.assert_array_equal(
        T.make("torus", 12).mixing_matrices, T.torus(3, 4).mixing_matrices
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.make("rign", 5), "Unknown topology 'rign'. Did you mean 'ring'"),
        (lambda: T.make("ring", 5, p=1), "'ring': got an unexpected keyword argument 'p'"),
        (lambda: T.ring(1), "'ring' needs at least 2 agents, not 1"),
        (lambda: T.fully_connected(0), "needs at least 1 agents, not 0"),
        (lambda: T.star(1), "'star' needs at least 2 agents"),
        (lambda: T.bipartite(1), "'bipartite' needs at least 2 agents"),
        (lambda: T.exponential(1), "'exponential' needs at least 2 agents"),
        (lambda: T.base_k(1, 1), "'base_k' needs at least 2 agents"),
        (lambda: T.base_k(5, 0), "k is a number of neighbours, at least 1, not 0"),
        (lambda: T.hypercube(12), "'hypercube' needs 2, 4, 8, 16 ... agents, not 12"),
        (lambda: T.one_peer_exponential(6), "needs 2, 4, 8, 16 ... agents, not 6"),
        (lambda: T.one_peer_exponential(0), "needs 2, 4, 8, 16 ... agents, not 0"),
        (lambda: T.torus(1, 5), "at least 2 rows and 2 columns, not 1 x 5"),
        (lambda: T.make("torus", 7), "rows x columns agents, both at least 2, which 7 is not"),
        (lambda: T.erdos_renyi(5, 0.0), "above 0 and at most 1, not 0.0"),
        (lambda: T.erdos_renyi(40, 0.001), "100 draws.*mostly connected from p = 0.092"),
        (lambda: T.random_regular(5, 3), "n \\* degree must be even: there are no 5 agents"),
        (lambda: T.random_regular(5, 5), "degree must be between 1 and 4 for 5 agents, not 5"),
        (lambda: T.random_regular(6, 1), "No graph of 100 draws.*degree is 1, with 6 agents"),
        (lambda: T.from_graph(nx.DiGraph([(0, 1)])), "need an undirected graph"),
        (lambda: T.from_graph(nx.Graph()), "the graph has none"),
        (lambda: T.from_matrix(np.ones((2, 3))), r"\[agents, agents\] or .*not \[2, 3\]"),
        (lambda: T.from_matrix([[1, np.nan], [0, 1]]), r"Entry \(0, 1\).*not a finite number"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_which_row_or_column_is_not_stochastic_and_by_how_much():
    with pytest.raises(ValueError, match=r"row 1 sums to 1\.1, \+0\.1 away from 1"):
        T.check_doubly_stochastic(T.from_matrix([[0.5, 0.5], [0.5, 0.6]]))
    with pytest.raises(ValueError, match=r"column 0 sums to 1\.8, \+0\.8 away from 1"):
        T.check_doubly_stochastic(T.from_matrix([[0.6, 0.2, 0.2]] * 3))
    with pytest.raises(ValueError, match=r"in round 1: entry \(0, 1\) is -0\.5, below 0"):
        T.check_doubly_stochastic(T.from_matrix([np.eye(2), [[1.5, -0.5], [-0.5, 1.5]]]))


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
