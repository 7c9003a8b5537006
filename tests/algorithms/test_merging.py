"""The methods as formulas: what a merge round does, on a merger of plain NumPy."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.algorithm_table import MERGES, MERGING, MergeRow, everyone
from helpers.numpy_merger import (
    MATCHING,
    STATISTICS,
    UNITS,
    Aligner,
    numpy_merger,
    order_of,
    round_of,
)

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Message, common_frame
from dimat_jax.algorithms.fedavg import federated_averaging
from dimat_jax.algorithms.merging import SLOTS_AT_ONCE, by_activations, neighbor_average

ON_THE_GRAPH = [name for name, row in MERGING.items() if row.matrix is not everyone]


def graph_of(agents, seed):
    """A doubly stochastic matrix, not symmetric, with some zeros."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3))
    permutations = [np.eye(agents)[rng.permutation(agents)] for _ in shares]
    matrix = sum(w * p for w, p in zip(shares, permutations, strict=True))
    return topology.from_matrix(matrix)


def merge(method, graph, x, round=0, **options):
    aligner, part = Aligner(), MERGES[method]
    inputs = round_of(part.graph(graph), round, **options)
    return part.apply(numpy_merger(aligner), {"params": x}, "state", inputs), aligner


def parents_of(row: MergeRow, graph, x, frame):
    """Agent j's network in the frame in which agent i merges: ``[agents i, agents j, units]``."""
    if row.align is None:
        return np.tile(x, (len(x), 1, 1))
    common = x[topology.flood(graph).roots]
    frames = {"own": x, "reference": common, "tree": common, "universe": np.sort(x)}
    targets = frames[frame if row.frame == "own" else row.frame]
    return np.array([[source[order_of(target, source)] for source in x] for target in targets])


@pytest.mark.parametrize("frame", ["own", "reference", "tree"])
@hypothesis.given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=15)
def test_a_merge_is_the_mixing_matrix_on_what_is_aligned(frame, agents, seed):
    graph, x = graph_of(agents, seed), np.random.default_rng(seed).normal(size=(agents, UNITS))
    for method, row in MERGING.items():
        found, aligner = merge(method, graph, x, frame=frame)
        merged, permutations = found.variables, found.permutations
        matrix = row.matrix(graph.mixing_matrix())
        parents = parents_of(row, MERGES[method].graph(graph), x, frame)
        expected = np.einsum("ij,iju->iu", matrix, parents)
        np.testing.assert_allclose(merged["params"], expected, atol=1e-12, err_msg=method)
        assert merged.get("recomputed") is (STATISTICS if row.recomputes else None)
        assert {how for how, _ in aligner.held} <= {row.align}
        assert len(permutations) == sum(held for _, held in aligner.held)
        if row.repairs:
            goal = np.einsum("ij,iju->iu", matrix, parents**2)
            np.testing.assert_allclose(merged["corrected"], goal, atol=1e-12, err_msg=method)
        assert row.repairs == ("corrected" in merged)
        own = row.align is None or (row.frame == "own" and frame == "own")
        assert found.moved == (not own) and found.state == "state"


@hypothesis.given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=20)
def test_in_the_first_frame_all_become_one(agents, seed):
    graph = topology.fully_connected(agents)
    x = np.random.default_rng(seed).normal(size=(agents, UNITS))
    found, aligner = merge("dimat", graph, x, frame="reference")
    (permutations,), mixed = found.permutations, found.variables
    aligned = [x[i][order_of(x[0], x[i])] for i in range(agents)]
    np.testing.assert_allclose(
        mixed["params"], np.tile(np.mean(aligned, 0), (agents, 1)), atol=1e-12
    )
    np.testing.assert_array_equal(permutations["units"][0], np.arange(UNITS))
    assert aligner.held == [("activations", 1)]


def test_neighbours_are_held_a_few_at_a_time():
    x = np.random.default_rng(0).normal(size=(11, UNITS))
    found, aligner = merge("dimat", topology.fully_connected(11), x)
    held = [SLOTS_AT_ONCE, SLOTS_AT_ONCE, 10 - 2 * SLOTS_AT_ONCE]
    assert aligner.held == [("activations", at_once) for at_once in held]
    assert len(found.permutations) == 10


def test_a_time_varying_graph_averages_exactly_over_its_period(x64):
    graph, x = topology.one_peer_exponential(8), np.random.default_rng(0).normal(size=(8, UNITS))
    mean = x.mean(0)
    for round in range(graph.period):
        x = merge("wa", graph, x, round)[0].variables["params"]
    np.testing.assert_allclose(x, np.tile(mean, (8, 1)), atol=1e-12)


