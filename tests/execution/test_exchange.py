"""What moves between agents, wherever they lie."""

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import assert_trees_close, assert_trees_equal, compilations, execution_of
from hypothesis import strategies as st

from dimat_jax import topology
from dimat_jax.algorithms import Message
from dimat_jax.algorithms.communication import traffic
from dimat_jax.execution.exchange import choose_shifts, find_route, follow, mix, product, take
from dimat_jax.execution.forms import over_devices
from dimat_jax.execution.placement import AGENTS, REPLICATED, place, replicate, to_host
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging.merger import SLOTS_AT_ONCE, average_link_bytes, make_average, make_gather


def tree_of(agents, seed=0):
    """Networks of several agents: two leaves of other shapes, one that is not averaged."""
    rng = np.random.default_rng(seed)
    params = {
        "x": rng.normal(size=(agents, 3, 2)).astype(np.float32),
        "b": rng.normal(size=agents).astype(np.float32),
    }
    return {"params": params, "seen": np.arange(agents, dtype=np.int32)}


def program(execution, sources, tree):
    """The compiled program by which agents hear from their sources."""
    lifted = over_devices(execution, follow, AGENTS)
    return jax.jit(lifted).lower(find_route(execution, sources), place(execution, tree)).compile()


def permuted_bytes(text):
    """Bytes that a device receives by the collective permutes of a program's text."""
    found = re.findall(r"= f32\[([\d,]*)\]\S* collective-permute\(", text)
    return sum(4 * int(np.prod([int(n) for n in shape.split(",")])) for shape in found)


