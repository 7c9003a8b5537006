import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import random_variables
from hypothesis import given, settings
from hypothesis import strategies as st

import dimat_jax as dj
from dimat_jax.execution import placement
from dimat_jax.execution.products import multiplying, patch_bytes, with_products


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def is_free_of_convolutions(function, *args):
    return "conv_general_dilated" not in str(jax.make_jaxpr(function)(*args))


def agree(function, *args):
    """The function and its rewritten form, on the same arguments."""
    changed = with_products(function)
    assert is_free_of_convolutions(changed, *args)
    for expected, found in zip(
        jax.tree.leaves(function(*args)), jax.tree.leaves(jax.jit(changed)(*args)), strict=True
    ):
        assert expected.shape == found.shape and expected.dtype == found.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@st.composite
def convolutions(draw):
    """Shapes and options of a convolution of one to three dimensions."""
    dimensions = draw(st.integers(1, 3))
    each = lambda least, most: tuple(  # noqa: E731
        draw(st.integers(least, most)) for _ in range(dimensions)
    )
    window, space = each(1, 4), each(4, 9)
    apart = each(1, 2)
    reach = [(k - 1) * d + 1 for k, d in zip(window, apart, strict=True)]
    # Wider padding makes that of the gradient negative, where XLA's CPU backend reads at random.
    padding = [(draw(st.integers(0, r - 1)), draw(st.integers(0, r - 1))) for r in reach]
    enough = all(n + sum(p) >= r for n, p, r in zip(space, padding, reach, strict=True))
    padding = padding if enough else [(r - 1, r - 1) for r in reach]
    options = dict(window_strides=each(1, 3), padding=padding, rhs_dilation=apart)
    batch, inputs, outputs = (draw(st.integers(1, 4)) for _ in range(3))
    return (batch, *space, inputs), (*window, inputs, outputs), options


FORMATS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@settings(max_examples=10, deadline=None)
@given(convolutions())
def test_a_convolution_and_its_gradients_are_products(drawn):
    images, kernel, options = drawn
    x, w = normal(0, *images), normal(1, *kernel)
    dimensions = FORMATS[len(images) - 2]

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, dimension_numbers=dimensions, **options)

    def all_of_it(x, w, given):
        y, pull_back = jax.vjp(convolve, x, w)
        return y, *pull_back(given)

    agree(all_of_it, x, w, normal(2, *jax.eval_shape(convolve, x, w).shape))


def test_other_layouts_are_products_too():
    x, w = normal(0, 2, 3, 8, 7), normal(1, 5, 3, 3, 2)
    convolve = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x,
        w,
        (1, 2),
        [(1, 2), (0, 1)],
        lhs_dilation=(2, 1),
        dimension_numbers=("NCHW", "OIHW", "HWNC"),
    )
    agree(convolve, x, w)


def test_grouped_convolutions_and_loops_stay():
    x, w = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 2, 4)
    grouped = with_products(
        lambda x, w: nn.Conv(4, (3, 3), feature_group_count=2).apply(
            {"params": {"kernel": w, "bias": jnp.zeros(4)}}, x
        )
    )
    assert not is_free_of_convolutions(grouped, x, w)

    def looped(x, w):
        def convolve(x, _):
            params = {"kernel": w, "bias": jnp.zeros(4)}
            return nn.Conv(4, (3, 3)).apply({"params": params}, x), None

        return jax.lax.scan(convolve, x, length=2)[0]

    w = normal(1, 3, 3, 4, 4)
    assert not is_free_of_convolutions(with_products(looped), x, w)
    np.testing.assert_allclose(with_products(looped)(x, w), looped(x, w), rtol=1e-5)


