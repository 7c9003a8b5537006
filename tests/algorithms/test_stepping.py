"""Gossip training, against a plain loop over steps and agents."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dimat_jax.execution.population import take
from helpers.small_runs import (
    assert_trees_close,
    compilations,
    counted,
    linear_softmax,
    noise,
    normaliser,
    small_config,
)

import dimat_jax as dj
from dimat_jax.algorithms import METHODS, exchanges
from dimat_jax.algorithms import stepping as gossiping
from dimat_jax.algorithms.base import Algorithm, Gossip
from dimat_jax.models.convnet import ConvNet
from dimat_jax.simulation import engine
from dimat_jax.simulation.setup import prepare, seed_keys
from dimat_jax.training import local as training

DATASET = noise(examples=80, tests=20, size=8)
EPOCHS, STEPS, BATCH, RATE = 2, 2, 5, 0.1


def config_of(**options):
    defaults = dict(batch_size=BATCH, learning_rate=RATE, augmentation="none", devices=4)
    return small_config(**defaults | options)


def plain_loop(plan, gossip: Gossip, state: training.AgentState, shards: engine.Shards, key):
    """The same epochs by loops over steps, points and agents; on the host, but for the formulas."""
    normalise, agents = normaliser(DATASET), range(plan.config.agents)
    images, labels = np.asarray(shards.images), np.asarray(shards.labels)
    rounds = exchanges(plan.graphs[plan.config.methods[0]])
    kept = gossip.init(state.variables["params"], take(rounds, 0))

    @jax.jit
    def gradient_at(params, images, labels):
        def loss(params):
            logits, _ = plan.model.apply({"params": params}, normalise(images), train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    for step in range(EPOCHS * STEPS):
        now = take(rounds, step % len(rounds.matrix))
        order = training.epoch_order(
            key, step // STEPS, len(agents), shards.examples, STEPS, BATCH, len(agents)
        )
        gradients = []
        for point in gossip.points(kept, now):
            batches = [
                (images[order[i, step % STEPS]], labels[order[i, step % STEPS]]) for i in agents
            ]
            each = [gradient_at(take(point, i), *batches[i]) for i in agents]
            gradients.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
        kept = gossip.update(tuple(gradients), kept, now, jnp.asarray(RATE))
    return gossip.points(kept, take(rounds, EPOCHS * STEPS % len(rounds.matrix)))[0]


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(
    ("method", "topology"),
    [("cdsgd", "one_peer_exponential"), ("cga", "ring"), ("sgp", "exponential")],
)
def test_epochs_are_those_of_a_plain_loop(method, topology, looped):
    with jax.enable_x64(True):
        config = config_of(methods=(method,), topology=topology)
        plan = prepare(config, model=linear_softmax(), dataset=DATASET)
        plan = plan._replace(execution=plan.execution._replace(looped=looped))
        parts, keys = engine.make_engine(plan), seed_keys(0)
        shards, state = engine.place_shards(plan, 0, 1), parts.init(keys.init)
        gossip = METHODS[method].gossip
        expected = plain_loop(plan, gossip, state, shards, keys.order)
        graph = exchanges(plan.graphs[method])
        state, kept = parts.gossip(gossip).start(state, graph)
        for epoch in range(EPOCHS):
            state, kept = parts.gossip(gossip).train(state, kept, graph, shards, keys.order, epoch)
        assert_trees_close(state.variables["params"], expected, 1e-10)
        np.testing.assert_array_equal(state.step, [EPOCHS * STEPS] * 8)
        np.testing.assert_array_equal(state.diverged, [-1] * 8)


def test_points_are_stacked_and_taken_apart_again():
    points = tuple({"x": jnp.full((3, 2), i), "y": jnp.full((3,), -i)} for i in range(4))
    stacked = gossiping.stack_points(points)
    assert stacked["x"].shape == (3, 4, 2) and stacked["y"].shape == (3, 4)
    for before, after in zip(points, gossiping.unstack_points(stacked), strict=True):
        assert_trees_close(before, after, 0)


def rows_of(**options):
    """A run's rows, and how often was traced and compiled until each."""
    model = dj.from_linen(ConvNet(num_classes=4, channels=(3, 4), norm="batch"))
    model, traced = counted(model)
    rows, counts = [], []
    with compilations() as compiled:

        def on_row(row):
            rows.append(row)
            counts.append((traced.count, compiled.count))

        observer = dj.Observer(on_row=on_row)
        result = dj.simulate(config_of(**options), model=model, dataset=DATASET, observer=observer)
    return result, rows, counts


def test_a_gossip_run_compiles_in_its_first_round_alone_and_counts_every_step():
    result, rows, counts = rows_of(methods=("cdsgd", "cdmsgd"), rounds=3)
    assert [(r["method"], r["phase"], r["round"]) for r in rows[1:]] == [
        (method, "train", round) for method in ("cdsgd", "cdmsgd") for round in (1, 2, 3)
    ]
    assert counts[1] == counts[2] == counts[3] and counts[4] == counts[5] == counts[6]
    # The second method's gradients are the first's: all test images are another shape, no more.
    assert counts[4][0] - counts[3][0] <= 1
    params = result.setup.abstract[0]["params"]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    for row in rows[1:]:
        assert row["bytes_sent"] == row["round"] * STEPS * 2 * size
        assert row["train_loss"] > 0 and row["images_per_second"] > 0


@pytest.mark.parametrize("recompute", [True, False])
def test_running_statistics_are_recomputed_after_a_round_if_asked_for(recompute):
    result, rows, _ = rows_of(methods=("cdsgd",), rounds=1, recompute_statistics=recompute)
    assert ("statistics" in rows[1]["seconds"]) == recompute
    stats = jax.tree.leaves(result.variables["batch_stats"])
    assert all(np.isfinite(x).all() and np.ptp(x, axis=0).max() > 0 for x in stats)


def test_a_method_has_a_learning_rate_of_its_own():
    def end(method, **options):
        config = config_of(methods=(method,), rounds=1, **options)
        return dj.simulate(config, model=linear_softmax(), dataset=DATASET).variables

    for method in ("cdsgd", "wa"):
        own = end(method, pretrain_epochs=0, method_learning_rate=((method, 0.03),))
        alike = end(method, pretrain_epochs=0, learning_rate=0.03)
        assert_trees_close(own, alike, 1e-6)
        other = end(method, pretrain_epochs=0)
        with pytest.raises(AssertionError):
            assert_trees_close(own, other, 1e-6)


def test_merging_at_the_end_comes_after_all_training(monkeypatch):
    final: Algorithm = METHODS["wa"]._replace(at_end=True)
    monkeypatch.setitem(METHODS, "wa", final)
    result, rows, _ = rows_of(methods=("wa",), rounds=2)
    assert [(r["phase"], r["round"]) for r in rows[1:]] == [
        ("train", 1),
        ("train", 2),
        ("merge", 3),
    ]
    assert [r["epoch"] for r in rows[1:]] == [2, 3, 3]
    assert [r["bytes_sent"] > 0 for r in rows[1:]] == [False, False, True]
