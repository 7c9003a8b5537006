"""The model zoo: parameter counts, training mode, widths, dtypes and bad input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax import models
from dimat_jax.models import layers
from dimat_jax.models.vit import patches

KEY = jax.random.key(0)
SMALL = {"width": 0.25}


def images(batch=2, size=32, channels=3, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((batch, size, size, channels), dtype)


def random_images(batch=4, size=8, channels=1, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, size, size, channels), dtype)


def count(variables):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def shapes(name, x, **options):
    return jax.eval_shape(models.make(name, **options).init, KEY, x)


def conv_count(*channels, size=3):
    """Weights of a chain of convolutions, each with a scale and shift per output channel."""
    pairs = zip(channels[:-1], channels[1:], strict=True)
    return sum(size * size * i * o + 2 * o for i, o in pairs)


def test_mlp_has_the_parameters_of_its_layers():
    expected = 64 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 10 + 10
    assert count(shapes("mlp", images(size=8, channels=1))) == expected
    assert count(shapes("mlp", images(size=8, channels=1), depth=0)) == 64 * 10 + 10


def test_convnet_has_the_parameters_of_its_layers():
    expected = conv_count(3, 16, 32, 64) + 4 * 4 * 64 * 10 + 10
    assert count(shapes("convnet", images())) == expected


@pytest.mark.parametrize(
    ("shortcut", "expected"),
    [
        ("padding", 269_722),  # 0.27 M, He et al. 2016, table 6
        ("conv1x1", 269_722 + conv_count(16, 32, size=1) + conv_count(32, 64, size=1)),
        ("conv3x3", 269_722 + conv_count(16, 32) + conv_count(32, 64)),
    ],
)
def test_resnet20_has_the_published_number_of_parameters(shortcut, expected):
    assert count(shapes("resnet20", images(), shortcut=shortcut)) == expected


def test_resnet50_has_the_published_number_of_parameters():
    large = shapes("resnet50", images(size=224), num_classes=1000)
    assert count(large) == 25_557_032  # as torchvision counts it
    small = shapes("resnet50", images())
    assert count(small) == 25_557_032 - (2048 + 1) * 990 - (49 - 9) * 3 * 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg11", 9_231_114),  # the CIFAR VGG of the literature, less its convolutions' biases
        ("vgg16", 14_728_266),
    ],
)
def test_vgg_has_the_published_number_of_parameters(name, expected):
    variables = shapes(name, images())
    biases = sum(layer["scale"].size for layer in find(variables["params"], "scale"))
    assert count(variables) + biases == expected


def find(tree, key):
    """Every sub-dict that holds ``key``."""
    if not isinstance(tree, dict):
        return []
    return [tree] * (key in tree) + [hit for child in tree.values() for hit in find(child, key)]


def test_vit_has_the_parameters_of_its_layers():
    dim, hidden, tokens = 128, 512, 64
    block = 4 * (dim * dim + dim) + 2 * dim * hidden + hidden + dim + 4 * dim
    expected = 48 * dim + dim + tokens * dim + 6 * block + 2 * dim + dim * 10 + 10
    assert count(shapes("vit", images())) == expected
    with_class_token = shapes("vit", images(), pooling="cls")
    assert count(with_class_token) == expected + 2 * dim  # the token and its position


@pytest.mark.parametrize("name", models.FACTORIES)
def test_width_scales_every_hidden_size(name):
    """Hidden × hidden weights grow with the square of the width, so the total nearly does."""
    ratios = [count(shapes(name, images(), width=w)) for w in (1.0, 2.0, 4.0)]
    assert 2 < ratios[1] / ratios[0] < ratios[2] / ratios[1] < 4


@pytest.mark.parametrize("name", models.FACTORIES)
def test_logits_have_one_column_a_class(name):
    model = models.make(name, num_classes=7, **SMALL)
    variables = jax.eval_shape(model.init, KEY, images())
    logits, _ = jax.eval_shape(model.apply, variables, images(batch=5))
    assert logits.shape == (5, 7)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "vgg11", "resnet20", "resnet50"])
def test_norm_decides_statistics_and_biases(name, norm):
    variables = shapes(name, images(), norm=norm, **SMALL)
    assert ("batch_stats" in variables) == (norm == "batch")
    hidden_biases = len(find(variables["params"], "kernel")) - 1
    norms = find(variables["params"], "scale")
    assert len(norms) == (0 if norm == "none" else hidden_biases)


def test_layers_that_nothing_normalises_have_biases():
    for layer in find(shapes("vgg11", images(), norm="none", **SMALL)["params"], "kernel"):
        assert "bias" in layer


@pytest.fixture(scope="module")
def convnet():
    model = models.convnet(**SMALL)
    x = random_images()
    return model, jax.jit(model.init)(KEY, x), x


def test_training_updates_statistics_by_the_named_momentum(convnet):
    model, variables, x = convnet
    _, updated = model.apply(variables, x, train=True)
    old = variables["batch_stats"]["BatchNorm_0"]
    new = updated["batch_stats"]["BatchNorm_0"]
    kernel = variables["params"]["Conv_0"]["kernel"]
    features = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    m = models.BATCH_NORM_MOMENTUM
    batch = jax.tree.map(lambda new, old: (new - m * old) / (1 - m), new, old)
    np.testing.assert_allclose(batch["mean"], features.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(batch["var"], features.var((0, 1, 2)), atol=1e-5)
    assert updated["params"] is variables["params"]


def test_evaluation_returns_the_given_variables(convnet):
    model, variables, x = convnet
    _, returned = model.apply(variables, x)
    assert returned is variables


def test_evaluation_treats_every_image_alone(convnet):
    model, variables, x = convnet
    apply = jax.jit(lambda variables, x: model.apply(variables, x)[0])
    np.testing.assert_allclose(apply(variables, x)[:2], apply(variables, x[:2]), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20", "vit"])
def test_float64_images_make_float64_models(name, x64):
    model = models.make(name, **SMALL)
    x = images(size=8, channels=1, dtype=jnp.float64)
    variables = jax.eval_shape(model.init, KEY, x)
    logits, updated = jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, updated))} == {
        np.dtype("float64")
    }


def test_float64_images_compute_in_float64_on_float32_weights(x64):
    model = models.convnet(**SMALL)
    x = images(size=8, channels=1, dtype=jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    x = images(size=8, channels=1, dtype=jnp.float64)
    logits, updated = jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, x)
    assert logits.dtype == jnp.float64
    assert jax.tree.map(lambda a: a.dtype, updated) == jax.tree.map(lambda a: a.dtype, variables)


def test_the_first_of_equally_large_pixels_takes_the_gradient_of_max_pool_2x2():
    x = jnp.asarray([[1.0, 2.0, 0.0, 0.0], [2.0, 2.0, 3.0, 0.0]]).reshape(1, 2, 4, 1)
    weights = jnp.asarray([5.0, 7.0])[:, None]
    gradient = jax.grad(lambda x: (layers.max_pool_2x2(x) * weights).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 5, 0, 0], [0, 0, 7, 0]])


def test_halve_is_the_window_maximum_and_has_its_gradient():
    x = random_images(size=7, channels=3)
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))  # noqa: E731
    np.testing.assert_array_equal(layers.max_pool_2x2(x), pool(x))
    weigh = jax.random.normal(KEY, (4, 3, 3, 3))
    ours, reference = (
        jax.grad(lambda x, f=f: (weigh * f(x)).sum())(x) for f in (layers.max_pool_2x2, pool)
    )
    np.testing.assert_array_equal(ours, reference)


def test_large_images_meet_resnet50s_large_stem():
    assert stem_size(64) == 3
    assert stem_size(65) == 7


def stem_size(size):
    variables = shapes("resnet50", images(size=size), **SMALL)
    return variables["params"]["stem"]["Conv_0"]["kernel"].shape[0]


def test_padding_shortcut_keeps_the_stream_and_adds_zero_channels():
    from dimat_jax.models.resnet import Shortcut

    x = random_images(size=6, channels=3)
    padded = Shortcut(channels=5, norm="batch", kind="padding", strides=2).apply({}, x, False)
    np.testing.assert_array_equal(padded[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(padded[..., 3:], 0)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("convnet", 7, "convnet needs images of at least 8 x 8 pixels, not 7 x 7"),
        ("vgg11", 16, "vgg needs images of at least 32 x 32 pixels, not 16 x 16"),
        ("vit", 30, "vit needs images whose sides are multiples of 4 pixels, not 30 x 30"),
    ],
)
def test_images_that_do_not_fit(name, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        shapes(name, images(size=size))


def test_inputs_that_are_no_images():
    with pytest.raises(ValueError, match=r"takes images \[batch, height.*not \(2, 64\)"):
        shapes("convnet", jax.ShapeDtypeStruct((2, 64), jnp.float32))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("resnet21", {}, "Unknown model 'resnet21'. Did you mean 'resnet20'"),
        ("convnet", {"norm": "bach"}, "Unknown norm 'bach'. Did you mean 'batch'"),
        ("resnet20", {"shortcut": "conv2x2"}, "Unknown shortcut 'conv2x2'. Did you mean"),
        ("vit", {"pooling": "max"}, "Unknown pooling 'max'.*There are: mean, cls"),
        ("mlp", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("mlp", {"width": 0.0}, "width must be positive, not 0.0"),
        ("mlp", {"depth": -1}, "depth must be at least 0, not -1"),
        ("vit", {"norm": "batch"}, "model 'vit': got an unexpected keyword argument 'norm'"),
    ],
)
def test_bad_options(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.make(name, **options)


def test_patches_are_the_squares_of_an_image():
    x = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    tokens = patches(x, 4)
    assert tokens.shape == (2, 6, 48)
    for token in range(6):
        row, col = divmod(token, 3)
        square = x[:, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
        np.testing.assert_array_equal(tokens[:, token], square.reshape(2, -1))


def test_dropout_needs_a_key_and_acts_in_training_only():
    model = models.vit(width=0.25, depth=1, dropout=0.5)
    x = random_images()
    variables = jax.jit(model.init)(KEY, x)
    apply = jax.jit(model.apply, static_argnames="train")
    first, second = (apply(variables, x, train=True, key=jax.random.key(k))[0] for k in (1, 2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(apply(variables, x, key=KEY)[0], apply(variables, x)[0])
    with pytest.raises(Exception, match="needs PRNG"):
        model.apply(variables, x, train=True)
