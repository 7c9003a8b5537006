"""Graphs that stay the same: their spectral gaps in closed form, their weights, bad input."""

import math

import numpy as np
import pytest

from dimat_jax import topology as T


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
    for no in (False, 0):
        assert T.exponential(n, directed=no).spectral_gap == pytest.approx(gap)


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


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.ring(1), "'ring' needs at least 2 agents, not 1"),
        (lambda: T.fully_connected(0), "needs at least 1 agents, not 0"),
        (lambda: T.star(1), "'star' needs at least 2 agents"),
        (lambda: T.bipartite(1), "'bipartite' needs at least 2 agents"),
        (lambda: T.exponential(1), "'exponential' needs at least 2 agents"),
        (lambda: T.hypercube(12), "'hypercube' needs 2, 4, 8, 16 ... agents, not 12"),
        (lambda: T.torus(1, 5), "at least 2 rows and 2 columns, not 1 x 5"),
        (lambda: T.make("torus", 7), "rows x columns agents, both at least 2, which 7 is not"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
