import collections
import functools
import pathlib
import re
import tomllib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dimat_jax as dj
from dimat_jax.datasets import augment
from dimat_jax.execution import kernels
from dimat_jax.execution.kernels import with_kernels
from dimat_jax.models import batch_norm, layers

needs_kernels = pytest.mark.skipif(
    not kernels.installed(), reason="dimat_jax_cpu is not installed: pip install ./cpu_kernels"
)
FORMAT = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, strides=(1, 1), padding="SAME", **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=FORMAT, **options
    )


def pass_and_gradients(x, kernel, given, **options):
    """The convolution, and the gradients of images and kernel for a given one of the result."""
    y, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, **options), x, kernel)
    return y, *pull_back(given)


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def primitives(function, *args):
    return str(jax.make_jaxpr(function)(*args))


def far(a, b):
    """The largest difference, relative to the largest value."""
    return np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(a)).max() + 1e-30)


channels = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32, 40, 64])


@st.composite
def shapes(draw):
    """Batch, height, width, inputs; kernel height, width; outputs; stride; padding."""
    batch, height, width = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 20)),
    )
    inputs, outputs = draw(channels), draw(channels)
    kernel = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    padding = [(draw(st.integers(0, size)), draw(st.integers(0, size))) for size in kernel]
    padding = [
        (low, max(high, size - length - low))  # Every image is as large as the kernel, at least.
        for (low, high), size, length in zip(padding, kernel, (height, width), strict=True)
    ]
    return (
        (batch, height, width, inputs),
        (*kernel, inputs, outputs),
        draw(st.integers(1, 4)),
        padding,
    )


@st.composite
def whole_vectors(draw):
    """As `shapes`, of what goes through Winograd's algorithm."""
    batch, height, width = (draw(st.integers(1, 9)) for _ in range(3))
    inputs, outputs = (draw(st.sampled_from([16, 32, 48, 80])) for _ in range(2))
    padding = [(draw(st.integers(0, 3)), draw(st.integers(2, 3))) for _ in range(2)]
    return (batch, height, width, inputs), (3, 3, inputs, outputs), 1, padding


def windows(images, kernel, stride, padding):
    """What each entry of the kernel sees, ``[rows, columns, batch, height, width, inputs]``.

    In NumPy, not XLA: of some of the shapes that come up here XLA's gradients are wrong, or its
    compiler aborts the process (JAX 0.9.0 and 0.10.2).
    """
    framed = np.pad(images.astype(float), ((0, 0), *padding, (0, 0)))
    rows, columns = kernel.shape[:2]
    seen = np.lib.stride_tricks.sliding_window_view(framed, (rows, columns), (1, 2))
    return seen[:, ::stride, ::stride].transpose(4, 5, 0, 1, 2, 3)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(st.one_of(shapes(), whole_vectors()), st.integers(1, 3))
