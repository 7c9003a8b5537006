"""Tasks: losses and metrics of each example, against NumPy; a run of each; one written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze, unfreeze
from helpers.small_runs import as_batch, noise, preparer, small_config

import dimat_jax as dj
from dimat_jax.datasets.data import of_images
from dimat_jax.datasets.text import load_tiny_shakespeare, of_text
from dimat_jax.simulation.own_task import targets_mean
from dimat_jax.simulation.parts import schedule_of
from dimat_jax.training.optimizers import has_hyperparams

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


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"positions": "learned", "norm": "rms", "tied": True},
    ],
)
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


@pytest.mark.slow
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
        pytest.param("diabetes", "mlp", {"loss", "r2"}, marks=pytest.mark.slow),
        pytest.param(of_text("to be or not to be, that is the question: " * 120, "H"), "gpt",
         {"loss", "accuracy", "perplexity"}, marks=pytest.mark.slow),
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


def test_r2_counts_from_the_mean_of_the_training_targets():
    """The mean itself explains nothing, wherever it lies."""
    targets = normal(40) + 100
    whole = {"inputs": np.ones((40, 1), np.float32), "targets": targets}
    task = dj.Model(
        lambda key, x: {"params": {"mean": jnp.float32(targets.mean())}},
        lambda v, x, train=False, key=None: (x * v["params"]["mean"], v),
    )
    config = small_config(agents=1, topology="disconnected", pretrain_epochs=0, rounds=0,
                          methods=("local_only",))  # fmt: skip
    data = dj.Data(whole, whole, "numbers")
    row = dj.simulate(config, model=task, dataset=data, observer=None).history[-1]
    assert row["test_r2"] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_frozen_dicts_do_as_well(untyped):
    def frozen(model):
        def apply(variables, x, train=False, key=None):
            logits, after = model.apply(unfreeze(variables), x, train, key)
            return logits, freeze(after)

        return dj.Model(lambda key, x: freeze(model.init(key, x)), apply)

    model = dj.models.mlp(num_classes=4, width=0.05, depth=1, norm="batch")
    config = small_config(agents=2, devices=2, rounds=1, methods=("dimat",))
    runs = [
        dj.simulate(config, model=m, dataset=DATASET, observer=None) for m in (model, frozen(model))
    ]
    assert without_time(runs[0].history) == without_time(runs[1].history)


BAD_TASKS = {
    "a mean over examples": (
        lambda v, b, key=None, train=False: (b["inputs"].mean(0), {}, v),
        "one loss of each, an array of shape",
    ),
    "whole numbers": (
        lambda v, b, key=None, train=False: (b["inputs"][:, 0] > 0, {}, v),
        "The task's losses are bool in evaluation",
    ),
    "a name that is taken": (
        lambda v, b, key=None, train=False: (
            b["inputs"][:, 0], {"error_std": b["inputs"][:, 0]}, v),
        "A metric must be called by a string, not 'loss' nor with _std",
    ),
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
    "a metric of one part": (
        lambda v, b, key=None, train=False: (
            b["inputs"][:, 0], {"error": (b["inputs"][:, 0],)}, v),
        "The metric 'error' must be a number of each example",
    ),
    "other metrics in training": (
        lambda v, b, key=None, train=False: (
            b["inputs"][:, 0], {"a" if train else "b": b["inputs"][:, 0]}, v),
        "The task's metrics are b in evaluation and a in training",
    ),
    "variables that are lost": (
        lambda v, b, key=None, train=False: (b["inputs"][:, 0], {}, {}),
        "must return variables like those that it is given: in evaluation params/w is missing",
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


def test_outputs_hold_what_the_loss_is_made_of_in_training_alone():
    def init(key, batch):
        return {"params": {"w": jnp.ones((2, 3)), "out": jnp.ones(3), "more": jnp.ones((3, 2))}}

    def outputs(variables, batch):
        return jnp.tanh(batch["inputs"] @ variables["params"]["w"]) @ variables["params"]["out"]

    def loss(variables, batch, key=None, train=False):
        losses, params = outputs(variables, batch), variables["params"]
        if train:
            losses += (jnp.tanh(batch["inputs"] @ params["w"]) @ params["more"]).sum(1)
        return losses, {}, variables

    data = dj.Data({"inputs": normal(20, 2)}, {"inputs": normal(5, 2)}, "mine")
    with pytest.raises(ValueError, match="outputs do not depend on 'params/more', but its loss"):
        dj.make_session(small_config(agents=2), task=dj.Task(init, loss, outputs), dataset=data)


def doubled(batch):
    return {**batch, "targets": 2 * batch["targets"]}


@pytest.mark.parametrize("prepare", [None, doubled])
def test_r2_counts_from_the_mean_of_the_targets_as_the_task_takes_them(prepare):
    targets = 100 + normal(9000, 1)
    data = dj.Data(
        {"inputs": normal(9000, 2), "targets": targets},
        {"inputs": normal(50, 2), "targets": targets[:50]},
        "far from 0",
        prepare=prepare,
    )
    mean = targets_mean(data)
    expected = targets.astype(np.float64).mean(0) * (1 if prepare is None else 2)
    np.testing.assert_allclose(mean, expected, rtol=1e-9)


WHOLE = {"inputs": normal(20, 2), "labels": np.arange(20) % 2}
BAD_DATA = {
    "lengths": ({"inputs": normal(20, 2), "labels": np.arange(19)}, WHOLE, "different numbers of"),
    "shapes": (WHOLE, {"inputs": normal(20, 3), "labels": np.arange(20)}, "they must be alike"),
    "nan": (
        {**WHOLE, "inputs": np.where(np.eye(20, 2, -3) > 0, np.nan, 1.0).astype(np.float32)},
        WHOLE,
        r"'inputs': example 3, column \[0\] is nan",
    ),
    "nothing": ({}, {}, "must be a pytree of arrays"),
    "words": (
        {"x": np.array(["a"] * 3)},
        {"x": np.array(["b"])},
        "'x' is of <U1: it must",
    ),
    "labels below 0": (
        {**WHOLE, "labels": WHOLE["labels"] * 2 - 1},
        WHOLE,
        "labels of mine must count from 0, but one is -1",
    ),
    "tokens below 0": (
        {"tokens": np.full((20, 5), -1)},
        {"tokens": np.ones((9, 5), int)},
        "tokens of mine must count from 0, but one is -1",
    ),
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


def test_a_model_with_too_few_outputs_is_refused():
    data = dj.Data(WHOLE, WHOLE, "mine")._replace(train={**WHOLE, "labels": np.arange(20) % 5})
    with pytest.raises(ValueError, match="gives 3 outputs: labels of mine need 5, one for each"):
        dj.make_session(small_config(agents=2), model=linear(3), dataset=data)


def test_smoothing_is_of_labels_alone():
    numbers = {"inputs": normal(20, 2), "targets": normal(20)}
    for given in (
        {"task": by_hand(linear(2)), "dataset": dj.Data(WHOLE, WHOLE, "mine")},
        {"model": linear(1), "dataset": dj.Data(numbers, numbers, "mine")},
    ):
        with pytest.raises(ValueError, match="label_smoothing is of classification"):
            dj.make_session(small_config(agents=2, label_smoothing=0.1), **given)


def test_what_training_adds_to_a_batch_is_not_there_in_evaluation():
    def augment(key, batch):
        return {**batch, "more": batch["inputs"]}

    def loss(variables, batch, key=None, train=False):
        return (batch["more"] * variables["params"]["w"]).sum(1), {}, variables

    task = dj.Task(lambda key, b: {"params": {"w": jnp.ones(2)}}, loss, lambda v, b: v["params"])
    data = dj.Data(WHOLE, WHOLE, "mine", augment=augment)
    with pytest.raises(ValueError, match="The task's loss fails in evaluation .*'more'"):
        dj.make_session(small_config(agents=2), task=task, dataset=data)


def rates(*values):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=np.array(values, np.float32))


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (optax.polyak_sgd(), {}, "The optimizer fails on gradients of the parameters"),
        (rates(0.1, 0.1, 0.1), {}, "it must be a number, or one for each of 2 agents"),
        (optax.sgd(0.1), {"weight_decay": 0.1}, "weight_decay, clip and warmup_epochs are of a"),
        (optax.sgd(0.1), {"warmup_epochs": 1}, "weight_decay, clip and warmup_epochs are of a"),
        (
            optax.sgd(0.1),
            {"method_learning_rate": (("wa", 0.5),)},
            "method_learning_rate of 'wa' is of a named optimizer",
        ),
        (
            optax.GradientTransformation(
                lambda params: jnp.zeros((), jnp.int32), lambda g, state, params: (g, state + 0.5)
            ),
            {},
            "state must keep its structure, shapes and dtypes",
        ),
        ("adam", {}, "optimizer must be an optax.GradientTransformation, not 'adam'"),
    ],
)
def test_optimizers_that_cannot_be_are_refused(optimizer, options, message, untyped):
    given = {"model": linear(4), "dataset": DATASET, "optimizer": optimizer}
    with pytest.raises(ValueError, match=message):
        dj.make_session(small_config(agents=2, **options), **given)


def test_averaging_leaves_each_agents_optimizer_its_own_numbers():
    config = small_config(agents=2, devices=2, rounds=1, methods=("wa",),
                          optimizer_after_merge="averaged")  # fmt: skip
    given = {"model": linear(4), "dataset": DATASET, "optimizer": rates(0.0, 0.1)}
    session = dj.make_session(config, **given)
    state = session.merge(session.begin(session.train(session.start()), "wa"))
    nodes = jax.tree.leaves(state.agents.optimizer, is_leaf=has_hyperparams)
    (numbers,) = (node.hyperparams for node in nodes if has_hyperparams(node))
    np.testing.assert_array_equal(numbers["learning_rate"], np.float32([0.0, 0.1]))


def test_methods_that_step_by_themselves_have_rates_of_their_own():
    mine = dj.algorithms.METHODS["cdsgd"]._replace(label="Mine")
    config = small_config(agents=4, methods=("wa",), method_learning_rate=(("mine", 0.5),))
    given = {"model": linear(4), "dataset": DATASET, "optimizer": optax.sgd(1e-3)}
    session = dj.make_session(config, methods={"mine": mine}, **given)
    state = session.begin(session.start(), "mine")
    rate = state.agents.rate_scale * session.setup.learning_rate
    np.testing.assert_allclose(rate, 0.5, rtol=1e-6)


def test_methods_that_step_by_themselves_take_the_runs_rate():
    config = small_config(agents=4, methods=("cdsgd",), learning_rate=0.25, schedule="cosine")
    given = {"model": linear(4), "dataset": DATASET, "optimizer": optax.sgd(1e-3)}
    setup = dj.make_session(config, **given).setup
    assert float(schedule_of(setup, gossip=True)(0)) == 0.25
    assert all(float(schedule_of(setup)(step)) == 1 for step in (0, 7))


def test_tiny_shakespeare_is_found_in_its_folder_and_in_the_one_above(tmp_path):
    folder = tmp_path / "tiny_shakespeare"
    folder.mkdir()
    (folder / "input.txt").write_text("To be, or not to be. " * 2000)
    found = [load_tiny_shakespeare(data_dir) for data_dir in (tmp_path, folder)]
    assert found[0].name == found[1].name == "Tiny Shakespeare"
    np.testing.assert_array_equal(found[0].train["tokens"], found[1].train["tokens"])
