"""Images of a run on the devices: shards, batches of a merge round, tests."""

import jax
import numpy as np
import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.datasets.data import of_images
from dimat_jax.execution.placement import AGENTS, FORWARD_BATCH, REPLICATED
from dimat_jax.simulation.examples import (
    common_batches,
    own_batches,
    place_shards,
    pooled_batches,
    some_tests,
    split_evenly,
)
from dimat_jax.simulation.rounds import merge_round
from dimat_jax.simulation.setup import prepare
from dimat_jax.simulation.state import Position, round_keys, seed_keys

DATASET = noise(examples=320, tests=23, size=8)


def prepared(**options):
    return prepare(small_config(**{"devices": 4} | options), linear_softmax(), DATASET)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("agents", [8, 5])
def test_shards_lie_with_their_agents(part, agents):
    plan = prepared(agents=agents, partition="pretrain_iid_finetune_by_class", batch_size=4)
    shards, execution = place_shards(plan, 0, part), plan.execution
    rows = plan.shards[0][part]
    assert (shards.number, shards.steps) == (rows.shape[1], plan.epoch_examples[part] // 4)
    for placed, array in (
        (shards.examples["inputs"], DATASET.train_images),
        (shards.examples["labels"], DATASET.train_labels),
    ):
        for shard in placed.addressable_shards:
            first = shard.device.id * execution.lanes
            agents_there = execution.agent_of_lane[first : first + execution.lanes]
            np.testing.assert_array_equal(shard.data, array[rows[agents_there].ravel()])


@pytest.mark.parametrize(("number", "expected"), [(None, 23), (50, 23), (23, 23), (7, 7)])
def test_some_tests_are_a_fixed_part_of_them_each_once(number, expected):
    data = of_images(DATASET, dj.datasets.AUGMENTATIONS["none"])
    found, again = some_tests(data, number), some_tests(data, number)
    np.testing.assert_array_equal(found.examples["inputs"], again.examples["inputs"])
    counts = found.weights > 0
    known = {image.tobytes(): label for image, label in zip(*DATASET[2:4], strict=True)}
    kept = [image.tobytes() for image in found.examples["inputs"][counts]]
    assert len(kept) == len(set(kept)) == expected and set(kept) <= set(known)
    assert [known[image] for image in kept] == found.examples["labels"][counts].tolist()


def test_a_part_of_the_tests_is_drawn_and_not_cut_off():
    labels = np.repeat(np.arange(4, dtype=np.int32), 250)  # in order of class, as some files are
    images = np.zeros((1000, 1, 1, 1), np.uint8)
    sorted_by_class = DATASET._replace(test_images=images, test_labels=labels)
    found = some_tests(of_images(sorted_by_class, dj.datasets.AUGMENTATIONS["none"]), 200)
    kept = found.examples["labels"][found.weights > 0]
    assert np.bincount(kept, minlength=4).min() > 25


def test_centralized_training_has_every_agents_examples_in_each_lane():
    plan = prepared(partition="by_class")
    apart, pooled, again = (
        np.asarray(place_shards(plan, 0, 1, pooled=p).examples["labels"]).reshape(8, -1)
        for p in (False, True, True)
    )
    assert all(len(set(labels)) == 1 for labels in apart)
    assert all(len(set(labels)) == 4 for labels in pooled)
    np.testing.assert_array_equal(np.sort(apart.ravel()), np.sort(pooled.ravel()))
    np.testing.assert_array_equal(pooled, again)


NORMALIZED = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")


def rounds_of(**options):
    """A set-up; and ``(round) -> inputs, drawn`` of a merge round, on four devices."""
    config = small_config(methods=("wa",), devices=4, matching_images=24, **options)
    plan = prepare(config, NORMALIZED, DATASET)
    shards, keys = place_shards(plan, 0, 1), seed_keys(0)

    def round_of(round):
        position = Position(0, 0, round=round)
        return merge_round(plan, position, shards, round_keys(keys, round), "merge", plan.topology)

    return plan, round_of


def images_on_device(batches, agent, lanes):
    """What an agent sees through its batches: bytes of images, from its own device only."""
    shards = {
        shard.device.id: np.asarray(shard.data)
        for shard in batches.examples["inputs"].addressable_shards
    }
    rows = np.asarray(batches.rows)[agent].ravel()
    return [shards[agent // lanes][row].tobytes() for row in rows]


def test_agents_match_and_count_on_images_of_their_own():
    plan, round_of = rounds_of(statistics_images=1000, topology="one_peer_exponential")
    (first, drawn), (second, _) = round_of(1), round_of(2)
    assert drawn == []  # until a merge asks for them
    matching, statistics = first.matching(), first.statistics()
    assert matching.rows.shape == (8, 1, 24) and statistics.rows.shape == (8, 1, 40)
    assert not np.array_equal(matching.rows, second.matching().rows)  # drawn again
    assert first.matching() is matching and len(drawn) == 2
    own = DATASET.train_images[plan.shards[0][1]]
    for agent in range(8):
        allowed = {image.tobytes() for image in own[agent]}
        assert set(images_on_device(statistics, agent, 2)) == allowed
        matched = images_on_device(matching, agent, 2)
        assert len(set(matched)) == 24 and set(matched) <= allowed
    for round, found in enumerate((first, second)):
        sources, weights = topology.neighbor_slots(plan.topology, round)
        np.testing.assert_array_equal(found.sources, sources)
        np.testing.assert_array_equal(found.weights, weights)
        assert found.frame == "own" and found.aligns


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({"matching_data": "shared"}, range(8)),
        ({"matching_data": "shared", "statistics_data": "shared"}, range(8)),
        ({"merge_frame": "reference", "matching_data": "shared"}, range(8)),
    ],
)
def test_common_images_are_the_same_for_all(options, pool):
    plan, round_of = rounds_of(**options)
    round, _ = round_of(1)
    own = DATASET.train_images[plan.shards[0][1]]
    allowed = {image.tobytes() for agent in pool for image in own[agent]}
    seen = [images_on_device(round.matching(), agent, 2) for agent in range(8)]
    assert all(images == seen[0] for images in seen)
    assert len(set(seen[0])) == 24 and set(seen[0]) <= allowed
    assert round.frame == options.get("merge_frame", "own")
    # Statistics come from each agent's own images, but where they are shared.
    shared = "statistics_data" in options
    found = set(images_on_device(round.statistics(), 3, 2))
    assert found <= {x.tobytes() for agent in (range(8) if shared else [3]) for x in own[agent]}
    assert (found <= {x.tobytes() for x in own[3]}) == (not shared)


@pytest.mark.parametrize(
    ("every", "aligning"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), ("once", [1])]
)
def test_units_are_aligned_in_the_rounds_asked_for(every, aligning):
    _, round_of = rounds_of(merge_frame="reference", align_every=every)
    assert [round for round in range(1, 6) if round_of(round)[0].aligns] == aligning