def test_convolution_and_both_gradients_are_those_of_numpy(shape, threads):
    x_shape, kernel_shape, stride, padding = shape
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    seen = windows(x, kernel, stride, padding)
    y = np.einsum("rcnhwi,rcio->nhwo", seen, kernel)
    given = normal(2, *y.shape)
    options = dict(strides=(stride, stride), padding=padding)
    fast = with_kernels(lambda *args: pass_and_gradients(*args, **options), threads)
    ours, of_images, of_kernel = fast(x, kernel, given)
    assert far(y, ours) < 1e-5
    assert far(np.einsum("rcnhwi,nhwo->rcio", seen, given), of_kernel) < 1e-5
    # The images' gradient is the adjoint: the same product with anything in place of the images.
    other = normal(3, *x_shape)
    products = np.einsum("rcnhwi,rcio->nhwo", windows(other, kernel, stride, padding), kernel)
    scale = np.linalg.norm(products) * np.linalg.norm(given) + 1e-30
    assert abs(np.vdot(products, given) - np.vdot(other, of_images)) < 1e-5 * scale


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("channels", [(3, 16), (16, 32), (40, 24)], ids=str)
def test_convolution_and_both_gradients_are_those_of_xla(channels, size, stride):
    x, kernel = normal(0, 2, 12, 12, channels[0]), normal(1, size, size, *channels)
    options = dict(strides=(stride, stride), padding=[(size // 2, size // 2)] * 2)
    args = x, kernel, normal(2, *convolve(x, kernel, **options).shape)
    fast = with_kernels(lambda *args: pass_and_gradients(*args, **options))
    for ours, theirs in zip(fast(*args), pass_and_gradients(*args, **options), strict=True):
        assert far(theirs, ours) < 1e-5


@needs_kernels
def test_no_convolution_of_the_zoo_is_left_to_xla():
    images = normal(0, 4, 32, 32, 3)
    for name in ("convnet", "vgg11", "resnet20", "resnet50"):
        model = dj.models.make(name, num_classes=10, width=0.25)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)

        def gradient(params, rest, x, model=model):
            def loss(params):
                return model.apply({**rest, "params": params}, x, train=True)[0].sum()

            return jax.grad(loss)(params)

        params = variables.pop("params")
        before = primitives(gradient, params, variables, images)
        after = primitives(with_kernels(gradient), params, variables, images)
        found = re.findall("target_name=dimat_(convolution|kernel_gradient)", after)
        assert before.count("conv_general_dilated[") == len(found) > 0
        assert "conv_general_dilated" not in after


class Smooth(nn.Module):
    """No ReLU: one that turns at a rounding error takes all gradients before it with it."""

    @nn.compact
    def __call__(self, x, train):
        for channels, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            x = nn.Conv(channels, (3, 3), stride, padding=1, use_bias=False)(x)
            x = nn.gelu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean((1, 2)))


@needs_kernels
def test_a_network_and_its_gradient_are_the_same():
    model = dj.from_linen(Smooth())
    images = jnp.asarray(normal(0, 8, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def gradient(variables, x):
        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, x, train=True)
            return jnp.square(logits).mean(), updated

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    expected = jax.jit(gradient)(variables, images)
    found = jax.jit(with_kernels(gradient))(variables, images)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert far(a, b) < 1e-4  # Float32, through six layers and back.


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        dict(strides=(1, 2)),
        dict(rhs_dilation=(2, 2)),
        dict(feature_group_count=2),
    ],
    ids=str,
)
def test_what_it_does_not_have_stays_with_xla(options):
    x, kernel = (
        normal(0, 2, 8, 8, 4),
        normal(1, 3, 3, 4 // options.get("feature_group_count", 1), 4),
    )
    fast = with_kernels(lambda *args: convolve(*args, **options))
    assert "dimat" not in primitives(fast, x, kernel)
    np.testing.assert_array_equal(fast(x, kernel), convolve(x, kernel, **options))


@needs_kernels
def test_images_may_be_cropped():
    x, kernel = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 4, 4)
    fast = with_kernels(lambda *args: convolve(*args, padding=[(-1, 0), (0, -2)]))
    assert "dimat" in primitives(fast, x, kernel)
    assert far(convolve(x[:, 1:, :-2], kernel, padding="VALID"), fast(x, kernel)) < 1e-5


@needs_kernels
def test_float64_stays_with_xla(x64):
    x, kernel = normal(0, 2, 8, 8, 3, dtype=float), normal(1, 3, 3, 3, 4, dtype=float)
    assert "dimat" not in primitives(with_kernels(convolve), x, kernel)


@needs_kernels
def test_functions_that_are_called_are_gone_into():
    x, kernel = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)
    inner = jax.jit(lambda x, kernel: {"y": jax.nn.relu(convolve(x, kernel)) + 1})
    fast = with_kernels(lambda x, kernel: inner(x, 2 * kernel))
    assert "dimat" in primitives(fast, x, kernel)
    assert far(inner(x, 2 * kernel)["y"], fast(x, kernel)["y"]) < 1e-5


def checkpointed(**options):
    """The gradient of two convolutions under `jax.checkpoint`, and what it takes."""

    def loss(kernels, x):
        layers = jax.checkpoint(lambda k, x: convolve(jnp.tanh(convolve(x, k)), k), **options)
        return jnp.square(layers(kernels, x)).sum()

    return jax.grad(loss), normal(0, 3, 3, 4, 4), normal(1, 2, 8, 8, 4)


