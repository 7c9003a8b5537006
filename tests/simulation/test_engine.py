"""The compiled parts of a run, on the form that the main job has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import (
    assert_trees_close,
    assert_trees_equal,
    compilations,
    equations,
    linear_softmax,
    noise,
    small_config,
    traced_through,
)

import dimat_jax as dj
from dimat_jax.simulation import engine, setup
from dimat_jax.training import local as training

DATASET = noise(examples=320, tests=23, size=8)
CALLBACKS = {"pure_callback", "io_callback", "debug_callback", "outside_call", "infeed", "outfeed"}


def prepared(**options):
    return setup.prepare(small_config(**{"devices": 4} | options), dataset=DATASET)


@pytest.mark.parametrize("part", [0, 1])
def test_shards_lie_with_their_agents(part):
    plan = prepared(partition="pretrain_iid_finetune_by_class", batch_size=4)
    shards = engine.place_shards(plan, 0, part)
    rows = plan.shards[0][part]
    assert (shards.examples, shards.steps) == (rows.shape[1], plan.epoch_examples[part] // 4)
    for placed, array in (
        (shards.images, DATASET.train_images),
        (shards.labels, DATASET.train_labels),
    ):
        for shard in placed.addressable_shards:
            first = shard.device.id * plan.execution.lanes
            agents = rows[first : first + plan.execution.lanes]
            np.testing.assert_array_equal(shard.data, array[agents.ravel()])


def test_the_distance_from_consensus_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 4))
    variables = {
        "params": {"a": jnp.asarray(kernel), "b": jnp.asarray(bias)},
        "batch_stats": {"mean": jnp.asarray(rng.normal(size=(5, 2)))},
    }
    flat = np.concatenate([kernel.reshape(5, -1), bias], 1)
    expected = np.sqrt((np.linalg.norm(flat - flat.mean(0), axis=1) ** 2).mean())
    assert engine.consensus_distance(variables) == pytest.approx(expected, rel=1e-6)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), variables)
    assert engine.consensus_distance(same) == 0


@pytest.mark.parametrize(("number", "expected"), [(None, 23), (50, 23), (23, 23), (7, 7)])
def test_some_tests_are_a_fixed_part_of_them_each_once(number, expected):
    images, labels = engine.some_tests(DATASET, number)
    again, _ = engine.some_tests(DATASET, number)
    np.testing.assert_array_equal(images, again)
    images, labels = images.reshape(-1, *images.shape[2:]), labels.ravel()
    known = {image.tobytes(): label for image, label in zip(*DATASET[2:4], strict=True)}
    kept = [image.tobytes() for image, label in zip(images, labels, strict=True) if label >= 0]
    assert len(kept) == len(set(kept)) == expected and set(kept) <= set(known)
    assert [known[image] for image in kept] == [label for label in labels if label >= 0]


def test_a_part_of_the_tests_is_drawn_and_not_cut_off():
    labels = np.repeat(np.arange(4, dtype=np.int32), 250)  # in order of class, as some files are
    images = np.zeros((1000, 1, 1, 1), np.uint8)
    sorted_by_class = DATASET._replace(test_images=images, test_labels=labels)
    _, found = engine.some_tests(sorted_by_class, 200)
    assert np.bincount(found[found >= 0], minlength=4).min() > 25


def test_the_schedule_spans_the_whole_run():
    constant = engine.make_schedule(prepared())
    assert constant(0) == constant(1000) == 0.05
    cosine = engine.make_schedule(
        prepared(schedule="cosine", pretrain_epochs=2, rounds=3, epochs_per_round=2)
    )
    steps = (2 + 3 * 2) * 5
    assert cosine(0) == pytest.approx(0.05) and cosine(steps) == pytest.approx(0, abs=1e-9)
    assert cosine(steps // 2) == pytest.approx(0.025)


def test_the_exponential_schedule_is_that_of_the_published_baselines():
    plan = prepared(schedule="exponential", pretrain_epochs=2)
    local, gossip = engine.make_schedule(plan), engine.make_schedule(plan, gossip=True)
    assert local(0) == local(1000) == 0.05
    for epoch in (0, 1, 2):  # of the rounds, five steps each
        for step in (0, 4):
            rate = gossip(10 + 5 * epoch + step)
            assert rate == pytest.approx(0.05 * 0.981**epoch)
    assert gossip(3) == pytest.approx(0.05)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_an_epoch_needs_nothing_from_the_device(model, monkeypatch):
    """JAX's transfer guard sees nothing on CPU, where host and device share their memory. So trace
    a whole epoch: whoever needed a value on the host would get a tracer, and fail."""
    traced_through(monkeypatch)
    plan, key = prepared(model=model, width=0.25), setup.seed_keys(0).order
    optimizer = training.OPTIMIZERS["momentum"]()
    state = jax.eval_shape(
        lambda key: training.init_population(plan.model, optimizer, key, 8, (8, 8, 3)), key
    )
    train, shards = engine.make_engine(plan).train, engine.place_shards(plan, 0, 0)
    jaxpr = jax.make_jaxpr(lambda state: train(state, shards, key, 0))(state).jaxpr
    names = {eqn.primitive.name for eqn, _ in equations(jaxpr)}
    assert "dot_general" in names and not names & CALLBACKS
    convolutions = {"conv_general_dilated", "ffi_call"} & names
    assert len(convolutions) == (model == "convnet")  # XLA's, or those of dimat_jax_cpu.


def test_training_and_evaluation_in_both_forms_are_those_of_one_agent_alone(x64):
    plan = setup.prepare(small_config(devices=4), linear_softmax(), DATASET)
    keys, results = setup.seed_keys(0), []
    for looped in (False, True):
        form = plan._replace(execution=plan.execution._replace(looped=looped))
        parts = engine.make_engine(form)
        shards = engine.place_shards(form, 0, 0)
        start = parts.init(keys.init)
        before = jax.device_get(start.variables)
        state = parts.train(start, shards, keys.order, 3)
        score = parts.evaluate(state.variables, parts.tests)
        results.append((before, state, score))
    assert_trees_equal(results[0][0], results[1][0])
    assert_trees_close(results[0][1:], results[1][1:], tolerance=1e-12)

    before, state, score = results[0]
    mean, std = dj.datasets.channel_statistics(DATASET.train_images)
    order = training.epoch_order(keys.order, 3, 8, 40, 5, 8, 1)
    for agent in (0, 3, 7):
        kernel, bias = (before["params"][name][agent] for name in ("kernel", "bias"))
        velocity = 0, 0
        for rows in plan.shards[0][0][agent][np.asarray(order[agent])]:
            x = ((DATASET.train_images[rows] / 255 - mean) / std).reshape(8, -1)
            logits = x @ kernel + bias
            shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            error = (shares - np.eye(4)[DATASET.train_labels[rows]]) / 8
            velocity = 0.9 * velocity[0] + x.T @ error, 0.9 * velocity[1] + error.sum(0)
            kernel, bias = kernel - 0.05 * velocity[0], bias - 0.05 * velocity[1]
        np.testing.assert_allclose(state.variables["params"]["kernel"][agent], kernel, atol=1e-8)
        np.testing.assert_allclose(state.variables["params"]["bias"][agent], bias, atol=1e-8)
        x = ((DATASET.test_images / 255 - mean) / std).reshape(23, -1)
        correct = ((x @ kernel + bias).argmax(1) == DATASET.test_labels).sum()
        assert score.correct[agent] == correct
    assert state.step.tolist() == [5] * 8


def test_what_an_epoch_compiles_is_not_taken_for_training():
    plan = setup.prepare(small_config(devices=2), linear_softmax(), DATASET)
    parts, keys = engine.make_engine(plan), setup.seed_keys(0)
    state, shards = parts.init(keys.init), engine.place_shards(plan, 0, 0)
    parts.stopwatch.take()
    with compilations() as counter, parts.stopwatch.measure("train"):
        jax.block_until_ready(parts.train(state, shards, keys.order, 0))
    found = parts.stopwatch.take()
    assert found["compile"] > 0.6 * counter.seconds  # all but slices and zeros
    assert found["train"] < 0.5 * counter.seconds


def test_a_fresh_optimizer_forgets_and_keeps_all_else():
    plan = setup.prepare(small_config(devices=2), linear_softmax(), DATASET)
    parts, keys = engine.make_engine(plan), setup.seed_keys(0)
    trained = parts.train(parts.init(keys.init), engine.place_shards(plan, 0, 0), keys.order, 0)
    assert all((jnp.abs(x) > 0).any() for x in jax.tree.leaves(trained.optimizer))
    fresh = parts.fresh(trained)
    assert all((x == 0).all() for x in jax.tree.leaves(fresh.optimizer))
    assert_trees_equal(fresh._replace(optimizer=None), trained._replace(optimizer=None))


def test_seeds_have_weights_of_their_own_and_agents_only_if_asked():
    for same in (False, True):
        plan = setup.prepare(
            small_config(devices=2, init="same" if same else "different"),
            linear_softmax(),
            DATASET,
        )
        parts = engine.make_engine(plan)
        first, second = (
            np.asarray(parts.init(setup.seed_keys(seed).init).variables["params"]["kernel"])
            for seed in (0, 1)
        )
        assert len({kernel.tobytes() for kernel in first}) == (1 if same else 8)
        assert not np.array_equal(first, second)
