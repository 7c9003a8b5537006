"""The methods as formulas: what a merge round does, on a merger of plain NumPy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.algorithm_table import MERGING, MergeRow, everyone

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, MergeRound, merging
from dimat_jax.algorithms.fedavg import federated_averaging
from dimat_jax.algorithms.merging import SLOTS_AT_ONCE
from dimat_jax.merging.merger import Batches, Merger

UNITS = 5
ON_THE_GRAPH = [name for name, row in MERGING.items() if row.matrix is not everyone]
MATCHING, STATISTICS = Batches(rows=[0], images=[]), Batches(rows=[1], images=[])
KEY = jax.random.key(0)


def order_of(target, source):
    """The permutation that brings a source's units, all different, into the target's order."""
    return np.argsort(source)[np.argsort(np.argsort(target))]


class Aligner:
    """Aligns by the units' own order, and remembers by what, and how many networks at a time."""

    def __init__(self):
        self.held = []

    def by_activations(self, target, sources, batches):
        assert batches is MATCHING
        return self.align("activations", target, sources)

    def by_weights(self, target, sources, key):
        assert key is KEY
        return self.align("weights", target, sources)

    def into_universe(self, variables, key):
        assert key is KEY
        universe = {"x": np.tile(np.arange(UNITS), (len(variables["x"]), 1))}
        return self.align("universe", universe, [variables])

    def align(self, how, target, sources):
        self.held.append((how, len(sources)))
        return [
            {"units": jnp.asarray(list(map(order_of, target["x"], source["x"])))}
            for source in sources
        ]


def numpy_merger(aligner: Aligner) -> Merger:
    """A merger of networks that are vectors of units, ``{"x": [agents, units]}``.

    A unit's preactivation is its square. What is done to the merged network is noted down in it.
    """
    return Merger(
        symmetries=None,
        gather=lambda v, sources: {"x": v["x"][sources]},
        align=aligner.by_activations,
        align_weights=aligner.by_weights,
        align_universe=aligner.into_universe,
        permute=lambda p, v: {"x": np.take_along_axis(v["x"], p["units"], 1)},
        scale=lambda v, w: jax.tree.map(lambda x: w[:, None] * x, v),
        mix=lambda total, w, v: jax.tree.map(lambda t, x: t + w[:, None] * x, total, v),
        recompute=lambda v, batches: {**v, "recomputed": batches},
        preactivations=preactivations,
        correct=correct,
    )


def preactivations(variables, batches):
    assert batches is MATCHING
    return {"square": variables["x"] ** 2}


def correct(variables, goal, batches):
    assert batches is MATCHING
    return {**variables, "corrected": goal["square"]}


def graph_of(agents, seed):
    """A doubly stochastic matrix, not symmetric, with some zeros."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3))
    permutations = [np.eye(agents)[rng.permutation(agents)] for _ in shares]
    matrix = sum(w * p for w, p in zip(shares, permutations, strict=True))
    return topology.from_matrix(matrix)


def round_of(graph, round=0, first_frame=False):
    sources, weights = topology.neighbor_slots(graph, round)
    return MergeRound(sources, weights, MATCHING, STATISTICS, first_frame, KEY)


def merge(method, graph, x, round=0, first_frame=False):
    aligner = Aligner()
    inputs = round_of(METHODS[method].graph(graph), round, first_frame)
    merged = METHODS[method].merge(numpy_merger(aligner), {"x": x}, inputs)
    return merged.variables, merged.permutations, aligner


def parents_of(row: MergeRow, x, first_frame):
    """Agent j's network in the frame in which agent i merges: ``[agents i, agents j, units]``."""
    if row.align is None:
        return np.tile(x, (len(x), 1, 1))
    frames = {"own": x, "first": np.tile(x[:1], (len(x), 1)), "universe": np.sort(x)}
    frame = frames["first" if first_frame and row.frame == "own" else row.frame]
    return np.array([[source[order_of(target, source)] for source in x] for target in frame])