@pytest.mark.parametrize("method", MERGING)
def test_a_method_merges_on_its_graph(method):
    graph = MERGES[method].graph(topology.ring(6))
    expected = MERGING[method].matrix(topology.ring(6).mixing_matrix())
    np.testing.assert_allclose(graph.mixing_matrices, expected[None], atol=1e-15)
    last = ["final"] if method.startswith("final_") or method == "fedavg" else []
    assert list(METHODS[method].parts()) == ["merge"] * (not method.startswith("final_")) + last


def test_clients_of_fedavg_count_for_as_much_as_they_have_examples():
    x, examples = np.random.default_rng(0).normal(size=(5, UNITS)), [10, 30, 0, 5, 55]
    found, _ = merge("fedavg", topology.ring(5), x, examples=examples)
    expected = np.average(x, axis=0, weights=examples)
    np.testing.assert_allclose(found.variables["params"], np.tile(expected, (5, 1)), atol=1e-12)

    part = federated_averaging(fraction=0.4)
    graph = part.graph(topology.ring(5))
    inputs = round_of(graph, examples=examples)
    merged = part.apply(numpy_merger(Aligner()), {"params": x}, (), inputs)
    clients = np.flatnonzero(graph.mixing_matrix()[0])
    expected = np.average(x[clients], axis=0, weights=np.take(examples, clients))
    np.testing.assert_allclose(merged.variables["params"], np.tile(expected, (5, 1)), atol=1e-12)


def test_between_alignments_agents_are_averaged_in_the_frame_that_they_share():
    graph, x = topology.ring(5), np.random.default_rng(0).normal(size=(5, UNITS))
    for frame in ("reference", "tree"):
        found, aligner = merge("dimat", graph, x, frame=frame, aligns=False)
        assert not found.moved and not found.permutations and not aligner.held
        expected = graph.mixing_matrix() @ x
        np.testing.assert_allclose(found.variables["params"], expected, atol=1e-12)


def test_a_common_frame_alone_averages_nothing():
    x = np.random.default_rng(0).normal(size=(6, UNITS))
    merger, align = numpy_merger(Aligner()), common_frame(by_activations)
    inputs = round_of(align.graph(topology.ring(6)))
    found = align.apply(merger, {"params": x}, (), inputs)
    expected = [network[order_of(x[0], network)] for network in x]
    np.testing.assert_allclose(found.variables["params"], expected, atol=1e-12)
    assert found.moved and align.message == Message(parameters=0)


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
    MERGES[method].graph(topology.ring(4))
    rows_only = topology.from_matrix([[0.5, 0.5], [0.2, 0.8]], name="mine")
    with pytest.raises(ValueError, match="'mine' is not doubly stochastic: column 0 sums to 0.7"):
        MERGES[method].graph(rows_only)


def test_a_merge_of_ones_own_needs_an_alignment_only():
    def reversed_units(merger, target, sources, round):
        order = np.tile(np.arange(UNITS)[::-1], (len(target["params"]), 1))
        return [{"units": order} for _ in sources]

    x = np.random.default_rng(0).normal(size=(3, UNITS))
    merged = neighbor_average(reversed_units).apply(
        numpy_merger(Aligner()), {"params": x}, (), round_of(topology.fully_connected(3))
    )
    expected = (x + x[[1, 2, 0], ::-1] + x[[2, 0, 1], ::-1]) / 3
    np.testing.assert_allclose(merged.variables["params"], expected, atol=1e-12)


def test_without_images_for_them_statistics_are_averaged_with_the_rest():
    x = np.random.default_rng(0).normal(size=(3, UNITS))
    inputs = round_of(topology.fully_connected(3))._replace(statistics=None)
    merged = MERGES["wa"].apply(numpy_merger(Aligner()), {"params": x}, (), inputs)
    assert "recomputed" not in merged.variables


@pytest.mark.parametrize("frame", ["own", "reference", "tree"])
@pytest.mark.parametrize("name", MERGING)
def test_what_counts_as_sent_is_asked_for_only_by_those_who_need_it(name, frame):
    """Images that others hold, say: weight averaging must not draw any to match on."""
    asked = []
    graph, row = topology.fully_connected(4), MERGING[name]
    inputs = round_of(MERGES[name].graph(graph))._replace(
        matching=lambda: asked.append("matching") or MATCHING,
        statistics=lambda: asked.append("statistics") or STATISTICS,
        tree=lambda: asked.append("tree") or topology.flood(graph),
        frame=frame,
    )
    x = np.random.default_rng(0).normal(size=(4, UNITS))
    MERGES[name].apply(numpy_merger(Aligner()), {"params": x}, (), inputs)
    in_common = row.align is not None and row.frame == "own" and frame != "own"
    wanted = {
        "matching": row.align == "activations" or row.repairs,
        "statistics": row.recomputes,
        "tree": row.frame == "reference" or in_common,
    }
    assert set(asked) == {name for name, needed in wanted.items() if needed}
