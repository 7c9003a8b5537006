"""A sweep: each trial is that of a sweep of its own."""

import numpy as np
import optax
import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj

DATASET = noise(examples=60, tests=20, size=4)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 10},
        pytest.param({"batch_size": None, "schedule": "cosine"}, marks=pytest.mark.slow),
        {"warmup_epochs": 1},
    ],
)
def test_a_training_is_the_same_among_others_and_alone(options):
    config = small_config(devices=2, pretrain_epochs=2, examples_per_agent=40, **options)
    given = {"model": linear_softmax(), "dataset": DATASET}
    found = dj.sweep(config, learning_rate=[0.01, 0.1], seed=[0, 3], **given)
    assert [(row["learning_rate"], row["seed"]) for row in found] == [
        (0.01, 0), (0.01, 3), (0.1, 0), (0.1, 3)
    ]  # fmt: skip
    (alone,) = dj.sweep(config, learning_rate=[0.1], seed=[3], **given)
    assert found[3] == pytest.approx(alone, rel=1e-5)
    assert set(alone) == {"learning_rate", "seed", "train_loss", "test_loss", "test_accuracy"}
    assert found[2]["train_loss"] < found[0]["train_loss"]  # ten times too small


def test_a_training_is_that_of_a_run_of_one_agent():
    config = small_config(
        agents=1, topology="disconnected", pretrain_epochs=3, rounds=0, methods=("local_only",)
    )
    given = {"model": linear_softmax(), "dataset": DATASET}
    (row,) = dj.sweep(config, learning_rate=[0.02], **given)
    run = dj.simulate(dj.Config(**vars(config) | {"learning_rate": 0.02}), observer=None, **given)
    assert row["train_loss"] == pytest.approx(run.history[0]["train_loss"], rel=1e-5)
    assert row["test_loss"] == pytest.approx(run.history[0]["test_loss"], rel=1e-5)


def test_any_number_of_an_optimizer_is_swept():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0)
    config, given = small_config(), {"model": linear_softmax(), "dataset": DATASET}
    found = dj.sweep(config, optimizer=optimizer, momentum=[0.0, 0.9], seed=[1], **given)
    assert [row["momentum"] for row in found] == [0.0, 0.9]
    (plain,) = dj.sweep(config, optimizer=optax.sgd(0.1, 0.9), seed=[1], **given)
    assert found[1]["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    assert found[0]["train_loss"] != pytest.approx(plain["train_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": []}, "learning_rate must be a list of one number or more"),
        ({"learning_rate": [-1.0]}, "learning_rate must be at least 0, not -1.0"),
        ({"learning_rate": ["a"]}, "learning_rate must be a number, not 'a'"),
        ({"learning_rate": [0.1], "seed": [0.5]}, "seed must be a whole number, not 0.5"),
        (
            {"momentum": [0.9]},
            "'momentum'. There are: learning_rate",
        ),
        ({"optimizer": optax.sgd(0.1), "learning_rate": [0.1]}, "There are none"),
        ({"learning_rate": np.array(0.1)}, "learning_rate must be a list of one number or more"),
        (
            {"optimizer": optax.inject_hyperparams(optax.sgd)(0.1, momentum=0), "momentum": [0.9]},
            "momentum is a whole number in the optimizer",
        ),
        (
            {
                "optimizer": optax.inject_hyperparams(optax.sgd)(optax.constant_schedule(0.1)),
                "learning_rate": [0.1],
            },
            "learning_rate is a schedule of the optimizer",
        ),
    ],
)
def test_bad_sweeps(options, message, untyped):
    with pytest.raises(ValueError, match=message):
        dj.sweep(small_config(), model=linear_softmax(), dataset=DATASET, **options)


def test_a_sweep_of_a_wrong_configuration_is_refused(untyped):
    with pytest.raises(ValueError, match="devices must be a whole number, not '2'"):
        dj.sweep(small_config(devices="2"), learning_rate=[0.1], dataset=DATASET)


def test_numbers_of_an_optimizer_are_each_agents_own():
    rates = np.array([0.0, 0.1], np.float32)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rates)
    config = small_config(agents=2, devices=2, rounds=1, methods=("local_only",))
    session = dj.make_session(config, model=linear_softmax(), dataset=DATASET, optimizer=optimizer)
    state = session.start()
    before = np.asarray(state.agents.variables["params"]["kernel"])
    after = np.asarray(session.train(state).agents.variables["params"]["kernel"])
    assert np.array_equal(before[0], after[0]) and not np.allclose(before[1], after[1])
