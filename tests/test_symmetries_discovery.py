"""Groups of whole models and of random programs; what the table says of a function."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_programs import random_program
from symmetry_checks import assert_symmetric, normal, random, reference_permute, sizes

from dimat_jax import models
from dimat_jax.symmetries import Symmetries, find_symmetries, verify

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def groups_of(model, images=IMAGES):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return find_symmetries(model, variables, images)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_random_programs(seed):
    """Whatever is found in a random program of tensor operations is a symmetry of it.

    The program runs in NumPy; only the tracing is JAX's.
    """
    rng = np.random.default_rng(seed)
    shapes, program = random_program(rng)
    leaves = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = rng.normal(size=rng.choice([2, 3, 4, 6], size=2))
    with jax.enable_x64(True):
        found = find_symmetries(lambda v, x: program(jnp, v, x), leaves, x)
    before = program(np, leaves, x)
    after = program(np, reference_permute(found, random(found, seed), leaves), x)
    assume(all(np.isfinite(a).all() for a in before))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * max(1, np.abs(a).max()))


class Block(nn.Module):
    """A layer of a random architecture."""

    kind: str
    width: int

    @nn.compact
    def __call__(self, x):
        if self.kind == "dense":
            return nn.relu(nn.Dense(self.width)(x))
        if self.kind == "residual":
            return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.width)(x)))
        if self.kind == "conv":
            return nn.relu(nn.Conv(self.width, (3,))(x))
        if self.kind == "depthwise":
            return nn.Conv(x.shape[-1], (3,), feature_group_count=x.shape[-1])(x)
        if self.kind == "grouped":
            return nn.Conv(2 * self.width, (1,), feature_group_count=2)(nn.Dense(6)(x))
        if self.kind == "norm":
            return nn.LayerNorm()(x)
        if self.kind == "batch norm":
            return nn.BatchNorm(use_running_average=True)(x)
        if self.kind == "group norm":
            return nn.GroupNorm(2)(nn.Dense(2 * self.width)(x))
        if self.kind == "concatenate":
            return jnp.concatenate([x, nn.tanh(nn.Dense(self.width)(x))], -1)
        if self.kind == "gate":
            return x * nn.sigmoid(nn.Dense(x.shape[-1])(x.mean(1, keepdims=True)))
        if self.kind == "attention":
            return x + nn.MultiHeadDotProductAttention(2, qkv_features=2 * self.width)(x)
        raise ValueError(self.kind)


KINDS = (
    """
