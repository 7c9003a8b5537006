"""Evaluation of one agent, against NumPy."""

import jax
import numpy as np
import pytest
from helpers.agents import AGENTS, first_state
from helpers.small_runs import linear_softmax, noise, normaliser

import dimat_jax as dj
from dimat_jax.training import evaluation


@pytest.mark.parametrize("tests", [5, 8, 10])
def test_evaluation_is_that_of_numpy(tests, x64):
    dataset = noise(examples=8, tests=tests, size=4, channels=1)
    normalise = normaliser(dataset)
    resident = evaluation.test_batches(dataset.test_images, dataset.test_labels, 4)
    assert resident[0].shape[:2] == resident[1].shape == (-(-tests // 4), 4)
    variables = first_state(linear_softmax(), "sgd").variables
    update = jax.jit(
        jax.vmap(evaluation.evaluate_update(linear_softmax(), normalise), in_axes=(0, 0, None))
    )
    score = evaluation.zero_score(AGENTS, dataset.num_classes)
    for _ in range(len(resident[0])):
        score = update(score, variables, resident)

    x = (dataset.test_images / 255.0).reshape(tests, -1)
    mean, std = (float(v[0]) for v in dj.datasets.channel_statistics(dataset.train_images))
    params = jax.device_get(variables["params"])
    for agent in range(AGENTS):
        logits = (x - mean) / std @ params["kernel"][agent] + params["bias"][agent]
        hits = dataset.test_labels[logits.argmax(1) == dataset.test_labels]
        correct = np.bincount(hits, minlength=dataset.num_classes)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(tests), dataset.test_labels]
        np.testing.assert_array_equal(score.correct[agent], correct)
        assert float(score.loss[agent]) == pytest.approx(losses.sum(), rel=1e-10)
    assert score.batch.tolist() == [len(resident[0])] * AGENTS


def test_the_last_test_batch_is_filled_up_with_images_of_no_class():
    dataset = noise(examples=4, tests=5, size=4, channels=1)
    images, labels = evaluation.test_batches(dataset.test_images, dataset.test_labels, 3)
    np.testing.assert_array_equal(images.reshape(6, 4, 4, 1)[:5], dataset.test_images)
    assert labels.reshape(6).tolist() == [*dataset.test_labels.tolist(), -1]
