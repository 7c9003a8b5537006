"""Random graphs: the same for a seed, connected, of the degree asked for; bad input."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dimat_jax import topology as T


def test_random_graphs_are_the_same_for_a_seed():
    for make in (lambda s: T.erdos_renyi(12, 0.3, s), lambda s: T.random_regular(12, 3, s)):
        np.testing.assert_array_equal(make(1).mixing_matrices, make(1).mixing_matrices)
        assert not np.array_equal(make(1).mixing_matrices, make(2).mixing_matrices)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(3, 20), st.data())
def test_random_regular_graphs_are_regular(n, data):
    degree = data.draw(st.integers(2, n - 1).filter(lambda d: n * d % 2 == 0))
    graph = T.random_regular(n, degree)
    assert {len(graph.neighbors(i)) for i in range(n)} == {degree}
    assert np.unique(graph.mixing_matrices[graph.mixing_matrices > 0]) == pytest.approx(
        1 / (1 + degree)
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.erdos_renyi(5, 0.0), "above 0 and at most 1, not 0.0"),
        (lambda: T.erdos_renyi(40, 0.001), "100 draws.*mostly connected from p = 0.092"),
        (lambda: T.random_regular(5, 3), "n \\* degree must be even: there are no 5 agents"),
        (lambda: T.random_regular(5, 5), "degree must be between 1 and 4 for 5 agents, not 5"),
        (lambda: T.random_regular(6, 1), "No graph of 100 draws.*degree is 1, with 6 agents"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
