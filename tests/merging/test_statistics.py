"""Running statistics from data, against NumPy's means and variances of the activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.small_runs import assert_trees_close, assert_trees_equal, random_variables

import dimat_jax as dj
from dimat_jax.merging import statistics
from dimat_jax.merging.statistics import StatisticsMean
from dimat_jax.models.convnet import ConvNet


def batch(examples=6, size=8, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, (examples, size, size, 3)))


def test_they_are_the_moments_of_what_each_normalisation_layer_gets(x64):
    module = ConvNet(num_classes=4, channels=(3, 4, 5), norm="batch")
    model, x = dj.from_linen(module), batch()
    variables = random_variables(model, x.shape[1:])
    found = jax.jit(statistics.batch_statistics, static_argnums=0)(model, variables, x)
    _, seen = module.apply(
        variables,
        x,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda layer, _: isinstance(layer, nn.Conv),
    )
    assert len(found) == 3
    for i in range(3):
        (inputs,) = seen["intermediates"][f"Conv_{i}"]["__call__"]
        inputs = np.asarray(inputs)
        np.testing.assert_allclose(found[f"BatchNorm_{i}"]["mean"], inputs.mean((0, 1, 2)))
        np.testing.assert_allclose(found[f"BatchNorm_{i}"]["var"], inputs.var((0, 1, 2)))


class Normalised(nn.Module):
    """Two normalised layers; the momentum is the layer's own affair."""

    momentum: tuple[float, float]

    @nn.compact
    def __call__(self, x, train: bool = False):
        for momentum in self.momentum:
            x = nn.Dense(4)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=momentum)(x)
        return x


class NormalisedNNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.7, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_they_do_not_depend_on_the_momentum():
    x = batch(size=1).reshape(6, 3)
    first, second = (dj.from_linen(Normalised(momentum)) for momentum in ((0.9, 0.99), (0.0, 0.5)))
    variables = random_variables(first, (3,))
    assert_trees_close(
        statistics.batch_statistics(first, variables, x),
        statistics.batch_statistics(second, variables, x),
        tolerance=1e-4,  # 0.01 of them are seen at momentum 0.99, in float32
    )


def test_nnx_modules_have_them_too():
    x = batch(size=1).reshape(6, 3)
    model = dj.from_nnx(NormalisedNNX)
    variables = random_variables(model, (3,))
    found = statistics.batch_statistics(model, variables, x)["norm"]
    inputs = np.asarray(x) @ variables["params"]["dense"]["kernel"]
    inputs = inputs + variables["params"]["dense"]["bias"]
    np.testing.assert_allclose(found["mean"], inputs.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], inputs.var(0), rtol=1e-4)


def counting() -> dj.Model:
    """A model with a state that is no running statistic: a count of batches and a direction."""

    def init(key, x):
        state = {"mean": jnp.zeros(3), "u": jnp.full(2, 7.0), "seen": jnp.asarray(5)}
        return {"params": {}, "batch_stats": state}

    def apply(variables, x, train=False, key=None):
        if not train:
            return x, variables
        old = variables["batch_stats"]
        new = {
            "mean": 0.9 * old["mean"] + 0.1 * x.mean(0),
            "u": old["u"] + 1,
            "seen": old["seen"] + 1,
        }
        return x, {**variables, "batch_stats": new}

    return dj.Model(init, apply)


@pytest.mark.parametrize("batches", [1, 3])
def test_they_are_averaged_over_batches_and_other_state_is_left_alone(batches):
    model, images = counting(), jnp.arange(27, dtype=jnp.float32).reshape(9, 3)
    variables = model.init(None, images)
    update = statistics.statistics_update(model, lambda images: images)
    rows = jnp.arange(9).reshape(batches, -1)
    carry = StatisticsMean(jax.tree.map(jnp.zeros_like, variables["batch_stats"]), jnp.int32(0))
    for _ in range(batches):
        carry = update(carry, (variables, rows), images)
    result = carry.mean
    expected = {**variables["batch_stats"], "mean": images.mean(0)}
    assert_trees_close(result, expected, tolerance=1e-5)
    assert_trees_equal({**result, "mean": 0}, {**expected, "mean": 0})  # to the last bit
    types = (jax.tree.map(lambda x: x.dtype, tree) for tree in (result, expected))
    assert next(types) == next(types)


