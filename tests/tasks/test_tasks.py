"""Tasks: losses and metrics of each example, against NumPy; a run of each; one written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_runs import as_batch, noise, preparer, small_config

import dimat_jax as dj
from dimat_jax.datasets.data import of_images
from dimat_jax.datasets.text import of_text

DATASET = noise(examples=120, tests=23, size=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(outputs):
    """A dense layer without hidden units, of inputs of any shape."""

    def init(key, x):
        return {"params": {"kernel": jnp.ones((x[0].size, outputs)) / 10}}

    def apply(variables, x, train=False, key=None):
        return x.reshape(len(x), -1) @ variables["params"]["kernel"], variables

    return dj.Model(init, apply)


def test_smoothed_labels_spread_a_share_over_all_classes():
    task, batch = dj.classification(linear(4), 0.2), as_batch(normal(5, 3), np.arange(5) % 4)
    variables = task.init(jax.random.key(0), batch)
    logits = np.asarray(task.outputs(variables, batch))
    shares = jax.nn.one_hot(batch["labels"], 4) * 0.8 + 0.2 / 4
    expected = optax.softmax_cross_entropy(logits, shares)
    np.testing.assert_allclose(task.loss(variables, batch, train=True)[0], expected, rtol=1e-5)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    np.testing.assert_allclose(task.loss(variables, batch)[0], plain, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (7, 3)])
def test_r2_is_that_of_its_definition(shape):
    task = dj.regression(linear(int(np.prod(shape[1:]))), mean=0.5)
    batch = {"inputs": normal(7, 2), "targets": normal(*shape, seed=1)}
    variables = task.init(jax.random.key(0), batch)
    losses, metrics, _ = task.loss(variables, batch)
    found = np.asarray(task.outputs(variables, batch))
    assert losses.shape == (7,) and found.shape == shape
    np.testing.assert_allclose(losses.mean(), ((found - batch["targets"]) ** 2).mean(), rtol=1e-5)
    explained, spread = metrics["r2"]
    residual = ((found - batch["targets"]) ** 2).sum() / ((batch["targets"] - 0.5) ** 2).sum()
    assert float(explained.sum() / spread.sum()) == pytest.approx(1 - float(residual), rel=1e-4)


def test_language_predicts_each_token_from_those_before_it():
    model = dj.models.gpt(num_classes=11, width=0.5, depth=1, heads=2)
    task = dj.language_model(model)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    variables = task.init(jax.random.key(0), {"tokens": tokens})
    losses, metrics, _ = task.loss(variables, {"tokens": tokens})
    logits = np.asarray(task.outputs(variables, {"tokens": tokens}))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    np.testing.assert_allclose(losses, np.asarray(nats).mean(1), rtol=1e-5)
    assert float(metrics["perplexity"][0].sum()) == pytest.approx(float(nats.sum()), rel=1e-5)
    assert metrics["accuracy"][1].tolist() == [8, 8, 8]
    later = tokens.copy()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    np.testing.assert_allclose(
        task.outputs(variables, {"tokens": later})[:, :5], logits[:, :5], atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "norm": "rms", "tied": True}])
def test_all_groups_of_a_gpt_leave_it_as_it_is(options):
    model = dj.models.gpt(num_classes=7, width=0.5, depth=2, heads=2, **options)
    tokens = np.random.default_rng(0).integers(0, 7, (2, 6))
    variables = model.init(jax.random.key(0), tokens)
    symmetries = dj.find_symmetries(model, variables, tokens)
    assert {1, 2} == {len(g.outer) + 1 for g in symmetries.groups.values()}  # heads, and in them
    assert dj.verify(symmetries, model, variables, tokens) < 1e-4


def by_hand(model):
    """The classification of images, written by a user."""

    def init(key, batch):
        return model.init(key, batch["inputs"])

    def loss(variables, batch, key=None, train=False):
        logits, after = model.apply(variables, batch["inputs"], train=train, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses, {"accuracy": logits.argmax(-1) == batch["labels"]}, after

    return dj.Task(init, loss, lambda v, batch: model.apply(v, batch["inputs"])[0])


def without_time(rows):
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in rows]


def test_images_as_a_task_and_data_by_hand_are_the_built_in_ones_bit_for_bit():
    model = dj.models.mlp(num_classes=4, width=0.05, depth=1, norm="batch")
    config = small_config(agents=4, devices=2, rounds=1, methods=("dimat", "cdsgd"))
    prepare = preparer(DATASET)
    data = of_images(DATASET, dj.datasets.AUGMENTATIONS["none"])
    data = data._replace(prepare=lambda batch: prepare(batch))
    ours = dj.simulate(config, model=model, dataset=DATASET, observer=None)
    mine = dj.simulate(config, task=by_hand(model), dataset=data, observer=None)
    assert without_time(ours.history) == without_time(mine.history)


@pytest.mark.parametrize(
    ("dataset", "model", "metrics"),
    [
        ("breast_cancer", "mlp", {"loss", "accuracy"}),
        ("diabetes", "mlp", {"loss", "r2"}),
        (of_text("to be or not to be, that is the question: " * 120, "H"), "gpt",
         {"loss", "accuracy", "perplexity"}),
    ],
)  # fmt: skip
def test_what_examples_hold_says_what_is_learned(dataset, model, metrics):
    named = {"dataset": dataset} if isinstance(dataset, str) else {}
    config = small_config(
        agents=2, devices=2, model=model, width=0.1, rounds=1, methods=("dimat", "wa"),
        matching_images=20, statistics_images=20, learning_rate=0.01, batch_size=10, **named,
    )  # fmt: skip
    given = None if named else dataset
    result = dj.simulate(config, dataset=given, observer=None)
    last = result.history[-1]
    assert {k[5:] for k in last if k.startswith("test_") and k + "_std" in last} == metrics
    assert {k[7:] for k in last if k.startswith("merged_")} == metrics
    assert result.history[-1]["test_loss"] < result.history[0]["test_loss"] * 1.5


BAD_TASKS = {
    "a mean loss": (
        lambda v, b, key=None, train=False: (b["inputs"].mean(), {}, v),
        "one loss of each, an array of shape",
    ),
    "no metrics": (
        lambda v, b, key=None, train=False: (b["inputs"][:, 0], v),
        r"must give \(losses, metrics, variables\) in evaluation, not a tuple of 2",
    ),
    "a metric of the batch": (
        lambda v, b, key=None, train=False: (
            b["inputs"][:, 0], {"error": b["inputs"].mean()}, v),
        "The metric 'error' must be a number of each example",
    ),
    "other metrics in training": (
        lambda v, b, key=None, train=False: (
            b["inputs"][:, 0], {"a" if train else "b": b["inputs"][:, 0]}, v),
        "The task's metrics are b in evaluation and a in training",
    ),
    "variables that are lost": (
        lambda v, b, key=None, train=False: (b["inputs"][:, 0], {}, {}),
        "must return variables like those that it is given: in evaluation params/w differs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_task_that_cannot_be_is_refused_in_one_sentence(case):
    loss, message = BAD_TASKS[case]
    task = dj.Task(lambda key, b: {"params": {"w": jnp.ones(3)}}, loss, lambda v, b: v)
    data = dj.Data({"inputs": normal(20, 2)}, {"inputs": normal(5, 2)}, "mine")
    with pytest.raises(ValueError, match=message):
        dj.make_session(small_config(agents=2), task=task, dataset=data)


def test_outputs_hold_all_that_the_loss_is_made_of():
    def init(key, batch):
        return {"params": {"w": jnp.ones(2), "scale": jnp.ones(2)}}

    def loss(variables, batch, key=None, train=False):
        params = variables["params"]
        return (batch["inputs"] * params["w"] * params["scale"]).sum(1), {}, variables

    task = dj.Task(init, loss, lambda v, b: b["inputs"] * v["params"]["w"])
    data = dj.Data({"inputs": normal(20, 2)}, {"inputs": normal(5, 2)}, "mine")
    with pytest.raises(ValueError, match="outputs do not depend on 'params/scale', but its loss"):
        dj.make_session(small_config(agents=2), task=task, dataset=data)


WHOLE = {"inputs": normal(20, 2), "labels": np.arange(20) % 2}
BAD_DATA = {
    "lengths": ({"inputs": normal(20, 2), "labels": np.arange(19)}, WHOLE, "different numbers of"),
    "shapes": (WHOLE, {"inputs": normal(20, 3), "labels": np.arange(20)}, "they must be alike"),
    "nan": (
        {**WHOLE, "inputs": np.where(np.eye(20, 2, -3) > 0, np.nan, 1.0).astype(np.float32)},
        WHOLE,
        r"'inputs' is nan in example 3, column \[0\]",
    ),
    "nothing": ({}, {}, "must be a pytree of arrays"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_are_refused_in_one_sentence(case):
    train, test, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message):
        dj.make_session(small_config(agents=2), dataset=dj.Data(train, test, "mine"))


def test_examples_without_labels_are_not_divided_by_class():
    task = by_hand(linear(2))
    data = dj.Data(WHOLE, WHOLE, "mine")
    with pytest.raises(ValueError, match="mine has no labels: partition must be iid"):
        dj.make_session(small_config(agents=2, partition="by_class"), task=task, dataset=data)