@needs_kernels
@pytest.mark.parametrize("name", ["convnet", "resnet20"])
def test_a_network_under_checkpoint_gets_as_many_kernels_as_without(name):
    images = normal(0, 4, 32, 32, 3)
    model = dj.models.make(name, num_classes=10, width=0.25)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def found(wrap):
        apply = wrap(functools.partial(model.apply, train=True))

        def loss(params, rest):
            return apply({**rest, "params": params}, images)[0].sum()

        rest = {name: tree for name, tree in variables.items() if name != "params"}
        text = primitives(with_kernels(jax.grad(loss)), variables["params"], rest)
        assert "conv_general_dilated" not in text
        return collections.Counter(re.findall("target_name=dimat_([a-z_]*)", text))

    plain, again = found(lambda apply: apply), found(jax.checkpoint)
    # Everything that the backward pass needs is computed once more, and nothing is left out.
    assert again["kernel_gradient"] == plain["kernel_gradient"] > 0
    assert again["convolution"] > plain["convolution"] > 0


@needs_kernels
@pytest.mark.parametrize("prevent_cse", [True, False])
def test_what_checkpoint_computes_once_more_stays_behind_its_barrier(prevent_cse):
    """XLA gets what `jax.checkpoint` gives it, kernels in the place of convolutions."""
    gradient, *args = checkpointed(prevent_cse=prevent_cse)
    plain, fast = (jax.jit(f).lower(*args).as_text() for f in (gradient, with_kernels(gradient)))
    assert plain.count("optimization_barrier") == prevent_cse
    assert fast.count("optimization_barrier") == prevent_cse
    # Two layers, the first of them once more; gradients of both kernels and of one's images.
    assert plain.count("stablehlo.convolution") == 6
    assert fast.count("@dimat_convolution") == 4 and fast.count("@dimat_kernel_gradient") == 2
    assert far(gradient(*args), jax.jit(with_kernels(gradient))(*args)) < 1e-5


@jax.custom_jvp
def custom_jvp(x, kernel):
    return convolve(x, kernel)


@jax.custom_vjp
def custom_vjp(x, kernel):
    return convolve(x, kernel)


custom_jvp.defjvps(None, None)
custom_vjp.defvjp(lambda x, kernel: (convolve(x, kernel), None), lambda _, g: (g, None))


@needs_kernels
@pytest.mark.parametrize(
    "call",
    [jax.jit(convolve), jax.checkpoint(convolve), custom_jvp, custom_vjp]
    + [jax.jit(jax.checkpoint(jax.jit(convolve))), jax.lax.composite(convolve, "my.convolution")],
    ids="jit checkpoint custom_jvp custom_vjp nested composite".split(),
)
def test_every_call_is_entered(call):
    x, kernel = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 4, 4)
    assert calls(call, x, kernel) == ["convolution"]
    assert far(convolve(x, kernel), with_kernels(call)(x, kernel)) < 1e-5


@needs_kernels
def test_what_is_not_a_number_stays_so():
    x, kernel = normal(0, 1, 8, 8, 3), normal(1, 3, 3, 3, 16)
    x[0, 4, 4, 1] = np.nan
    y = np.asarray(with_kernels(convolve)(x, kernel))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(convolve(x, kernel)))
    # Winograd's algorithm may make NaN of all outputs that share a patch with it.
    x, kernel = normal(0, 1, 8, 8, 16), normal(1, 3, 3, 16, 16)
    x[0, 4, 4, 1] = np.nan
    y = np.isnan(with_kernels(convolve)(x, kernel))
    assert y[np.isnan(convolve(x, kernel))].all() and y.any(-1).sum() <= 16


def test_a_function_is_as_it_was_without_the_kernels(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert with_kernels(convolve) is convolve
    monkeypatch.delenv(kernels.SWITCH)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert with_kernels(convolve) is convolve


def test_kernels_of_another_version_are_named_and_not_used(monkeypatch):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(kernels.importlib.metadata, "version", lambda name: "0.1.0")
    with pytest.warns(UserWarning, match="0.1.0 .* needs 0.3.0: pip install"):
        assert with_kernels(convolve) is convolve


def test_the_version_that_is_needed_is_that_which_stands_beside():
    about = pathlib.Path(__file__).parents[2] / "cpu_kernels" / "pyproject.toml"
    assert tomllib.loads(about.read_text())["project"]["version"] == kernels.VERSION


def calls(function, *args):
    """The kernels that a function calls."""
    found = primitives(with_kernels(function), *args)
    return re.findall(r"target_name=dimat_(\w+)", found)


@needs_kernels
@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*(st.integers(1, 9) for _ in range(3)), st.integers(1, 70)),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_channel_sums_are_those_of_numpy(shape, seed, threads):
    x, y = normal(seed, *shape), normal(seed + 1, *shape)
    fast = with_kernels(batch_norm.channel_sums, threads)
    for found, of in zip(fast(x, y), (x, x.astype(float) * y), strict=True):
        scale = np.abs(of).sum((0, 1, 2))
        assert (np.abs(found - of.sum((0, 1, 2), dtype=float)) <= 1e-6 * scale).all()


