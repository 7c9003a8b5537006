"""Flax modules as models: names of training mode, random streams, Linen and NNX alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimat_jax.models import from_linen, from_nnx
from dimat_jax.models.adapters import TRAINING_MODES

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 5))


def linen_body(training, x):
    x = nn.BatchNorm(use_running_average=not training)(nn.Dense(8)(x))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not training)(x))


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return linen_body(train, x)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training):
        return linen_body(training, x)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, is_training: bool):
        return linen_body(is_training, x)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        return linen_body(not deterministic, x)


class UseRunningAverage(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average: bool):
        return linen_body(not use_running_average, x)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool, use_running_average: bool):
        assert deterministic == use_running_average
        return linen_body(not deterministic, x)


LINEN = [
    (Train, {"train": True}),
    (Training, {"training": True}),
    (IsTraining, {"is_training": True}),
    (Deterministic, {"deterministic": False}),
    (UseRunningAverage, {"use_running_average": False}),
    (Two, {"deterministic": False, "use_running_average": False}),
]


def test_every_name_of_training_mode_is_tried():
    assert set(TRAINING_MODES) == {name for _, options in LINEN for name in options}


@pytest.mark.parametrize(("module", "options"), LINEN)
def test_linen_training_mode_is_found_by_name(module, options):
    model = from_linen(module())
    variables = model.init(KEY, X)
    assert sorted(variables) == ["batch_stats", "params"]
    evaluated, returned = model.apply(variables, X, key=KEY)
    assert returned is variables
    trained, updated = model.apply(variables, X, train=True, key=KEY)
    expected, changed = module().apply(
        variables, X, **options, rngs={"params": KEY}, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(trained, expected)
    assert not np.allclose(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], changed["batch_stats"])


class Streams(nn.Module):
    """Draws from two streams; no statistics, no training mode in the call."""

    @nn.compact
    def __call__(self, x):
        noise = jax.random.normal(self.make_rng("dropout"), x.shape)
        depth = jax.random.normal(self.make_rng("stochastic_depth"), x.shape)
        return nn.Dense(3)(x + noise + 10 * depth)


def test_key_serves_every_stream():
    model = from_linen(Streams())
    variables = model.init(KEY, X)
    assert list(variables) == ["params"]
    first, again, other = (model.apply(variables, X, key=jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_linen_dropout_without_a_key_says_so():
    model = from_linen(Train())
    variables = model.init(KEY, X)
    with pytest.raises(Exception, match="needs PRNG"):
        model.apply(variables, X, train=True)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(nnx.relu(layer(x)))
        return self.last(self.norm(x))


class CallMode(nnx.Module):
    """Training mode as an argument, passed on by hand; a counter as a further variable."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(5, 3, rngs=rngs)
        self.calls = nnx.Cache(jnp.zeros((), jnp.int32))

    def __call__(self, x, training: bool):
        self.calls[...] += 1
        return self.linear(x) * (2.0 if training else 1.0)


def test_nnx_variables_are_plain_dicts_with_string_keys():
    model = from_nnx(Block)
    variables = model.init(KEY, X)
    assert sorted(variables) == ["batch_stats", "params"]
    assert sorted(variables["params"]["layers"]) == ["0", "1"]
    assert variables["params"]["layers"]["1"]["kernel"].shape == (8, 8)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert sorted(variables["batch_stats"]["norm"]) == ["mean", "var"]


def test_nnx_gives_the_modules_own_output():
    model = from_nnx(Block)
    module = Block(nnx.Rngs(KEY))
    variables = model.init(KEY, X)
    module.eval()
    logits, returned = model.apply(variables, X)
    np.testing.assert_allclose(logits, module(X), rtol=1e-6)
    assert returned is variables


def test_nnx_training_updates_statistics_only():
    model = from_nnx(Block)
    variables = model.init(KEY, X)
    apply = jax.jit(model.apply, static_argnames="train")
    first, updated = apply(variables, X, train=True, key=KEY)
    again, _ = apply(variables, X, train=True, key=KEY)
    other, _ = apply(variables, X, train=True, key=jax.random.key(3))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    assert not np.allclose(
        updated["batch_stats"]["norm"]["mean"], variables["batch_stats"]["norm"]["mean"]
    )


def test_nnx_dropout_layers_draw_apart_and_need_a_key():
    class Dropouts(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            return jnp.concatenate([layer(x) for layer in self.layers], axis=-1)

    model = from_nnx(Dropouts)
    out, _ = model.apply({"params": {}}, jnp.ones((4, 50)), train=True, key=KEY)
    assert not np.array_equal(out[:, :50], out[:, 50:])
    with pytest.raises(ValueError, match="draws random numbers.*pass a key"):
        model.apply({"params": {}}, X, train=True)


def test_nnx_training_mode_as_an_argument_and_other_variables():
    model = from_nnx(CallMode)
    variables = model.init(KEY, X)
    assert sorted(variables) == ["params", "state"]
    evaluated, _ = model.apply(variables, X)
    trained, updated = model.apply(variables, X, train=True)
    np.testing.assert_allclose(trained, 2 * evaluated)
    assert updated["state"]["calls"] == 1


def test_statistics_keep_their_dtype_on_float64_inputs(x64):
    model = from_linen(Train())
    variables = model.init(KEY, X.astype(jnp.float32))
    _, updated = model.apply(variables, X.astype(jnp.float64), train=True, key=KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {np.dtype("float32")}
