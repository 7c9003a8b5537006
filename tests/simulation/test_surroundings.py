"""A run gives the same numbers whatever its user has set in JAX."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.sessions import assert_rows_close
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj

DATASET = noise(examples=64, tests=20, size=8)
METHODS = ("dimat", "wa_repair", "cga")


class Small(nn.Module):
    """A convolution and a BatchNorm: everything that a merge goes through."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), 2)(x)))
        return nn.Dense(4)(nn.relu(nn.Dense(6)(x.mean((1, 2)))))


def rows(model: dj.Model) -> list:
    config = small_config(agents=4, rounds=1, methods=METHODS, merged_every=1)
    return dj.simulate(config, model=model, dataset=DATASET, observer=None).history


@pytest.fixture(scope="module")
def expected():
    """The rows of a run in which nothing is set."""
    return rows(dj.from_linen(Small()))


def mesh(*shape):
    names = ("agents", "model")[: len(shape)]
    return jax.set_mesh(jax.make_mesh(shape, names))


SET = {
    "NaNs are errors": lambda: jax.debug_nans(True),
    "no implicit ranks": lambda: jax.numpy_rank_promotion("raise"),
    "no implicit dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "a mesh of agents": lambda: mesh(8),
    "a mesh of two axes": lambda: mesh(4, 2),
}


OFTEN = ("a mesh of agents",)


@pytest.mark.parametrize(
    "surroundings",
    [pytest.param(x, marks=[pytest.mark.slow] * (name not in OFTEN)) for name, x in SET.items()],
    ids=SET,
)
def test_a_run_goes_as_it_would(surroundings, expected):
    with surroundings():
        # BatchNorm of Flax promotes ranks itself, ours does not.
        found = rows(dj.from_linen(Small()))
    assert_rows_close(found, expected, tolerance=1e-5)


@pytest.mark.slow
def test_the_libraries_own_models_promote_no_ranks():
    config = small_config(agents=4, rounds=1, model="convnet", width=0.05, methods=("dimat",))
    with jax.numpy_rank_promotion("raise"):
        history = dj.simulate(config, dataset=DATASET, observer=None).history
    assert all(np.isfinite(row["test_loss"]) for row in history)


@pytest.mark.slow
def test_a_run_without_compilation_meets_values_of_one_agent(untyped):
    seen, model = [], linear_softmax()

    def apply(variables, x, train=False, key=None):
        with contextlib.suppress(jax.errors.ConcretizationTypeError):
            seen.append((float(x.mean()), x.shape))
        return model.apply(variables, x, train, key)

    config = small_config(agents=4, rounds=1, methods=("dimat", "dsgd"))

    def run(model):
        return dj.simulate(config, model=model, dataset=DATASET, observer=None).history

    expected = run(model)
    with jax.disable_jit():
        found = run(dj.Model(model.init, apply))
    assert_rows_close(found, expected, tolerance=1e-4)
    assert {shape for _, shape in seen} >= {(8, 8, 8, 3)}
