"""Groups of whole models and of random programs; what the table says of a function."""

import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.random_programs import random_program, stacked_program
from helpers.symmetry_checks import assert_symmetric, normal, random, reference_permute, sizes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dimat_jax import models
from dimat_jax.symmetries import Symmetries, find_symmetries, verify

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def groups_of(model, images=IMAGES):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return find_symmetries(model, variables, images)


def assert_program_symmetric(shapes, program, x, rng):
    """Whatever is found in a random program of tensor operations is a symmetry of it.

    The program runs in NumPy; only the tracing is JAX's.
    """
    leaves = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    with jax.enable_x64(True):
        found = find_symmetries(lambda v, x: program(jnp, v, x), leaves, x)
    before = program(np, leaves, x)
    after = program(np, reference_permute(found, random(found, 0), leaves), x)
    assume(all(np.isfinite(a).all() for a in before))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * max(1, np.abs(a).max()))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_random_programs(seed):
    rng = np.random.default_rng(seed)
    shapes, program = random_program(rng)
    assert_program_symmetric(shapes, program, rng.normal(size=rng.choice([2, 3, 4, 6], 2)), rng)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_random_programs_over_stacked_kernels(seed):
    """Slices of one leaf in chains and in attention, reshaped, and besides the whole leaf."""
    rng = np.random.default_rng(seed)
    shapes, program = stacked_program(rng)
    assert_program_symmetric(shapes, program, rng.normal(size=(4, 3)), rng)


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


@settings(deadline=None, max_examples=4)
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
        # One group a hidden layer; GroupNorm makes 8 groups of 32 units out of 256.
        ("mlp", {"norm": "layer"}, {256: 3}),
        ("mlp", {"norm": "none"}, {256: 3}),
        ("mlp", {"norm": "group"}, {8: 3, (8, 32): 3}),
        # One group a convolution: 64 64 128 128 256 256 256 512 512 512 512 512 512.
        ("vgg16", {}, {64: 2, 128: 2, 256: 3, 512: 6}),
        ("vgg16", {"norm": "layer"}, {64: 2, 128: 2, 256: 3, 512: 6}),
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
        # Padding ties the streams whatever the norm.
        ("resnet20", {"norm": "layer", "shortcut": "padding"}, {16: 5, 32: 4, 64: 3}),
        ("resnet20", {"norm": "none", "shortcut": "padding"}, {16: 5, 32: 4, 64: 3}),
        # Nine interiors as above. The last norm's 8 groups of 8 channels are 2, 2 and 4 groups of
        # the stream's three parts; what is within a group is one factor for all parts (which is
        # fewer than there are, see the documentation): of 2 x 2 x 2, as the norms before cut it.
        (
            "resnet20",
            {"norm": "group", "shortcut": "padding"},
            {8: 9, (8, 2): 3, (8, 4): 3, (8, 8): 3, 2: 4, 4: 1, (2, 2): 1},
        ),
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


TIMED = """
import time, jax
from dimat_jax import find_symmetries, models
images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
for model in (models.resnet50(), models.vit(depth=12)):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    start = time.process_time()
    find_symmetries(model, variables, images)
    print(time.process_time() - start)
"""


def test_in_under_a_second():
    """The first time, tracing included: abstract values only.

    In a process of its own, because these tests check every call's types; and of that process's
    time, because other work may run on the machine.
    """
    out = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True)
    assert max(map(float, out.stdout.split())) < 1


def test_leaves_that_are_only_handed_on_belong_to_no_group():
    """DCE does not look into custom derivatives, nor for a while loop's unused carries."""

    @jax.custom_jvp
    def first(h, unread):
        return jnp.tanh(h)

    first.defjvp(lambda primals, tangents: (first(*primals), tangents[0]))

    def looped(h, unread):
        state = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, *s[1:]), (0, h, unread))
        return state[1]

    for call in (first, looped):
        function = lambda v, x: call(x @ v["a"], v["unread"]) @ v["b"]  # noqa: B023, E731
        v = normal(0, a=(3, 5), b=(5, 2), unread=(9,))
        assert list(find_symmetries(function, v, jnp.ones((1, 3))).groups) == ["a"]


def test_two_leaves_of_one_path_are_refused():
    v = {"a": {"b": jnp.ones((3, 3))}, "a/b": jnp.ones((3, 3))}
    with pytest.raises(ValueError, match="Two leaves of the variables have the path 'a/b'"):
        find_symmetries(lambda v, x: x @ v["a"]["b"] @ v["a/b"], v, jnp.ones((1, 3)))


def test_functions_among_the_leaves_are_refused():
    module = eqx.filter_eval_shape(eqx.nn.MLP, 3, 2, 5, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'activation' .* is a function.*eqx\.partition"):
        find_symmetries(lambda module, x: jax.vmap(module)(x), module, jnp.ones((1, 3)))


def test_verify_measures_the_change():
    v, x = normal(0, a=(3, 5), b=(5, 2)), jnp.ones((1, 3))
    function = lambda v, x: x @ v["a"] @ v["b"]  # noqa: E731
    found = find_symmetries(function, v, x)
    assert verify(found, function, v, x) < 1e-5
    half = Symmetries({"a": found.groups["a"]._replace(sites=found.groups["a"].sites[:1])})
    assert verify(half, function, v, x) > 0.01
    assert verify(half, lambda v, x: 1j * function(v, x), v, x) > 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_verify_takes_what_is_not_finite_for_a_change(bad):
    """An infinity that stays is none, but one that appears, or not a number, is."""
    v, x = normal(0, a=(3, 5), b=(5, 2)), jnp.ones((1, 3))
    found = find_symmetries(lambda v, x: x @ v["a"] @ v["b"], v, x)
    a = v["a"]
    appears = lambda v, x: (x, jnp.where((v["a"] == a).all(), x, bad))  # noqa: E731
    assert verify(found, appears, v, x) == np.inf
    assert verify(found, lambda v, x: (x @ v["a"] @ v["b"], x * np.inf), v, x) < 1e-5


def test_names_are_paths_and_do_not_depend_on_the_process():
    found = groups_of(models.resnet20(num_classes=10))
    first = next(iter(found.groups.values()))
    assert next(iter(found.groups)) == first.sites[0].path
    assert found == groups_of(models.resnet20(num_classes=10))
