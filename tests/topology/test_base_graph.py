"""The Base-(k+1) graph: few neighbours, few rounds, exact averages, for every number of agents."""

import math

import numpy as np
import pytest

from dimat_jax.topology.base_graph import (
    base_graph,
    digits_of,
    factorize,
    hyper_hypercube,
    simple_base,
)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("make", [simple_base, base_graph])
def test_the_product_of_the_rounds_is_the_mean_of_everyone(make, k):
    for n in range(2, 51):
        rounds = make(n, k)
        product = np.eye(n)
        for matrix in rounds:
            assert (matrix >= 0).all()
            np.testing.assert_allclose(matrix, matrix.T)
            np.testing.assert_allclose(matrix.sum(1), 1)
            assert ((matrix > 0) & ~np.eye(n, dtype=bool)).sum(1).max() <= k
            product = matrix @ product
        np.testing.assert_allclose(product, 1 / n, atol=1e-14)
        assert len(rounds) <= 2 * math.log(n, k + 1) + 2 + 1e-9  # theorem 1


@pytest.mark.parametrize(
    ("n", "k", "rounds"),
    [
        (8, 1, 3),  # a hypercube
        (16, 3, 2),  # 4 x 4
        (6, 5, 1),  # everyone at once
        (5, 1, 5),  # 4 + 1: two rounds, the meeting, two rounds
        (6, 1, 4),  # twice 3 = 2 + 1, then across the two parties
        (7, 2, 4),  # 2 * 3 + 1: two rounds, the meeting, one round
    ],
)
def test_the_number_of_rounds_worked_out_by_hand(n, k, rounds):
    assert len(base_graph(n, k)) == rounds


def test_factorize_finds_the_shortest_product():
    assert factorize(1, 2) == ()
    assert factorize(36, 6) == (6, 6)
    assert factorize(16, 4) == (4, 4)
    assert factorize(7, 6) is None
    for n in range(1, 200):
        factors = factorize(n, 5)
        smooth = not any(n % p == 0 for p in range(7, n + 1) if all(p % d for d in range(2, p)))
        assert (factors is not None) == smooth
        assert factors is None or math.prod(factors) == n


def test_digits_add_up():
    assert digits_of(11, 2) == [(1, 3), (1, 1), (1, 0)]
    assert all(sum(d * 3**p for d, p in digits_of(n, 3)) == n for n in range(1, 100))


def test_hyper_hypercube_averages_a_box_axis_by_axis():
    first, second = hyper_hypercube((2, 3))
    np.testing.assert_allclose(first[0], [1 / 2, 0, 0, 1 / 2, 0, 0])
    np.testing.assert_allclose(second[0], [1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
