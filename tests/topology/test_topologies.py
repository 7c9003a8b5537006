"""Topologies by name: every name makes its graph, with the factory's options."""

import numpy as np
import pytest

from dimat_jax import topology as T


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
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
