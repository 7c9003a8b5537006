"""The local optimizers, and the learning rate over a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax.config import LEARNING_RATES
from dimat_jax.training.optimizers import OPTIMIZERS, make_schedule, round_factor

PRETRAIN_STEPS, EPOCH_STEPS, EPOCHS = 10, 5, 6


def schedule(name, gossip=False):
    return make_schedule(name, 0.05, PRETRAIN_STEPS, EPOCH_STEPS, EPOCHS, gossip)


def test_a_constant_schedule_is_constant():
    for gossip in (False, True):
        assert schedule("constant", gossip)(0) == schedule("constant", gossip)(1000) == 0.05


def test_a_cosine_spans_the_whole_run():
    cosine, steps = schedule("cosine"), PRETRAIN_STEPS + EPOCHS * EPOCH_STEPS
    assert cosine(0) == pytest.approx(0.05) and cosine(steps) == pytest.approx(0, abs=1e-9)
    assert cosine(steps // 2) == pytest.approx(0.025)


def test_the_exponential_schedule_is_that_of_the_published_baselines():
    local, gossip = schedule("exponential"), schedule("exponential", gossip=True)
    assert local(0) == local(1000) == 0.05
    for epoch in (0, 1, 2):  # of the rounds
        for step in (0, EPOCH_STEPS - 1):
            rate = gossip(PRETRAIN_STEPS + EPOCH_STEPS * epoch + step)
            assert rate == pytest.approx(0.05 * 0.981**epoch)
    assert gossip(3) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["constant", "cosine", "exponential"])
def test_a_run_without_steps_has_a_schedule(name):
    assert make_schedule(name, 0.05, 0, 0, 0)(0) == pytest.approx(0.05)


def test_every_optimizer_has_a_rate_and_gives_a_direction_of_the_gradients_shape():
    assert set(OPTIMIZERS) == set(LEARNING_RATES)
    params = {"x": jnp.ones((2, 3))}
    for make in OPTIMIZERS.values():
        direction, _ = make().update(params, make().init(params), params)
        assert jax.tree.map(jnp.shape, direction) == {"x": (2, 3)}
        assert (direction["x"] > 0).all()  # of the gradient's sign: the step subtracts it


FIRST, ROUND_STEPS, ROUNDS = 7, 10, 3
FACTORS = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: (1 + np.cos(np.pi * step / 30)) / 2,
    "cosine_each": lambda step: (1 + np.cos(np.pi * (step % 10) / 10)) / 2,
    "warmup_each": lambda step: min(1.0, (step % 10 + 1) / 2),
}


@pytest.mark.parametrize("name", FACTORS)
def test_in_the_rounds_the_rate_is_multiplied_as_asked_and_before_them_not(name):
    factor = round_factor(name, FIRST, ROUND_STEPS, ROUNDS)
    steps = np.arange(FIRST + ROUND_STEPS * ROUNDS)
    expected = [1.0 if s < FIRST else FACTORS[name](s - FIRST) for s in steps.tolist()]
    np.testing.assert_allclose([float(factor(s)) for s in steps], expected, atol=1e-6)