@pytest.mark.parametrize("first_frame", [False, True])
@hypothesis.given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=15)
def test_a_merge_is_the_mixing_matrix_on_what_is_aligned(first_frame, agents, seed):
    graph, x = graph_of(agents, seed), np.random.default_rng(seed).normal(size=(agents, UNITS))
    for method, row in MERGING.items():
        merged, permutations, aligner = merge(method, graph, x, first_frame=first_frame)
        matrix = row.matrix(graph.mixing_matrix())
        parents = parents_of(row, x, first_frame)
        expected = np.einsum("ij,iju->iu", matrix, parents)
        np.testing.assert_allclose(merged["x"], expected, atol=1e-12, err_msg=method)
        assert merged.get("recomputed") is (STATISTICS if row.recomputes else None)
        assert {how for how, _ in aligner.held} <= {row.align}
        assert len(permutations) == sum(held for _, held in aligner.held)
        if row.repairs:
            goal = np.einsum("ij,iju->iu", matrix, parents**2)
            np.testing.assert_allclose(merged["corrected"], goal, atol=1e-12, err_msg=method)
        assert row.repairs == ("corrected" in merged)


@hypothesis.given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=20)
def test_in_the_first_frame_all_become_one(agents, seed):
    graph = topology.fully_connected(agents)
    x = np.random.default_rng(seed).normal(size=(agents, UNITS))
    mixed, (permutations,), aligner = merge("dimat", graph, x, first_frame=True)
    aligned = [x[i][order_of(x[0], x[i])] for i in range(agents)]
    np.testing.assert_allclose(mixed["x"], np.tile(np.mean(aligned, 0), (agents, 1)), atol=1e-12)
    np.testing.assert_array_equal(permutations["units"][0], np.arange(UNITS))
    assert aligner.held == [("activations", 1)]


def test_neighbours_are_held_a_few_at_a_time():
    x = np.random.default_rng(0).normal(size=(11, UNITS))
    _, permutations, aligner = merge("dimat", topology.fully_connected(11), x)
    held = [SLOTS_AT_ONCE, SLOTS_AT_ONCE, 10 - 2 * SLOTS_AT_ONCE]
    assert aligner.held == [("activations", at_once) for at_once in held]
    assert len(permutations) == 10


def test_a_time_varying_graph_averages_exactly_over_its_period():
    graph, x = topology.one_peer_exponential(8), np.random.default_rng(0).normal(size=(8, UNITS))
    mean = x.mean(0)
    for round in range(graph.period):
        x = merge("wa", graph, x, round)[0]["x"]
    np.testing.assert_allclose(x, np.tile(mean, (8, 1)), atol=1e-12)


@pytest.mark.parametrize("method", MERGING)
def test_a_method_merges_on_its_graph(method):
    graph = METHODS[method].graph(topology.ring(6))
    expected = MERGING[method].matrix(topology.ring(6).mixing_matrix())
    np.testing.assert_allclose(graph.mixing_matrices, expected[None], atol=1e-15)
    assert METHODS[method].at_end == MERGING[method].at_end
    assert METHODS[method].gossip is None


def test_a_round_of_fedavg_may_have_some_of_the_clients_only():
    graph = federated_averaging(fraction=0.4).graph(topology.ring(10))
    assert graph.period > 1
    for matrix in graph.mixing_matrices:
        np.testing.assert_array_equal(np.sort(matrix[0]), [0] * 6 + [1 / 4] * 4)
        np.testing.assert_array_equal(matrix, np.tile(matrix[0], (10, 1)))
    assert (graph.mixing_matrices > 0).any((0, 1)).all(), "everyone is a client at times"


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_fraction_of_clients_that_is_none_is_named(fraction):
    with pytest.raises(ValueError, match=str(fraction)):
        federated_averaging(fraction).graph(topology.ring(4))


@pytest.mark.parametrize("method", ON_THE_GRAPH)
def test_a_method_refuses_a_graph_that_is_not_doubly_stochastic(method):
    METHODS[method].graph(topology.ring(4))
    rows_only = topology.from_matrix([[0.5, 0.5], [0.2, 0.8]], name="mine")
    with pytest.raises(ValueError, match="'mine' is not doubly stochastic: column 0 sums to 0.7"):
        METHODS[method].graph(rows_only)


def test_a_method_of_ones_own_needs_an_alignment_only():
    def reversed_units(merger, target, sources, round):
        order = np.tile(np.arange(UNITS)[::-1], (len(target["x"]), 1))
        return [{"units": order} for _ in sources]

    x = np.random.default_rng(0).normal(size=(3, UNITS))
    merged = merging(reversed_units).merge(
        numpy_merger(Aligner()), {"x": x}, round_of(topology.fully_connected(3))
    )
    expected = (x + x[[1, 2, 0], ::-1] + x[[2, 0, 1], ::-1]) / 3
    np.testing.assert_allclose(merged.variables["x"], expected, atol=1e-12)
