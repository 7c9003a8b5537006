"""The mean of all agents' networks, against one that is made by hand."""

import jax
import numpy as np
import pytest
from helpers.sessions import copied, finish, session_as
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax.datasets import channel_statistics, normalize
from dimat_jax.execution.placement import to_host


def merged_config(**options) -> dj.Config:
    return small_config(**{"merged_every": 1} | options)


MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")


def images_of(dataset, images):
    mean, std = channel_statistics(dataset.train_images)
    return normalize(images, np.asarray(mean, np.float64), np.asarray(std, np.float64))


@pytest.mark.parametrize(("agents", "devices", "tests"), [(5, 4, 23), (8, 2, 300)])
def test_its_accuracy_is_that_of_the_mean_of_the_parameters(agents, devices, tests, x64):
    dataset = noise(examples=80, tests=tests, size=4)
    config = merged_config(agents=agents, devices=devices, methods=("local_only",), rounds=1)
    session = session_as(config, linear_softmax(), dataset)
    done = finish(session)
    params = done.variables["local_only", 0]["params"]
    mean = {name: x.mean(0) for name, x in params.items()}
    x = np.asarray(images_of(dataset, dataset.test_images)).reshape(tests, -1)
    labels = (x @ mean["kernel"] + mean["bias"]).argmax(1)
    expected = (labels == dataset.test_labels).mean()
    assert done.rows[-1]["merged_accuracy"] == pytest.approx(expected)


@pytest.mark.slow
def test_it_has_the_statistics_of_everyones_images(x64):
    dataset = noise(examples=80, tests=40, size=4)
    config = merged_config(agents=4, devices=2, methods=("local_only",), partition="by_class")
    session = session_as(config, MLP, dataset)
    state = session.train(session.start())
    found = session.measure(copied(state), "pretrain")["merged_accuracy"]

    pool = session.pools(0, 0)
    variables = to_host(session.setup.execution, state.agents.variables)
    mean = jax.tree.map(lambda x: x.mean(0), variables)
    statistics = []
    for rows in np.asarray(pool.rows)[:4, 0]:
        batch = images_of(dataset, np.asarray(pool.examples["inputs"])[rows])
        zero = {**mean, "batch_stats": jax.tree.map(np.zeros_like, mean["batch_stats"])}
        _, after = MLP.apply(zero, batch, train=True)
        statistics.append(after["batch_stats"])
    # A momentum of 0.9 leaves a tenth of the batch's own.
    own = jax.tree.map(lambda *x: 10 * np.mean(x, axis=0), *statistics)
    logits, _ = MLP.apply({**mean, "batch_stats": own}, images_of(dataset, dataset.test_images))
    assert found == pytest.approx((logits.argmax(1) == dataset.test_labels).mean())


@pytest.mark.slow
def test_it_is_the_plain_mean_whatever_frames_agents_have(x64):
    """After a merge in frames of their own units stand in different orders."""
    dataset = noise(examples=64, tests=40, size=4)
    config = merged_config(agents=4, devices=2, methods=("dimat",), rounds=1, merge_frame="own")
    model = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="none")
    session = session_as(config, model, dataset)
    state = session.begin(session.train(session.start()), "dimat")
    state = session.merge(state)
    row = session.measure(copied(state), "merge")
    assert row["consensus_distance"] > row["consensus_distance_aligned"]
    variables = to_host(session.setup.execution, state.agents.variables)
    mean = jax.tree.map(lambda x: x.mean(0), variables)
    logits, _ = model.apply(mean, images_of(dataset, dataset.test_images))
    expected = (logits.argmax(1) == dataset.test_labels).mean()
    assert row["merged_accuracy"] == pytest.approx(expected)


def test_accuracies_by_class_add_up(x64):
    dataset = noise(examples=64, tests=50, size=4)
    config = merged_config(agents=4, devices=2, methods=("wa",), rounds=1)
    row = finish(session_as(config, linear_softmax(), dataset)).rows[-1]
    counts = np.bincount(dataset.test_labels, minlength=4)
    classes = np.array(row["test_accuracy_classes"])
    assert classes.shape == (4, 4)
    np.testing.assert_allclose(classes @ counts / 50, row["test_accuracy_agents"], atol=1e-4)
