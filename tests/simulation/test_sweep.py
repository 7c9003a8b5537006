"""A sweep: each trial is that of a sweep of its own."""

import numpy as np
import optax
import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj

DATASET = noise(examples=60, tests=20, size=4)


def test_trials_are_the_same_together_and_alone():
    config = small_config(devices=2, pretrain_epochs=2, batch_size=10)
    options = {"model": linear_softmax(), "dataset": DATASET}
    found = dj.sweep(config, learning_rate=[0.01, 0.1], seed=[0, 3], **options)
    assert [(x.learning_rate, x.seed) for x in found] == [(0.01, 0), (0.01, 3), (0.1, 0), (0.1, 3)]
    alone = dj.sweep(config, learning_rate=[0.1], seed=[3], **options)[0]
    assert found[3].measured == pytest.approx(alone.measured, rel=1e-5)
    assert found[3].train_loss == pytest.approx(alone.train_loss, rel=1e-5)
    assert found[2].train_loss < found[0].train_loss  # a hundred times too small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": []}, "learning_rate must be a list of one number or more"),
        ({"learning_rate": [-1.0]}, "learning_rate must be positive, not -1.0"),
    ],
)
def test_bad_sweeps(options, message):
    with pytest.raises(ValueError, match=message):
        dj.sweep(small_config(), dataset=DATASET, **options)


def test_numbers_of_an_optimizer_are_each_agents_own():
    rates = np.array([0.0, 0.1], np.float32)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rates)
    config = small_config(agents=2, devices=2, rounds=1, methods=("local_only",))
    session = dj.make_session(config, model=linear_softmax(), dataset=DATASET, optimizer=optimizer)
    state = session.start()
    before = np.asarray(state.agents.variables["params"]["kernel"])
    after = np.asarray(session.train(state).agents.variables["params"]["kernel"])
    assert np.array_equal(before[0], after[0]) and not np.allclose(before[1], after[1])
