"""D²'s condition on the mixing matrix: no eigenvalue at or below −1/3."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.algorithm_references import d2
from helpers.algorithm_table import lazy_where_needed
from helpers.quadratics import models, run_of, steps_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS
from dimat_jax.algorithms.d2 import exact_diffusion

lazy, strict = METHODS["d2"].gossip, exact_diffusion(lazy=False)


@hypothesis.given(st.integers(2, 8), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=50)
def test_it_makes_lazy_what_has_an_eigenvalue_at_or_below_minus_a_third(agents, seed):
    rng = np.random.default_rng(seed)
    swaps = [np.eye(agents)[rng.permutation(agents)] for _ in range(2)]
    matrix = np.mean([swaps[0], swaps[0].T, swaps[1], swaps[1].T], 0)
    graph = topology.from_matrix(matrix, "mine")
    expected = lazy_where_needed(matrix)
    np.testing.assert_allclose(lazy.graph(graph).mixing_matrix(), expected, atol=1e-15)
    if expected is matrix:
        assert strict.graph(graph) is graph
        return
    with pytest.raises(ValueError, match="'mine'") as error:
        strict.graph(graph)
    said = float(str(error.value).split(" is ")[-1].rstrip("."))
    assert said == pytest.approx(np.linalg.eigvalsh(matrix).min(), abs=1e-3)


@pytest.mark.parametrize("graph", [topology.ring(4), topology.ring(8), topology.bipartite(6)])
def test_even_rings_and_complete_bipartite_graphs_are_such(graph):
    with pytest.raises(ValueError, match=rf"'{graph.name}'.*-0\.(33|5)"):
        strict.graph(graph)
    assert lazy.graph(graph).name != graph.name


def test_without_laziness_it_would_diverge(x64):
    run = run_of(topology.bipartite(6), np.full(1000, 0.05))
    plain = list(d2(run.start, steps_of(run)))[-1]
    assert np.abs(plain).max() > 1e6
    optimum = np.tile(run.problem.optimum, (6, 1))
    np.testing.assert_allclose(models(lazy, run)[-1], optimum, atol=1e-8)


@pytest.mark.parametrize("gossip", [lazy, strict])
def test_it_needs_a_symmetric_matrix(gossip):
    one_way = topology.exponential(8)
    with pytest.raises(ValueError, match=r"symmetric.*'exponential' entry \(0, 1\) is 0\.25"):
        gossip.graph(one_way)
