"""The compiled parts of a run, on the form that the main job has."""

import time

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
from dimat_jax.simulation.examples import place_shards
from dimat_jax.simulation.parts import make_parts, schedule_of
from dimat_jax.simulation.setup import prepare
from dimat_jax.simulation.state import seed_keys
from dimat_jax.training.local import epoch_order
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import init_population

DATASET = noise(examples=320, tests=23, size=8)
CALLBACKS = {"pure_callback", "io_callback", "debug_callback", "outside_call", "infeed", "outfeed"}


def prepared(model=None, **options):
    return prepare(small_config(**{"devices": 4} | options), model, DATASET)


def test_the_schedule_spans_the_whole_run():
    constant = schedule_of(prepared())
    assert constant(0) == constant(1000) == 0.05
    cosine = schedule_of(
        prepared(schedule="cosine", pretrain_epochs=2, rounds=3, epochs_per_round=2)
    )
    steps = (2 + 3 * 2) * 5
    assert cosine(0) == pytest.approx(0.05) and cosine(steps) == pytest.approx(0, abs=1e-9)
    assert cosine(steps // 2) == pytest.approx(0.025)


def test_the_exponential_schedule_lowers_the_rate_of_gossip_in_the_rounds():
    plan = prepared(schedule="exponential", pretrain_epochs=2)
    local, gossip = schedule_of(plan), schedule_of(plan, gossip=True)
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
    config = small_config(model=model, width=0.25, devices=4)
    plan, key = prepare(config, dataset=DATASET), seed_keys(0).order
    optimizer = OPTIMIZERS["momentum"]()
    state = jax.eval_shape(
        lambda key: init_population(plan.task, optimizer, key, 8, plan.abstract[1]), key
    )
    train, shards = make_parts(plan).train, place_shards(plan, 0, 0)
    jaxpr = jax.make_jaxpr(lambda state: train(state, shards, key, 0))(state).jaxpr
    names = {eqn.primitive.name for eqn, _ in equations(jaxpr)}
    assert "dot_general" in names and not names & CALLBACKS
    convolutions = {"conv_general_dilated", "ffi_call"} & names
    assert len(convolutions) == (model == "convnet")  # XLA's, or those of dimat_jax_cpu.


def test_training_and_evaluation_in_both_forms_are_those_of_one_agent_alone(x64):
    plan = prepare(small_config(devices=4), linear_softmax(), DATASET)
    keys, results = seed_keys(0), []
    for sequential in (False, True):
        execution = plan.execution._replace(
            sequential=sequential, lanes_at_once=1 if sequential else plan.execution.lanes
        )
        form = plan._replace(execution=execution)
        parts = make_parts(form)
        shards = place_shards(form, 0, 0)
        start = parts.init(keys.init)
        before = jax.device_get(start.variables)
        state = parts.train(start, shards, keys.order, 3)
        score = parts.evaluate(state.variables, parts.tests)
        results.append((before, state, score))
    assert_trees_equal(results[0][0], results[1][0])
    assert_trees_close(results[0][1:], results[1][1:], tolerance=1e-12)

    before, state, score = results[0]
    mean, std = dj.datasets.channel_statistics(DATASET.train_images)
    order = epoch_order(keys.order, 3, 8, 40, 5, 8, 1)
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
        assert score.totals["accuracy"].sum[agent] == correct
    assert state.step.tolist() == [5] * 8


def test_what_an_epoch_compiles_is_not_taken_for_training():
    plan = prepare(small_config(devices=2), linear_softmax(), DATASET)
    parts, keys = make_parts(plan), seed_keys(0)
    state, shards = parts.init(keys.init), place_shards(plan, 0, 0)
    parts.stopwatch.take()
    start = time.monotonic()
    with compilations() as counter, parts.stopwatch.measure("train"):
        jax.block_until_ready(parts.train(state, shards, keys.order, 0))
    whole = time.monotonic() - start
    found = parts.stopwatch.take()
    assert found["compile"] > 0.6 * counter.seconds  # all but slices and zeros
    assert found["train"] + found["compile"] <= whole  # counted once


def test_a_fresh_optimizer_forgets_and_keeps_all_else():
    plan = prepare(small_config(devices=2), linear_softmax(), DATASET)
    parts, keys = make_parts(plan), seed_keys(0)
    trained = parts.train(parts.init(keys.init), place_shards(plan, 0, 0), keys.order, 0)
    assert all((jnp.abs(x) > 0).any() for x in jax.tree.leaves(trained.optimizer))
    fresh = parts.fresh(trained)
    assert all((x == 0).all() for x in jax.tree.leaves(fresh.optimizer))
    assert_trees_equal(fresh._replace(optimizer=None), trained._replace(optimizer=None))


def test_seeds_have_weights_of_their_own_and_agents_only_if_asked():
    for same in (False, True):
        plan = prepare(
            small_config(devices=2, init="same" if same else "different"),
            linear_softmax(),
            DATASET,
        )
        parts = make_parts(plan)
        first, second = (
            np.asarray(parts.init(seed_keys(seed).init).variables["params"]["kernel"])
            for seed in (0, 1)
        )
        assert len({kernel.tobytes() for kernel in first}) == (1 if same else 8)
        assert not np.array_equal(first, second)