def test_state_without_running_statistics_is_left_alone():
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)

    model, x = dj.from_linen(Spectral()), batch(size=1).reshape(6, 3)
    variables = random_variables(model, (3,))
    assert variables["batch_stats"]
    found = statistics.batch_statistics(model, variables, x)
    assert_trees_equal(found, variables["batch_stats"])


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)), None


SCANNED = nn.scan(
    ScannedBlock,
    variable_axes={"params": 0, "batch_stats": 0},
    split_rngs={"params": True},
    length=2,
)


class Frozen(nn.Module):
    """A normalisation that its author has frozen in some way, and then one that is not."""

    way: str

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4)(x)
        match self.way:
            case "in evaluation mode":
                x = nn.BatchNorm(use_running_average=True, name="frozen")(x)
            case "jitted":
                x = nn.jit(nn.BatchNorm)(use_running_average=True, name="frozen")(x)
            case "scanned":
                x, _ = SCANNED(name="frozen")(x, None)
            case "by its momentum":
                x = nn.BatchNorm(not train, momentum=1.0, name="frozen")(x)
        return nn.BatchNorm(use_running_average=not train, name="moving")(nn.Dense(4)(x))


@pytest.mark.parametrize("way", ["in evaluation mode", "jitted", "scanned", "by its momentum"])
def test_what_is_frozen_stays_and_is_used_as_it_is(way, x64):
    module, x = Frozen(way), batch(size=1).reshape(6, 3)
    model = dj.from_linen(module)
    variables = random_variables(model, (3,))
    found = statistics.batch_statistics(model, variables, x)
    assert jax.tree.leaves(found["frozen"])
    assert_trees_equal(found["frozen"], variables["batch_stats"]["frozen"])
    _, seen = module.apply(
        variables,
        x,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    (inputs,) = seen["intermediates"]["Dense_1"]["__call__"]
    np.testing.assert_allclose(found["moving"]["mean"], np.asarray(inputs).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["moving"]["var"], np.asarray(inputs).var(0), rtol=1e-6)


def test_flags_counts_and_complex_numbers_may_be_among_them():
    """Counts and flags are no statistics of a batch: they stay."""

    def apply(variables, x, train=False, key=None):
        counted = variables["batch_stats"]["count"] + 1
        mean = x.mean() * (1 + 1j)
        return x, {"batch_stats": {"count": counted, "ready": counted > 9, "mean": mean}}

    model = dj.Model(lambda key, x: {}, apply)
    stats = {"count": jnp.int32(7), "ready": jnp.array(True), "mean": jnp.zeros((), complex)}
    images = jnp.arange(9.0)
    carry = StatisticsMean(stats, jnp.int32(0))
    update = statistics.statistics_update(model, lambda images: images)
    for _ in range(3):
        operands = {"params": {}, "batch_stats": stats}, jnp.arange(9).reshape(3, 3)
        carry = update(carry, operands, images)
    assert carry.mean["ready"] and carry.mean["count"] == 7
    np.testing.assert_allclose(carry.mean["mean"], 4 + 4j, rtol=1e-6)


def test_the_mean_over_batches_keeps_what_is_frozen_to_the_last_bit():
    model, images = dj.from_linen(Frozen("in evaluation mode")), batch(9, size=1).reshape(9, 3)
    variables = random_variables(model, (3,))
    update = statistics.statistics_update(model, lambda images: images)
    carry = StatisticsMean(jax.tree.map(jnp.zeros_like, variables["batch_stats"]), jnp.int32(0))
    for _ in range(3):
        carry = update(carry, (variables, jnp.arange(9).reshape(3, 3)), images)
    assert_trees_equal(carry.mean["frozen"], variables["batch_stats"]["frozen"])
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), carry.mean, variables["batch_stats"])
    assert all(jax.tree.leaves(moved["moving"]))