def test_a_pool_has_a_batch_of_everyones_images_for_each_agent():
    plan = prepared(partition="by_class", examples_per_agent=40)
    pool = pooled_batches(plan, place_shards(plan, 0, 1), jax.random.key(0))
    rows = np.asarray(pool.rows)
    assert pool.shared and rows.shape == (8, 1, 40)  # all images that there are
    assert len(np.unique(rows)) == 320
    labels = {x.tobytes(): y for x, y in zip(*DATASET[:2], strict=True)}
    images = np.asarray(pool.examples["inputs"].addressable_shards[0].data)
    for batch in rows[:, 0]:
        assert len({labels[images[row].tobytes()] for row in batch}) == 4


def test_the_same_images_drawn_as_own_and_as_common_ones_say_where_they_lie():
    plan = prepared()
    shards, key = place_shards(plan, 0, 1), jax.random.key(0)
    own, common = own_batches(plan, shards, key, 24), common_batches(plan, shards, key, 24, 8)
    assert (own.spec, common.spec) == (AGENTS, REPLICATED)
    assert own.number == common.number == 1
    assert [len(b.examples["inputs"].addressable_shards[0].data) for b in (own, common)] == [80, 24]


@pytest.mark.parametrize("number", [1, 2, 127, 128, 129, 300, 1024, 1250])
def test_images_are_split_into_batches_of_one_size(number):
    batches, size = split_evenly(number)
    assert size <= FORWARD_BATCH
    assert number - batches < batches * size <= number