@hypothesis.given(
    st.integers(1, 13), st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32 - 1)
)
@hypothesis.settings(deadline=None, max_examples=15)
def test_agents_hear_from_whomever_they_ask_on_any_devices(agents, devices, slots, seed):
    execution = execution_of(agents, -(-agents // -(-agents // devices)))
    rng, tree = np.random.default_rng(seed), tree_of(agents, seed)
    sources = rng.integers(0, agents, (agents, slots)).astype(np.int32)
    stopwatch = Stopwatch()
    found = make_gather(execution, stopwatch)(place(execution, tree), sources)
    assert len(found) == slots
    for slot, of_slot in enumerate(found):
        expected = jax.tree.map(lambda x, s=slot: x[sources[:, s]][execution.agent_of_lane], tree)
        assert_trees_equal(of_slot, expected)

    weights = rng.random((agents, 1 + slots))
    sources = np.concatenate([np.arange(agents, dtype=np.int32)[:, None], sources], 1)
    averaged = make_average(execution, stopwatch)(place(execution, tree), sources, weights)
    assert_trees_equal(to_host(execution, averaged)["seen"], tree["seen"])
    for name, x in tree["params"].items():
        expected = np.einsum("as,as...->a...", weights, x[sources])
        np.testing.assert_allclose(
            averaged["params"][name], expected[execution.agent_of_lane], atol=1e-5
        )


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("graph", [topology.ring(8), topology.one_peer_exponential(8)])
def test_an_average_has_the_bits_of_its_slots_added_one_by_one(graph, devices):
    execution, tree = execution_of(8, devices), tree_of(8)
    placed, stopwatch = place(execution, tree), Stopwatch()
    average = make_average(execution, stopwatch)
    for round in range(graph.period):
        sources, weights = topology.neighbor_slots(graph, round)
        w = weights.astype(np.float32)
        for name, x in tree["params"].items():
            of = [w[:, s].reshape(-1, *[1] * (x.ndim - 1)) for s in range(w.shape[1])]
            expected = of[0] * x
            for slot in range(1, w.shape[1]):
                expected = expected + of[slot] * x[sources[:, slot]]
            found = average(placed, sources, weights)["params"][name][:8]
            # XLA may add w x to the sum without rounding it first.
            np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("devices", [1, 3, 4, 8])
def test_where_everyone_hears_from_everyone_sums_go_round(devices):
    execution, tree = execution_of(8, devices), tree_of(8)
    sources, weights = topology.neighbor_slots(topology.fully_connected(8))
    assert sources.shape[1] > 1 + SLOTS_AT_ONCE
    weights = weights * np.random.default_rng(0).uniform(0.5, 1, weights.shape)
    found = make_average(execution, Stopwatch())(place(execution, tree), sources, weights)
    for name, x in tree["params"].items():
        expected = np.einsum("as,as...->a...", weights, x[sources])
        np.testing.assert_allclose(found["params"][name][:8], expected, atol=2e-6)
    assert_trees_equal(found["seen"], place(execution, tree)["seen"])


def test_who_is_not_heard_spoils_nobody():
    """One agent's weights are not finite: only those who hear from it have such, too."""
    agents = 12
    graph, tree = topology.erdos_renyi(agents, p=0.6, seed=0), tree_of(agents)
    sources, weights = topology.neighbor_slots(graph)
    assert sources.shape[1] > 1 + SLOTS_AT_ONCE
    tree["params"]["x"][5] = np.nan
    execution = execution_of(agents, 4)
    found = make_average(execution, Stopwatch())(place(execution, tree), sources, weights)
    spoiled = np.isnan(np.asarray(found["params"]["x"])).any((1, 2))
    np.testing.assert_array_equal(spoiled, (sources == 5).any(1))
    assert 0 < spoiled.sum() < agents


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_the_product_over_devices_sends_no_more_than_sums(devices):
    execution, tree = execution_of(8, devices), {"x": tree_of(8)["params"]["x"]}
    matrix = np.ones((execution.all_lanes, execution.all_lanes), np.float32)
    lifted = over_devices(
        execution, lambda m, tree: product(m, devices, tree), (REPLICATED, AGENTS)
    )
    placed = place(execution, tree)
    text = jax.jit(lifted).lower(replicate(execution, matrix), placed).compile().as_text()
    assert "all-gather" not in text
    assert permuted_bytes(text) == (devices - 1) * execution.lanes * 4 * 6


@pytest.mark.parametrize(("agents", "devices"), [(8, 8), (16, 8), (24, 4), (16, 2)])
def test_on_a_ring_the_bytes_between_devices_are_those_that_are_counted(agents, devices):
    execution, graph = execution_of(agents, devices), topology.ring(agents)
    tree = {"params": tree_of(agents)["params"]}
    sources, _ = topology.neighbor_slots(graph)
    text = program(execution, sources[:, 1:], tree).as_text()
    assert "collective-permute" in text and "all-gather" not in text
    counted = traffic(Message(), graph, 0, 1, jax.tree.map(lambda x: x[0], tree)).total
    # Two of the edges of each device's lanes lead to another one, each way; all have one lane each.
    home = np.arange(agents) // execution.lanes
    between = (home[:, None] != home[sources[:, 1:]]).sum() / sources[:, 1:].size
    assert devices * permuted_bytes(text) == counted * between
    row = traffic(Message(), topology.ring(3), 0, 1, jax.tree.map(lambda x: x[0], tree)).total // 6
    links = average_link_bytes(execution, sources, row)
    assert links.sum() == counted * between
    here = np.arange(devices)
    # Each device has two neighbours, or one that is both.
    assert (links > 0).sum(1).tolist() == [min(2, devices - 1)] * devices
    assert (links[here, (here + 1) % devices] == row * (1 if devices > 2 else 2)).all()


@pytest.mark.parametrize(("agents", "devices"), [(8, 4), (8, 1), (6, 3)])
def test_the_bytes_of_sums_that_go_round_are_counted(agents, devices):
    execution = execution_of(agents, devices)
    sources, _ = topology.neighbor_slots(topology.fully_connected(agents))
    links = average_link_bytes(execution, sources, 10)
    around = 10 * (devices - 1) * execution.lanes
    assert links.sum(1).tolist() == [around] * devices and (links > 0).sum() <= devices


def test_on_one_device_nothing_moves():
    tree = {"params": tree_of(8)["params"]}
    sources, _ = topology.neighbor_slots(topology.ring(8))
    assert "collective" not in program(execution_of(8, 1), sources[:, 1:], tree).as_text()


def test_a_graph_that_changes_compiles_a_program_for_each_way_that_rows_go():
    agents, graph = 32, topology.one_peer_exponential(32)
    execution = execution_of(agents, 4)
    placed, average = place(execution, tree_of(agents)), make_average(execution, Stopwatch())
    rounds = [topology.neighbor_slots(graph, round) for round in range(graph.period)]
    ways = {find_route(execution, sources[:, 1:]).shifts for sources, _ in rounds}
    assert ways == {((3, 1),), ((3, 2),), ((3, 4),), ((3, 8),), ((2, 8),)}
    for _ in range(2):
        with compilations() as counter:
            for sources, weights in rounds:
                average(placed, sources, weights)
    assert counter.count == 0


def test_graphs_without_order_share_a_few_programs():
    """Each round other agents meet, from devices all over: it is one program for each size."""
    execution, rng = execution_of(32, 8), np.random.default_rng(0)
    ways = set()
    for share in [0.2, 1.0] * 50:
        peers = np.arange(32, dtype=np.int32)
        some = np.flatnonzero(rng.random(32) < share)
        peers[some] = rng.permutation(some)
        ways.add(find_route(execution, peers[:, None]).shifts)
    by_all = {tuple((by, rows) for by in range(1, 8)) for rows in (1, 2, 4)}
    assert ways <= by_all | {()}


@pytest.mark.parametrize(
    ("counts", "lanes", "expected"),
    [
        ([], 4, ()),
        ([[0] * 4] * 3, 4, ()),
        ([[1] * 4, [0] * 4, [1] * 4], 4, ((1, 1), (3, 1))),  # a ring
        ([[0] * 4, [3] * 4, [0] * 4], 6, ((2, 4),)),
        ([[9, 5]], 99, ((1, 16),)),
        ([[0] * 4, [5] * 4, [0] * 4], 6, ((2, 6),)),
        ([[2, 1, 0, 0], [0] * 4, [0, 0, 0, 2]], 8, ((1, 2), (2, 2), (3, 2))),  # no order
        ([[1, 3, 3, 3], [1] * 4, [2] * 4], 8, ((1, 4), (2, 4), (3, 4))),
        ([[0, 5]], 8, ((1, 8),)),
    ],
)
def test_rows_go_by_few_shifts_or_by_all(counts, lanes, expected):
    counts = np.array(counts, int).reshape(len(counts), -1) if counts else np.zeros((0, 1), int)
    assert choose_shifts(counts, lanes) == expected


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_each_lane_takes_what_another_has(devices):
    execution = execution_of(8, devices)
    tree = {"x": np.arange(16.0).reshape(8, 2), "seen": np.arange(8)}
    sources = np.array([3, 0, 7, 7, 1, 2, 5, 6], np.int32)
    lanes = sources[execution.agent_of_lane]
    found = jax.jit(take)(place(execution, tree), jnp.asarray(lanes))
    assert_trees_equal(found, {name: x[lanes] for name, x in tree.items()})


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_each_lane_gets_an_average_in_the_leafs_own_dtype(devices):
    execution = execution_of(8, devices)
    rng = np.random.default_rng(0)
    matrix = rng.random((execution.all_lanes, execution.all_lanes))
    matrix[:, 8:] = 0  # of masked lanes nobody takes anything
    tree = {"x": rng.normal(size=(8, 2, 3)), "half": rng.normal(size=8)}
    placed = place(execution, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))
    placed["half"] = placed["half"].astype(jnp.bfloat16)
    found = jax.jit(mix)(jnp.asarray(matrix, jnp.float32), placed)
    assert found["half"].dtype == jnp.bfloat16
    expected = np.tensordot(matrix[:, :8], tree["x"], 1)
    assert_trees_close(found["x"], expected, 1e-6)
    np.testing.assert_allclose(
        np.asarray(found["half"], np.float32), matrix[:, :8] @ tree["half"], atol=0.1
    )