dense residual conv depthwise grouped norm attention gate concatenate
""".split()
    + ["batch norm", "group norm"]
)


class Chain(nn.Module):
    """A random architecture: layers, then a flattened or a pooled head."""

    kinds: tuple[str, ...]
    flatten: bool

    @nn.compact
    def __call__(self, x):
        for i, kind in enumerate(self.kinds):
            x = Block(kind, (5, 7, 4, 3)[i % 4])(x)
        x = x.reshape(len(x), -1) if self.flatten else x.max(1)
        return nn.Dense(2)(x)


@settings(deadline=None, max_examples=6)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.booleans())
def test_random_architectures(kinds, flatten):
    module = Chain(tuple(kinds), flatten)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape)), shapes)
    found = assert_symmetric(module.apply, variables, x, tolerance=1e-4)
    assert not found.notes


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_mlp_has_a_group_a_hidden_layer(layers):
    def function(v, x):
        for i in range(layers):
            x = jax.nn.relu(x @ v[f"w{i}"])
        return x @ v["head"]

    widths = [3, 5, 5, 7, 5][: layers + 1]
    v = normal(
        0, **{f"w{i}": (widths[i], widths[i + 1]) for i in range(layers)}, head=(widths[-1], 2)
    )
    found = find_symmetries(function, v, jnp.ones((1, 3)))
    assert sizes(found) == sorted(widths[1:])
    assert list(found.groups) == [f"w{i}" for i in range(layers)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # One group a convolution: 64 64 128 128 256 256 256 512 512 512 512 512 512.
        ("vgg16", {}, {64: 2, 128: 2, 256: 3, 512: 6}),
        ("vgg16", {"norm": "none"}, {64: 2, 128: 2, 256: 3, 512: 6}),
        # GroupNorm's 8 groups may be exchanged, and in each group its own channels: every group
        # above becomes two. A quarter of the channels, 16 32 64 128, is 8 x 2, 4, 8, 16.
        (
            "vgg16",
            {"norm": "group", "width": 0.25},
            {8: 13, (8, 2): 2, (8, 4): 2, (8, 8): 3, (8, 16): 6},
        ),
        # Three residual streams, and the interiors of nine blocks.
        ("resnet20", {"shortcut": "conv3x3"}, {16: 4, 32: 4, 64: 4}),
        ("resnet20", {"shortcut": "conv1x1"}, {16: 4, 32: 4, 64: 4}),
        # A padded stream keeps the 16 channels of the stage before as a segment and adds as many.
        ("resnet20", {"shortcut": "padding"}, {16: 3 + 2, 32: 3 + 1, 64: 3}),
        ("resnet20", {"norm": "layer"}, {16: 4, 32: 4, 64: 4}),
        ("resnet20", {"norm": "none"}, {16: 4, 32: 4, 64: 4}),
        # As above, every group in two: 16, 32, 64 channels are 8 groups of 2, 4, 8.
        ("resnet20", {"norm": "group"}, {8: 12, (8, 2): 4, (8, 4): 4, (8, 8): 4}),
        # Stem and four streams (the stem's 64 are no stream: bottlenecks give out 256); two
        # interiors of 64, 128, 256, 512 in each of 3, 4, 6, 3 blocks.
        ("resnet50", {}, {64: 1 + 6, 128: 8, 256: 1 + 12, 512: 1 + 6, 1024: 1, 2048: 1}),
        ("resnet50", {"norm": "layer"}, {64: 7, 128: 8, 256: 13, 512: 7, 1024: 1, 2048: 1}),
        ("resnet50", {"norm": "none"}, {64: 7, 128: 8, 256: 13, 512: 7, 1024: 1, 2048: 1}),
        # The same 7, 8, 13, 7, 1, 1 groups of a quarter of the channels, every one in two.
        (
            "resnet50",
            {"norm": "group", "width": 0.25},
            {8: 37, (8, 2): 7, (8, 4): 8, (8, 8): 13, (8, 16): 7, (8, 32): 1, (8, 64): 1},
        ),
        # The stream; in each of 12 blocks the units of the MLP, the heads, and for each of 4 heads
        # 32 query/key units and 32 value units.
        ("vit", {"depth": 12}, {128: 1, 512: 12, 4: 12, (4, 32): 24}),
    ],
)
def test_the_zoo(name, options, expected):
    found = sizes(groups_of(getattr(models, name)(num_classes=10, **options)))
    assert {size: found.count(size) for size in found} == expected


def test_group_norm_has_groups_and_channels_within():
    found = groups_of(models.resnet20(num_classes=10, norm="group"))
    outer = [group for group in found.groups.values() if not group.outer]
    inner = [group for group in found.groups.values() if group.outer]
    assert len(outer) == len(inner) == 12
    assert all(found.groups[group.outer[0]] in outer for group in inner)


def test_batch_statistics_are_in_the_groups():
    found = groups_of(models.convnet(num_classes=10))
    for group in found.groups.values():
        leaves = {site.path.rsplit("/", 1)[-1] for site in group.sites}
        assert {"mean", "var", "scale", "kernel"} <= leaves


@pytest.mark.parametrize(("name", "options"), [("resnet50", {}), ("vit", {"depth": 12})])
def test_in_under_a_second(name, options):
    """Abstract values only. The bound leaves room for run-time type checks and a busy machine."""
    model = getattr(models, name)(num_classes=10, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        find_symmetries(model, variables, IMAGES)
        times.append(time.perf_counter() - start)
    assert min(times) < 4


def test_verify_measures_the_change():
    v, x = normal(0, a=(3, 5), b=(5, 2)), jnp.ones((1, 3))
    function = lambda v, x: x @ v["a"] @ v["b"]  # noqa: E731
    found = find_symmetries(function, v, x)
    assert verify(found, function, v, x) < 1e-5
    half = found.groups["a"]._replace(sites=found.groups["a"].sites[:1])
    assert verify(Symmetries({"a": half}), function, v, x) > 0.01


def test_names_are_paths_and_do_not_depend_on_the_process():
    found = groups_of(models.resnet20(num_classes=10))
    first = next(iter(found.groups.values()))
    assert next(iter(found.groups)) == first.sites[0].path
    assert found == groups_of(models.resnet20(num_classes=10))
