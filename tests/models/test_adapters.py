"""Flax modules as models: names of training mode, random streams, Linen and NNX alike."""

import functools
import re

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


def named(argument: str, training: bool) -> type[nn.Module]:
    """A module whose ``__call__`` has an argument of this name, with this value in training."""
    space = {"nn": nn, "linen_body": linen_body}
    exec(
        "class Named(nn.Module):\n"
        "  @nn.compact\n"
        f"  def __call__(self, x, {argument}: bool = {not training}):\n"
        f"    return linen_body({argument} == {training}, x)",
        space,
    )
    return space["Named"]


Train = named("train", True)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training):
        return linen_body(training, x)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool, use_running_average: bool):
        assert deterministic == use_running_average
        return linen_body(not deterministic, x)


LINEN = [
    *((named(name, on), {name: on}) for name, on in TRAINING_MODES.items()),
    (Training, {"training": True}),
    (Two, {"deterministic": False, "use_running_average": False}),
]


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


def calls(**arguments) -> type[nn.Module]:
    """A module whose ``__call__`` has further arguments, each as it is written."""
    space = {"nn": nn, "linen_body": linen_body}
    listed = ", ".join(f"{name}{rest}" for name, rest in arguments.items())
    first = next(iter(arguments))
    exec(
        "class Net(nn.Module):\n"
        "  @nn.compact\n"
        f"  def __call__(self, x, {listed}):\n"
        f"    return linen_body(bool({first}), x)",
        space,
    )
    return space["Net"]


ASKED = {
    "a bool": {"stochastic": "=False"},
    "said to be a bool": {"stochastic": ": bool = None"},
    "perhaps a bool": {"stochastic": ": 'bool | None' = None"},
    "nothing said of it": {"stochastic": ""},
    "among others": {"stochastic": "=True", "scale": "=1.0"},
}


@pytest.mark.parametrize("arguments", ASKED.values(), ids=ASKED)
def test_a_training_mode_of_another_name_is_asked_for(arguments):
    net = calls(**arguments)()
    message = "Net.__call__ takes stochastic besides the inputs: say what is its training mode, tra"
    with pytest.raises(ValueError, match=message) as error:
        from_linen(net)
    assert "\n" not in str(error.value)
    for on in (True, False):
        model = from_linen(net, training={"stochastic": on})
        variables = model.init(KEY, X)
        expected = net.apply(
            variables, X, stochastic=on, rngs={"params": KEY}, mutable=["batch_stats"]
        )[0]
        np.testing.assert_array_equal(model.apply(variables, X, train=True, key=KEY)[0], expected)
    with pytest.raises(ValueError, match="does not say which value is that of training"):
        from_linen(net, training="stochastic")


def test_a_training_mode_is_named_or_said_to_be_none():
    net = calls(inference="=True", train="=False")()
    variables = from_linen(net).init(KEY, X)
    moved = {}
    for training in ("inference", "train", {"inference": True}, {}):
        model = from_linen(net, training=training)
        after = model.apply(variables, X, train=True, key=KEY)[1]["batch_stats"]
        moved[str(training)] = not np.array_equal(
            after["BatchNorm_0"]["mean"], variables["batch_stats"]["BatchNorm_0"]["mean"]
        )
    # The body trains where its first argument is true: by `inference` False is that of training.
    assert moved == {"inference": False, "train": True, "{'inference': True}": True, "{}": True}


def test_other_arguments_are_left_at_their_defaults():
    for arguments in ({"scale": "=1.0"}, {"mask": "=None"}, {"mode": "='eval'"}, {"_": "=()"}):
        from_linen(calls(**arguments)())
    from_linen(nn.Sequential([nn.Dense(3)]))
    from_linen(nn.Dense(3))


NO_MODULE = {
    "a class": (lambda: from_linen(Two), "takes a module, not its class: from_linen(Two(...))"),
    "an NNX module": (lambda: from_linen(Block(nnx.Rngs(0))), "from_nnx(make_module) takes NNX's"),
    "a number": (lambda: from_linen(3), "module must be a Linen module (of Flax), not 3"),
    "a name": (lambda: from_linen("mlp"), "must be a Linen module (of Flax), not 'mlp'"),
    "nothing to call": (lambda: from_linen(nn.Module()), "Module has no __call__"),
    "an argument it lacks": (
        lambda: from_linen(Train(), training="training"),
        "Unknown argument of Named.__call__ for training 'training'. Did you mean 'train'?",
    ),
    "no name": (lambda: from_linen(Train(), training=3), "training must be the name of"),
    "no bool": (lambda: from_linen(Train(), training={"train": 1}), "training must be the name"),
    "what is needed": (lambda: from_linen(calls(x2=": float")()), "Net.__call__ takes x2 besides"),
    "what is needed, too": (
        lambda: from_linen(calls(**{"train": "=False", "*": "", "x3": ": float"})()),
        "Net.__call__ takes x3 besides",
    ),
    "a module for a function": (lambda: from_nnx(Block(nnx.Rngs(0))), "not a Block: from_nnx(lam"),
    "a Linen module": (lambda: from_nnx(Train()), "from_linen(module) takes Linen's"),
    "nothing to make": (lambda: from_nnx(None), "from_nnx takes a function of nnx.Rngs"),
    "more to be given": (
        lambda: from_nnx(nnx.Linear),
        "missing a required argument: 'in_features'",
    ),
    "no streams": (lambda: from_nnx(lambda: Block(nnx.Rngs(0))), "too many positional arguments"),
    "another thing made": (lambda: from_nnx(lambda rngs: 3), "must be an NNX module, not 3"),
    "what fails": (lambda: from_nnx(lambda rngs: {}["a"]), "make_module fails (KeyError: 'a')"),
}


@pytest.mark.parametrize(("make", "message"), NO_MODULE.values(), ids=NO_MODULE)
def test_what_is_no_module_is_refused_in_a_sentence(make, message, untyped):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)


def test_nnx_takes_random_streams_by_their_name_or_first(untyped):
    class Named(nnx.Module):
        def __init__(self, features=3, *, rngs):
            self.linear = nnx.Linear(5, features, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)

    expected = from_nnx(lambda r: Named(rngs=r)).init(KEY, X)
    ways = (
        Named,
        functools.partial(Named, 3),
        lambda rngs: Named(rngs=rngs),
        lambda r, **options: Named(rngs=r, **options),
        lambda rngs, /: Named(rngs=rngs),
    )
    for make in ways:
        jax.tree.map(np.testing.assert_array_equal, from_nnx(make).init(KEY, X), expected)


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
