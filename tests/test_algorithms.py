"""The methods as formulas: what a merge round does, on a merger of plain NumPy."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, MergeRound, merging
from dimat_jax.algorithms.merging import SLOTS_AT_ONCE
from dimat_jax.merger import Batches, Merger

UNITS = 5
MATCHING, STATISTICS = Batches(rows=[0], images=[]), Batches(rows=[1], images=[])


def order_of(target, source):
    """The permutation that brings a source's units, all different, into the target's order."""
    return np.argsort(source)[np.argsort(np.argsort(target))]


class Aligner:
    """Aligns by the units' own order, and remembers how many networks it had at a time."""

    def __init__(self):
        self.held = []

    def __call__(self, target, sources, batches):
        assert batches is MATCHING
        self.held.append(len(sources))
        return [
            {"units": jnp.asarray(list(map(order_of, target["x"], source["x"])))}
            for source in sources
        ]


def numpy_merger(align) -> Merger:
    """A merger of networks that are vectors of units, ``{"x": [agents, units]}``.

    Recomputing statistics is noted down, so that a test can see that it was done, last.
    """
    return Merger(
        symmetries=None,
        gather=lambda v, sources: {"x": v["x"][sources]},
        align=align,
        permute=lambda p, v: {"x": np.take_along_axis(v["x"], p["units"], 1)},
        scale=lambda v, w: {"x": w[:, None] * v["x"]},
        mix=lambda total, w, v: {"x": total["x"] + w[:, None] * v["x"]},
        recompute=lambda v, batches: {**v, "recomputed_from": batches},
    )


def graph_of(agents, seed):
    """A doubly stochastic matrix, not symmetric, with some zeros."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3))
    permutations = [np.eye(agents)[rng.permutation(agents)] for _ in shares]
    matrix = sum(w * p for w, p in zip(shares, permutations, strict=True))
    return topology.from_matrix(matrix)


def round_of(graph, round=0, first_frame=False):
    sources, weights = topology.neighbor_slots(graph, round)
    return MergeRound(sources, weights, MATCHING, STATISTICS, first_frame)


def merge(method, graph, x, round=0, first_frame=False):
    aligner = Aligner()
    inputs = round_of(graph, round, first_frame)
    merged = METHODS[method].merge(numpy_merger(aligner), {"x": x}, inputs)
    assert merged.variables["recomputed_from"] is STATISTICS
    return merged.variables["x"], merged.permutations, aligner


@hypothesis.given(st.integers(2, 9), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_wa_is_the_mixing_matrix(agents, seed):
    graph, x = graph_of(agents, seed), np.random.default_rng(seed).normal(size=(agents, UNITS))
    mixed, permutations, aligner = merge("wa", graph, x)
    np.testing.assert_allclose(mixed, graph.mixing_matrix() @ x, atol=1e-12)
    assert permutations == [] and aligner.held == []


@hypothesis.given(st.integers(2, 9), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_dimat_is_the_mixing_matrix_on_what_is_aligned_with_each_agent(agents, seed):
    graph, x = graph_of(agents, seed), np.random.default_rng(seed).normal(size=(agents, UNITS))
    mixed, permutations, _ = merge("dimat", graph, x)
    expected = np.zeros_like(x)
    for i in range(agents):
        for j in range(agents):
            expected[i] += graph.mixing_matrix()[i, j] * x[j][order_of(x[i], x[j])]
    np.testing.assert_allclose(mixed, expected, atol=1e-12)
    assert len(permutations) == round_of(graph).sources.shape[1] - 1


@hypothesis.given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=20)
def test_in_the_first_frame_all_become_one(agents, seed):
    graph = topology.fully_connected(agents)
    x = np.random.default_rng(seed).normal(size=(agents, UNITS))
    mixed, (permutations,), aligner = merge("dimat", graph, x, first_frame=True)
    aligned = [x[i][order_of(x[0], x[i])] for i in range(agents)]
    np.testing.assert_allclose(mixed, np.tile(np.mean(aligned, 0), (agents, 1)), atol=1e-12)
    np.testing.assert_array_equal(permutations["units"][0], np.arange(UNITS))
    assert aligner.held == [1]


def test_neighbours_are_held_a_few_at_a_time():
    x = np.random.default_rng(0).normal(size=(11, UNITS))
    _, permutations, aligner = merge("dimat", topology.fully_connected(11), x)
    assert aligner.held == [SLOTS_AT_ONCE, SLOTS_AT_ONCE, 10 - 2 * SLOTS_AT_ONCE]
    assert len(permutations) == 10


def test_a_time_varying_graph_averages_exactly_over_its_period():
    graph, x = topology.one_peer_exponential(8), np.random.default_rng(0).normal(size=(8, UNITS))
    mean = x.mean(0)
    for round in range(graph.period):
        x, _, _ = merge("wa", graph, x, round)
    np.testing.assert_allclose(x, np.tile(mean, (8, 1)), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_graph_that_is_not_doubly_stochastic(method):
    METHODS[method].check(topology.ring(4))
    rows_only = topology.from_matrix([[0.5, 0.5], [0.2, 0.8]], name="mine")
    with pytest.raises(ValueError, match="'mine' is not doubly stochastic: column 0 sums to 0.7"):
        METHODS[method].check(rows_only)


def test_a_method_of_ones_own_needs_an_alignment_only():
    def reversed_units(merger, target, sources, batches):
        order = np.tile(np.arange(UNITS)[::-1], (len(target["x"]), 1))
        return [{"units": order} for _ in sources]

    x = np.random.default_rng(0).normal(size=(3, UNITS))
    merged = merging(reversed_units).merge(
        numpy_merger(None), {"x": x}, round_of(topology.fully_connected(3))
    )
    expected = (x + x[[1, 2, 0], ::-1] + x[[2, 0, 1], ::-1]) / 3
    np.testing.assert_allclose(merged.variables["x"], expected, atol=1e-12)
