"""Evaluation of one agent, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.agents import AGENTS, first_state
from helpers.small_runs import as_batch, linear_softmax, noise, preparer
from hypothesis import given, settings
from hypothesis import strategies as st

import dimat_jax as dj
from dimat_jax.training import evaluation
from dimat_jax.types import LogMean


@pytest.mark.parametrize("tests", [5, 8, 10])
def test_evaluation_is_that_of_numpy(tests, x64):
    dataset = noise(examples=8, tests=tests, size=4, channels=1)
    examples = as_batch(dataset.test_images, dataset.test_labels)
    resident, task = evaluation.test_batches(examples, 4), dj.classification(linear_softmax())
    batches = -(-tests // 4)
    assert resident.examples["inputs"].shape[:2] == resident.weights.shape == (batches, 4)
    variables = first_state(linear_softmax(), "sgd").variables
    update = evaluation.evaluate_update(task, preparer(dataset), dataset.num_classes)
    update = jax.jit(jax.vmap(update, in_axes=(0, 0, None)))
    score = evaluation.zero_score(AGENTS, {"accuracy": evaluation.Total}, dataset.num_classes)
    for _ in range(batches):
        score = update(score, variables, resident)

    x = (dataset.test_images / 255.0).reshape(tests, -1)
    mean, std = (float(v[0]) for v in dj.datasets.channel_statistics(dataset.train_images))
    params = jax.device_get(variables["params"])
    for agent in range(AGENTS):
        logits = (x - mean) / std @ params["kernel"][agent] + params["bias"][agent]
        hits = dataset.test_labels[logits.argmax(1) == dataset.test_labels]
        correct = np.bincount(hits, minlength=dataset.num_classes)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(tests), dataset.test_labels]
        np.testing.assert_array_equal(score.classes[agent], correct)
        assert float(score.totals["loss"].sum[agent]) == pytest.approx(losses.sum(), rel=1e-10)
        assert evaluation.values_of(score)["accuracy"][agent] == pytest.approx(len(hits) / tests)
    assert score.batch.tolist() == [batches] * AGENTS


def test_the_last_test_batch_is_filled_up_with_examples_that_do_not_count():
    dataset = noise(examples=4, tests=5, size=4, channels=1)
    found = evaluation.test_batches(as_batch(dataset.test_images, dataset.test_labels), 3)
    images = found.examples["inputs"].reshape(6, 4, 4, 1)
    np.testing.assert_array_equal(images[:5], dataset.test_images)
    assert found.weights.ravel().tolist() == [1] * 5 + [0]


def mean_task():
    """Metrics of all kinds: a number of each example, sums and counts, the exponential of those.

    How they are called says nothing.
    """

    def loss(variables, batch, key=None, train=False):
        x, count = batch["x"], batch["count"]
        metrics = {
            "perplexity": 2 * x,
            "ratio": (x * count, count),
            "exponential": LogMean(x, count),
        }
        return x, metrics, variables

    return dj.Task(lambda key, batch: {"params": {}}, loss, lambda variables, batch: ())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(0, 99))
def test_metrics_do_not_depend_on_the_batch_size_nor_on_what_fills_up(number, size, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=number).astype(np.float32)
    count = rng.integers(1, 9, number).astype(np.float32)
    tests = evaluation.test_batches({"x": x, "count": count}, min(size, number))
    tests = jax.tree.map(jnp.asarray, tests)
    update = jax.vmap(evaluation.evaluate_update(mean_task(), lambda b: b), in_axes=(0, None, None))
    kinds = {
        "perplexity": evaluation.Total,
        "ratio": evaluation.Total,
        "exponential": evaluation.LogTotal,
    }
    score = evaluation.zero_score(1, kinds, None)
    for _ in range(len(tests.weights)):
        score = update(score, {}, tests)
    expected = {
        "loss": x.mean(),
        "perplexity": 2 * x.mean(),
        "ratio": (x * count).sum() / count.sum(),
        "exponential": np.exp(x.sum() / count.sum()),
    }
    found = {name: value[0] for name, value in evaluation.values_of(score).items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_sums_are_not_made_in_few_bits():
    """Forty times 1.0078125 in bfloat16: neither the sum nor the count fits into 8 bits."""

    def loss(variables, batch, key=None, train=False):
        values = jnp.full(len(batch["x"]), 1.0078125, jnp.bfloat16)
        return values, {"same": values}, variables

    task = dj.Task(lambda key, batch: {"params": {}}, loss, lambda variables, batch: ())
    tests = jax.tree.map(jnp.asarray, evaluation.test_batches({"x": np.zeros(40)}, 40))
    score = evaluation.zero_score(1, {"same": evaluation.Total}, None)
    update = jax.vmap(evaluation.evaluate_update(task, lambda b: b), in_axes=(0, None, None))
    found = evaluation.values_of(update(score, {}, tests))
    assert found["loss"] == found["same"] == 1.0078125