@needs_kernels
def test_channel_sums_of_many_rows():
    x, y = normal(0, 8, 64, 64, 24), normal(1, 8, 64, 64, 24)
    total, products = with_kernels(batch_norm.channel_sums)(x, y)
    np.testing.assert_allclose(total, x.sum((0, 1, 2), dtype=float), atol=1e-2)
    np.testing.assert_allclose(products, (x.astype(float) * y).sum((0, 1, 2)), atol=1e-2)


@needs_kernels
@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*(st.integers(1, 5) for _ in range(3)), st.integers(1, 40)),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_the_gradient_of_halve_is_the_same(shape, seed, threads):
    batch, height, width, units = shape
    rng = np.random.default_rng(seed)
    # So few values that many are equal, and some that are no numbers.
    x = rng.choice([0, 1, 2, np.nan], (batch, 2 * height, 2 * width, units), p=[0.4, 0.3, 0.2, 0.1])
    x, dy = x.astype(np.float32), normal(seed, batch, height, width, units)
    gradient = layers.max_pool_2x2_gradient
    np.testing.assert_array_equal(with_kernels(gradient, threads)(x, dy), gradient(x, dy))


@needs_kernels
@settings(max_examples=20, deadline=None)
@given(st.tuples(*(st.integers(1, 7) for _ in range(4))), st.integers(0, 9), st.integers(0, 99))
def test_images_are_flipped_and_shifted_alike(shape, padding, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, shape, np.uint8)
    flipped = rng.integers(0, 2, shape[0], np.int32)
    shifts = rng.integers(-padding, padding + 1, (shape[0], 2), np.int32)

    def move(images, flipped, shifts):
        return augment.flip_and_shift(images, flipped, shifts, padding)

    expected = move(images, flipped, shifts)
    np.testing.assert_array_equal(with_kernels(move)(images, flipped, shifts), expected)
    stacked = [np.stack([x, x]) for x in (images, flipped, shifts)]
    np.testing.assert_array_equal(
        with_kernels(jax.vmap(move))(*stacked), np.stack([expected, expected])
    )


@needs_kernels
def test_known_functions_are_found_where_they_are_as_they_were():
    x, dy = normal(0, 2, 4, 4, 3), normal(1, 2, 2, 2, 3)
    assert calls(batch_norm.channel_sums, x, x) == ["channel_sums"]
    gradient = jax.grad(lambda x: (layers.max_pool_2x2(x) * dy).sum())
    assert calls(gradient, x) == ["max_pool_2x2_gradient"]
    # Vmapped or differentiated they are others, though named the same.
    assert calls(jax.vmap(batch_norm.channel_sums), x, x) == []
    slopes = jax.grad(lambda x: batch_norm.channel_sums(x, x)[1].sum())
    np.testing.assert_allclose(with_kernels(slopes)(x), 2 * x, rtol=1e-6)
    assert calls(jax.vmap(layers.max_pool_2x2_gradient), x[None], dy[None]) == []
    whole = x.astype(np.int32)
    assert calls(layers.max_pool_2x2_gradient, whole, whole[:, :2, :2]) == []


@needs_kernels
def test_a_function_of_somebody_else_by_the_same_name_stays():
    @jax.jit
    def channel_sums(x, y):
        return x.max((0, 1, 2)), y.max((0, 1, 2))

    x = normal(0, 2, 4, 4, 3)
    assert calls(lambda x: channel_sums(x, x), x) == []


@needs_kernels
def test_several_threads_give_the_same_every_time():
    x, kernel = normal(0, 16, 16, 16, 32), normal(1, 3, 3, 32, 32)
    args = x, kernel, normal(2, 16, 16, 16, 32)
    fast = jax.jit(with_kernels(lambda *args: pass_and_gradients(*args, padding="SAME"), 2))
    first = fast(*args)
    for _ in range(20):
        for a, b in zip(first, fast(*args), strict=True):
            np.testing.assert_array_equal(a, b)
