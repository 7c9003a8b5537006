"""The merge round of a population on its devices: mixing, aligning, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.mergers import (
    AGENTS,
    DATASET,
    SHAPE,
    Case,
    case,
    case_of,
    own_batches,
    population_of,
    shared_batches,
)
from helpers.small_runs import (
    assert_trees_close,
    compilations,
    disorder,
    execution_of,
    normaliser,
    random_variables,
)

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Merged, MergeRound
from dimat_jax.execution.placement import place
from dimat_jax.merging import statistics
from dimat_jax.merging.batches import Batches
from dimat_jax.simulation.measure import consensus_distance


def merge(method, case, variables, graph, batches, round=0, frame="own") -> Merged:
    sources, weights = topology.neighbor_slots(graph, round)
    inputs = MergeRound(
        sources,
        weights,
        examples=np.ones(graph.agents, int),
        matching=lambda: batches,
        statistics=lambda: batches,
        tree=lambda: topology.flood(graph),
        frame=frame,
        aligns=True,
        key=jax.random.key(7),
    )
    return METHODS[method].merge.apply(case.merger, variables, (), inputs)


GRAPHS = [
    topology.ring(AGENTS),
    topology.fully_connected(AGENTS),
    topology.star(AGENTS),
    topology.erdos_renyi(AGENTS, p=0.4, seed=1),
    topology.one_peer_exponential(AGENTS),
]


def test_weight_averaging_is_the_mixing_matrix_whatever_the_graph():
    mlp = case("mlp")
    batches = own_batches(mlp.execution)
    rounds = [(graph, round) for graph in GRAPHS for round in range(graph.period)]
    variables = population_of(mlp)
    for graph, round in rounds:  # compiles what there is to compile
        mixed = merge("wa", mlp, variables, graph, batches, round).variables
        matrix = graph.mixing_matrix(round)
        expected = jax.tree.map(
            lambda x, m=matrix: np.einsum("ij,j...->i...", m, np.asarray(x, np.float64)),
            variables["params"],
        )
        assert_trees_close(mixed["params"], expected, tolerance=1e-5)
    with compilations() as counter:
        for graph, round in rounds:
            merge("wa", mlp, variables, graph, batches, round)
    assert counter.count == 0


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_statistics_planted_wrong_are_recomputed_from_each_agents_own_images(name):
    model, execution, _, merger, _ = case(name)
    batches, variables = own_batches(execution), population_of(case(name))
    found = merger.recompute(variables, batches)
    wrong = jax.tree.map(lambda x: 100 * x - 7, variables["batch_stats"])
    again = merger.recompute({**variables, "batch_stats": wrong}, batches)
    assert_trees_close(again, found, tolerance=1e-5)
    assert_trees_close(again["params"], variables["params"], tolerance=0)

    task = dj.classification(model)
    of_batch = jax.jit(functools.partial(statistics.batch_statistics, task))
    images = normaliser(DATASET)(DATASET.train_images.reshape(AGENTS, 2, -1, *SHAPE))
    for agent in (0, 1, 7):
        own = jax.tree.map(lambda x, a=agent: x[a], variables)
        first, second = (
            of_batch(own, {"inputs": x, "labels": np.zeros(len(x), np.int32)})
            for x in images[agent]
        )
        expected = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
        mine = jax.tree.map(lambda x, a=agent: x[a], found["batch_stats"])
        assert_trees_close(mine, expected, tolerance=1e-4)


def permuted_copies(case: Case, batches: Batches):
    """One network, its statistics those of the images, with its units in another order for each."""
    one = jax.tree.map(lambda x: x[:1], random_variables(case.model, SHAPE, AGENTS))
    copies = jax.tree.map(lambda x: jnp.repeat(x, AGENTS, 0), one)
    copies = case.merger.recompute(place(case.execution, copies), batches)
    disorders = place(case.execution, disorder(case.symmetries, 0, AGENTS))
    return case.merger.permute(disorders, copies)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_dimat_gives_permuted_copies_of_a_network_back_as_they_are(name):
    this = case(name)
    batches = own_batches(this.execution, same=True)
    copies = permuted_copies(this, batches)
    graph = topology.ring(AGENTS)
    this.stopwatch.take()
    merged, _, permutations, moved, _ = merge("dimat", this, copies, graph, batches)
    assert not moved
    averaged = merge("wa", this, copies, graph, batches).variables
    assert_trees_close(merged, copies, tolerance=1e-4)

    images = normaliser(DATASET)(DATASET.test_images[:9])
    run = jax.jit(jax.vmap(lambda v: this.model.apply(v, images)[0]))
    logits = run(jax.device_get(copies))
    np.testing.assert_allclose(run(jax.device_get(merged)), logits, atol=1e-4)
    assert np.abs(run(jax.device_get(averaged)) - logits).max() > 0.1

    assert len(permutations) == 2  # one for each neighbour on the ring
    for used in permutations:
        for name, group in this.symmetries.groups.items():
            np.testing.assert_array_equal(
                np.sort(used[name]), np.tile(range(group.size), (AGENTS, 1))
            )
    assert {"match", "assign", "mix", "statistics"} <= this.stopwatch.take().keys()


def test_permuted_copies_agree_in_the_first_agents_frame():
    mlp = case("mlp")
    batches = own_batches(mlp.execution, same=True)
    copies = permuted_copies(mlp, batches)
    assert consensus_distance(copies) > 1
    graph = topology.fully_connected(AGENTS)
    merged, _, (permutations,), moved, _ = merge(
        "dimat", mlp, copies, graph, batches, frame="reference"
    )
    assert moved
    assert consensus_distance(merged) < 1e-5
    first = jax.tree.map(lambda x: jnp.repeat(x[:1], AGENTS, 0), jax.device_get(copies))
    assert_trees_close(merged, first, tolerance=1e-4)
    for name, group in mlp.symmetries.groups.items():
        np.testing.assert_array_equal(permutations[name][0], np.arange(group.size))


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_permuted_copies_become_one_in_a_universe_and_stay_what_they_are_by_weights(name):
    this = case(name)
    batches = own_batches(this.execution, same=True)
    copies, graph = permuted_copies(this, batches), topology.ring(AGENTS)
    merged, _, (permutations,), moved, _ = merge("universe", this, copies, graph, batches)
    assert moved
    assert consensus_distance(copies) > 1 and consensus_distance(merged) < 1e-5
    moved = this.merger.permute(permutations, copies)
    assert_trees_close(merged["params"], moved["params"], tolerance=1e-5)
    merged, _, permutations, *_ = merge("wm", this, copies, graph, batches)
    assert_trees_close(merged, copies, tolerance=1e-4)
    assert len(permutations) == 2


def test_what_is_no_float_is_neither_mixed_nor_lost():
    mlp = case("mlp")
    tree = place(mlp.execution, {"x": jnp.arange(8.0), "seen": jnp.arange(8)})
    half = np.full(AGENTS, 0.5)
    total = mlp.merger.add(mlp.merger.add(None, half, tree), half, tree)
    np.testing.assert_array_equal(total["x"], tree["x"])
    np.testing.assert_array_equal(total["seen"], tree["seen"])


def test_models_without_running_statistics_have_none_to_recompute():
    model = dj.models.mlp(num_classes=4, width=0.03, depth=1)
    this = case_of(model, execution_of(AGENTS, 8))
    variables = population_of(this)
    assert this.merger.recompute(variables, own_batches(this.execution)) is variables


@pytest.mark.parametrize("name", ["mlp", pytest.param("convnet", marks=pytest.mark.slow)])
def test_shared_and_own_images_that_are_the_same_give_the_same(name):
    """`Batches` says where its images lie; whoever runs networks on them takes it from there."""
    this = case(name)
    own, shared = own_batches(this.execution, same=True), shared_batches(this.execution)
    assert own.spec != shared.spec and own.number == shared.number == 2
    assert [len(b.examples["inputs"].addressable_shards[0].data) for b in (own, shared)] == [
        128,
        64,
    ]
    variables = population_of(this)
    rolled = this.merger.gather(variables, np.roll(np.arange(AGENTS), 1).astype(np.int32))
    found = []
    for batches in (own, shared, own):  # in either order: nothing of the first use stays
        (permutations,) = this.merger.match["activations"](variables, [rolled], batches)
        recomputed = this.merger.recompute(variables, batches)["batch_stats"]
        goal = this.merger.repair.read(variables, batches)
        corrected = this.merger.repair.correct(rolled, goal, batches)
        found.append((permutations, recomputed, goal, corrected))
    for other in found[1:]:
        assert_trees_close(other, found[0], 1e-5)


def test_a_state_is_permuted_with_each_agents_variables():
    this = case("mlp")
    variables = population_of(this)
    permutations = place(this.execution, disorder(this.symmetries, 0, AGENTS))
    moved = this.merger.permute(permutations, variables)
    state = {"velocity": variables["params"], "count": place(this.execution, np.arange(AGENTS))}
    found = this.merger.permute_state(permutations, variables, state)
    assert_trees_close(found, {**state, "velocity": moved["params"]}, 0)


def test_alignment_on_masked_lanes_is_that_of_the_agents():
    """Three agents on two devices find what eight of them find, of whom they are the first."""
    model = case("mlp").model
    small = case_of(model, execution_of(3, 2))
    some = jax.tree.map(lambda x: x[:3], random_variables(model, SHAPE, AGENTS))
    rows = np.tile(np.arange(64, dtype=np.int32).reshape(1, 2, -1), (3, 1, 1))
    images = shared_batches(case("mlp").execution).examples
    batches = Batches(place(small.execution, rows), jax.device_get(images), shared=True)
    sources = np.array([1, 2, 0], np.int32)
    variables = place(small.execution, some)
    (found,) = small.merger.match["activations"](
        variables, [small.merger.gather(variables, sources)], batches
    )
    big = case("mlp")
    of_big = population_of(big)
    order = np.array([1, 2, 0, *range(3, AGENTS)], np.int32)
    (expected,) = big.merger.match["activations"](
        of_big, [big.merger.gather(of_big, order)], shared_batches(big.execution)
    )
    for name, rows in found.items():
        np.testing.assert_array_equal(rows[:3], expected[name][:3])
        np.testing.assert_array_equal(rows[3], rows[2])