@pytest.mark.parametrize("name", ["convnet", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_agents_own_networks_train_as_before(name):
    model = dj.models.make(name, num_classes=10, width=0.25)
    task = dj.classification(model)
    inputs = normal(0, 2, 4, 16, 16, 3)
    batch = {"inputs": inputs, "labels": np.arange(8, dtype=np.int32).reshape(2, 4)}
    variables = random_variables(model, inputs.shape[2:], agents=2)

    def gradient_of(task):
        def gradient(variables, batch):
            def loss(params):
                at = {**variables, "params": params}
                return task.loss(at, batch, train=True)[0].mean()

            return jax.grad(loss)(variables["params"])

        return gradient

    changed = jax.jit(jax.vmap(gradient_of(multiplying(task))))
    assert is_free_of_convolutions(changed, variables, batch)
    found, alone = changed(variables, batch), jax.jit(gradient_of(task))
    for agent in range(2):
        trees = variables, batch, found
        own, images, mine = (jax.tree.map(lambda a, i=agent: a[i], tree) for tree in trees)
        expected = alone(own, images)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(mine), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * np.abs(a).max())


def test_own_derivatives_and_checkpoints_outlive_the_change():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.custom_vjp
    def doubled(x):  # says of itself that its derivative is 2
        return x

    doubled.defvjp(lambda x: (x, ()), lambda _, dy: (2 * dy,))
    options = {"prevent_cse": False, "policy": jax.checkpoint_policies.nothing_saveable}

    def loss(x, w):
        return jax.checkpoint(lambda x, w: jnp.tanh(doubled(convolve(x, w))), **options)(x, w).sum()

    x, w = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 3)
    plain, changed = jax.grad(loss, 1), jax.grad(with_products(loss), 1)
    np.testing.assert_allclose(changed(x, w), plain(x, w), rtol=1e-4, atol=1e-4)
    assert not np.allclose(
        plain(x, w), jax.grad(lambda x, w: jnp.tanh(convolve(x, w)).sum(), 1)(x, w)
    )
    assert is_free_of_convolutions(changed, x, w)
    (again,) = (e for e in jax.make_jaxpr(changed)(x, w).eqns if e.primitive.name == "remat2")
    assert again.params["policy"] is options["policy"] and not again.params["prevent_cse"]


@pytest.mark.slow
def test_a_run_with_products_trains_as_one_without(monkeypatch):
    """In the form in which a GPU computes it, and agent by agent, as CPUs do."""
    choose = placement.choose_execution

    def as_on_a_gpu(*args, **options):
        return choose(*args, **options)._replace(sequential=False, lanes_at_once=2, products=True)

    expected = losses_of_a_run()
    with monkeypatch.context() as patched:
        patched.setattr("dimat_jax.simulation.setup.choose_execution", as_on_a_gpu)
        found = losses_of_a_run()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def losses_of_a_run():
    config = dj.Config(
        dataset="shapes",
        agents=2,
        devices=1,
        model="convnet",
        width=0.25,
        rounds=1,
        pretrain_epochs=1,
        examples_per_agent=20,
        test_examples=20,
        matching_images=20,
        batch_size=10,
        methods=("dimat",),
    )
    rows = dj.simulate(config, observer=None).history
    return [row["train_loss"] for row in rows if row.get("train_loss") is not None]


def test_only_accelerators_with_many_agents_take_products():
    assert not placement.choose_execution(4, convolutions=True).products


# Patches that are not kept ------------------------------------------------------------------------


def test_patches_made_again_give_the_same_gradient_and_are_not_kept():
    model = dj.models.convnet(num_classes=4, width=0.25)
    task = dj.classification(model)
    batch = {"inputs": jnp.asarray(normal(1, 6, 8, 8, 3)), "labels": jnp.arange(6) % 4}
    variables = task.init(jax.random.key(0), batch)

    def gradient_of(task):
        def loss(params):
            return task.loss({**variables, "params": params}, batch, train=True)[0].mean()

        return loss, jax.jit(jax.grad(loss))

    (kept, plain), (again, changed) = (gradient_of(multiplying(task, x)) for x in (False, True))
    params = variables["params"]
    for a, b in zip(*(jax.tree.leaves(f(params)) for f in (plain, changed)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)

    def residuals(loss):
        saved = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved))

    patches = patch_bytes(lambda v: task.loss(v, batch, train=True), variables)
    # But for the images of each layer, which are then kept instead.
    assert residuals(kept) - residuals(again) > 0.7 * patches


def test_the_bytes_of_patches_are_those_of_their_shapes():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, w = jnp.zeros((5, 8, 6, 3)), jnp.zeros((3, 2, 3, 7))
    assert patch_bytes(jax.jit(convolve), x, w) == 4 * 5 * (4 * 6) * (3 * 2) * 3
    assert patch_bytes(convolve, x, jnp.zeros((1, 1, 3, 7))) == 0  # They are the images.
    assert patch_bytes(jnp.add, x, x) == 0


def test_patches_are_kept_where_they_fit():
    execution = placement.choose_execution(4, True, devices=1)
    execution = execution._replace(products=True, lanes_at_once=4)
    assert not placement.with_patches(execution, 12, 80).recompute
    assert placement.with_patches(execution, 13, 80).recompute
    assert not placement.with_patches(execution._replace(lanes_at_once=2), 13, 80).recompute
    assert not placement.with_patches(execution, 10**12, None).recompute  # Nobody says.
    assert not placement.with_patches(execution._replace(products=False), 13, 80).recompute
