"""Time-varying graphs: a period averages exactly, with few neighbours in each round; bad input."""

import math

import numpy as np
import pytest

from dimat_jax import topology as T


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


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.base_k(1, 1), "'base_k' needs at least 2 agents"),
        (lambda: T.base_k(5, 0), "k is a number of neighbours, at least 1, not 0"),
        (lambda: T.one_peer_exponential(6), "needs 2, 4, 8, 16 ... agents, not 6"),
        (lambda: T.one_peer_exponential(0), "needs 2, 4, 8, 16 ... agents, not 0"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
