"""Push-sum on directed graphs whose agents count unequally when models are only mixed."""

import numpy as np
import pytest
from helpers.algorithm_table import GRAPHS
from helpers.quadratics import models, run_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS

SGP, DSGD = METHODS["sgp"].gossip, METHODS["dsgd"].gossip
DECAYING = 0.5 / (1 + np.arange(4000) / 20)


@pytest.mark.parametrize("graph", ["directed", "time-varying directed"])
def test_at_learning_rate_0_it_averages_exactly(graph, x64):
    run = run_of(GRAPHS[graph], np.zeros(100))
    mean = np.tile(run.start.mean(0), (run.topology.agents, 1))
    np.testing.assert_allclose(models(SGP, run)[-1], mean, atol=1e-12)


def perron_weights(matrix: np.ndarray) -> np.ndarray:
    """How much each agent counts in the end where rows sum to 1: the left eigenvector of 1."""
    values, vectors = np.linalg.eig(matrix.T)
    weights = vectors[:, np.argmax(values.real)].real
    return weights / weights.sum()


def test_push_sum_finds_the_optimum_of_the_uniform_mean_where_mixing_finds_perrons(x64):
    edges = GRAPHS["directed"]
    averaging = edges.mixing_matrix() / edges.mixing_matrix().sum(1, keepdims=True)
    run = run_of(edges, DECAYING)
    perron = run.problem.weighted_optimum(perron_weights(averaging))
    assert np.abs(perron - run.problem.optimum).max() > 0.1
    np.testing.assert_allclose(
        models(SGP, run)[-1], np.tile(run.problem.optimum, (5, 1)), atol=0.01
    )
    unchecked = DSGD._replace(graph=lambda graph: graph)
    without = models(unchecked, run._replace(topology=topology.from_matrix(averaging)))[-1]
    np.testing.assert_allclose(without, np.tile(perron, (5, 1)), atol=0.01)


def stalling_point(run, rate: float) -> np.ndarray:
    """The z with ``w_i z_i = Σ_j p_ij (w_j z_j − α A_j (z_j − b_j))``, w the limit of P^t 1."""
    matrix, size = run.topology.mixing_matrix(), run.start.shape[1]
    w = np.linalg.matrix_power(matrix, 1000).sum(1)
    mixing, weights = np.kron(matrix, np.eye(size)), np.kron(np.diag(w), np.eye(size))
    hessian = np.zeros_like(mixing)
    for i, own in enumerate(run.problem.hessians):
        hessian[i * size : (i + 1) * size, i * size : (i + 1) * size] = own
    step = rate * mixing @ hessian
    point = np.linalg.solve(weights - mixing @ weights + step, step @ run.problem.minima.ravel())
    return point.reshape(run.start.shape)


def test_at_a_constant_rate_it_stalls_where_linear_algebra_says(x64):
    run = run_of(GRAPHS["directed"], np.full(2000, 0.05))
    expected = stalling_point(run, 0.05)
    assert np.abs(expected - run.problem.optimum).max() > 0.01
    np.testing.assert_allclose(models(SGP, run)[-1], expected, atol=1e-8)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ([[0.5, 0.4], [0.5, 0.7]], r"column 1 sums to 1\.1"),
        ([[1.5, 0.5], [-0.5, 0.5]], r"entry \(1, 0\) is -0\.5"),
        ([[1.0, 0.5], [0.0, 0.5]], r"not connected.*\[1\]"),
    ],
)
def test_it_needs_columns_of_shares_on_a_connected_graph(matrix, problem):
    with pytest.raises(ValueError, match=problem):
        SGP.graph(topology.from_matrix(matrix))
