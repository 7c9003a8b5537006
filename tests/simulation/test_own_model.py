"""Every ordinary mistake with one's own model is one sentence, before anything compiles."""

import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import compilations, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax.simulation.own_model import abstract_inputs
from dimat_jax.simulation.setup import prepare

DATASET = noise(examples=80, tests=20, size=8)
LINEAR = linear_softmax()


def linen(body) -> dj.Model:
    """A Linen module whose ``__call__`` is the body on flattened images."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x.reshape(len(x), -1))

    return dj.from_linen(Net())


def applying(change) -> dj.Model:
    """A softmax regression, what whose ``apply`` gives is changed."""

    def apply(variables, x, train=False, key=None):
        return change(*LINEAR.apply(variables, x), train)

    return dj.Model(LINEAR.init, apply)


def starting(change) -> dj.Model:
    """A softmax regression whose variables are changed."""
    return dj.Model(lambda key, x: change(LINEAR.init(key, x)), LINEAR.apply)


def grown(variables):
    """Another number of statistics in training."""
    return {**variables, "batch_stats": {"mean": jnp.zeros(3)}}


def complex_dense(x):
    return nn.Dense(4, dtype=jnp.complex64, param_dtype=jnp.complex64)(x)


def concrete(x):
    return nn.Dense(4)(x) if float(x.mean()) > 0 else nn.Dense(4)(-x)


def broken(x):
    raise RuntimeError("out of order\n\nand a second paragraph")


BAD = {
    "a tuple": (linen(lambda x: (nn.Dense(4)(x), x)), "The model gives a tuple of 2 in evaluation"),
    "a list": (linen(lambda x: [nn.Dense(4)(x)]), "The model gives a list of 1 in evaluation"),
    "a dict": (linen(lambda x: {"logits": nn.Dense(4)(x)}), "gives a dict of 'logits' in evaluat"),
    "nothing": (
        linen(lambda x: [nn.Dense(4)(x), None][1]),
        "The model gives a NoneType in evaluation",
    ),
    "complex weights": (linen(lambda x: jnp.abs(complex_dense(x))), "is of complex64: parameters"),
    "complex logits": (applying(lambda y, v, t: (y + 0j, v)), "gives logits of complex64"),
    "whole logits": (
        applying(lambda y, v, t: (y.argmax(-1) + 0 * y.astype(int).T, v)),
        "logits of",
    ),
    "logits alone": (
        applying(lambda y, v, t: y),
        "must give (logits, variables) in evaluation, no",
    ),
    "logits alone in training": (
        applying(lambda y, v, t: y if t else (y, v)),
        "must give (logits, variables) in training, not an array of shape (2, 4)",
    ),
    "three things": (
        applying(lambda y, v, t: (y, v, 0)),
        "(logits, variables) in evaluation, not a",
    ),
    "one image's logits": (applying(lambda y, v, t: (y[:1], v)), "(1, 4) for 2 images"),
    "other variables": (
        applying(lambda y, v, t: (y, grown(v) if t else v)),
        "in training batch_stats/mean is of shape (3,) and float32, and was missing",
    ),
    "fewer variables": (applying(lambda y, v, t: (y, {})), "params/bias is missing, and was of sh"),
    "another dtype": (
        applying(lambda y, v, t: (y, jax.tree.map(lambda x: x.astype(jnp.bfloat16), v))),
        "params/bias is of shape (4,) and bfloat16, and was of shape (4,) and float32",
    ),
    "other containers": (
        applying(lambda y, v, t: (y, {**v, "more": {}} if t else v)),
        "in training it returns other containers",
    ),
    "no params": (starting(lambda v: v["params"]), "not a dict of 'bias', 'kernel': {'params': .."),
    "an array": (starting(lambda v: v["params"]["bias"]), "not an array of shape (4,)"),
    "a pair": (starting(lambda v: (v, {})), "not a tuple of 2"),
    "whole weights": (
        starting(lambda v: {"params": {**v["params"], "steps": jnp.zeros((), int)}}),
        "The model's params/steps is of int32",
    ),
    "no weights": (
        dj.Model(
            lambda k, x: {"params": {}},
            lambda v, x, **_: (x.mean((1, 2, 3))[:, None] * jnp.ones(4), v),
        ),
        "The model has no parameters",
    ),
    "no train": (
        dj.Model(LINEAR.init, lambda v, x: LINEAR.apply(v, x)),
        "The model's apply fails in evaluation on images of shape [1, 8, 8, 3] (TypeError: ",
    ),
    "init of a key": (
        dj.Model(lambda key: LINEAR.init(key, jnp.ones((1, 8, 8, 3))), LINEAR.apply),
        "The model's init fails on images of shape [1, 8, 8, 3] (TypeError: ",
    ),
    "a value that is looked at": (linen(concrete), "The model's init fails on images of shape"),
    "an error of its own": (linen(broken), "(RuntimeError: out of order)."),
    "images of another size": (
        dj.Model(
            lambda k, x: {"params": {"w": jnp.ones((5, 4))}},
            lambda v, x, **_: (x @ v["params"]["w"], v),
        ),
        "The model's apply fails in evaluation on images of shape [1, 8, 8, 3] (TypeError: dot_gen",
    ),
}


@pytest.mark.parametrize(("model", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_sentence_before_anything_compiles(model, message, untyped):
    prepare(small_config(), dataset=DATASET)  # keys are split: that compiles
    with compilations() as counter, pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare(small_config(), model, DATASET)
    assert counter.count == 0
    assert "\n" not in str(error.value)


def test_what_is_made_well_is_taken_as_it_is():
    abstract, image = abstract_inputs(LINEAR, DATASET)
    assert abstract["params"]["kernel"].shape == (8 * 8 * 3, 4) and image.shape == (1, 8, 8, 3)


class Normalised(nn.Module):
    frozen: bool

    @nn.compact
    def __call__(self, x, **options):
        train = options.get("train", False) and not self.frozen
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(4)(x.mean((1, 2)))


def test_statistics_none_of_which_training_moves_are_warned_of():
    silent = dj.from_linen(Normalised(frozen=False))  # Its training mode cannot be found.
    with pytest.warns(UserWarning, match="Training moves none of the model's batch_stats"):
        abstract_inputs(silent, DATASET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        abstract_inputs(dj.from_linen(Normalised(frozen=False), training="train"), DATASET)
        abstract_inputs(LINEAR, DATASET)


class HalfFrozen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=True, name="frozen")(nn.Dense(6)(x.mean((1, 2))))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(nn.relu(x))))
        return nn.Dense(4)(x)


@pytest.mark.slow
def test_a_run_with_a_frozen_normalisation_ends_with_numbers():
    config = small_config(agents=4, rounds=1, methods=("wa", "dimat_repair"))
    result = dj.simulate(config, model=dj.from_linen(HalfFrozen()), dataset=DATASET)
    assert all(np.isfinite(row["test_loss"]) for row in result.history)
    for final in result.finals.values():
        # Statistics that agents share stay as they are, through averages and recomputations.
        statistics = final.variables["batch_stats"]["frozen"]
        np.testing.assert_allclose(statistics["mean"], 0, atol=1e-6)
        np.testing.assert_allclose(statistics["var"], 1, atol=1e-6)
