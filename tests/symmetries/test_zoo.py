"""Every model of the zoo computes the same when all of its groups are permuted at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures_helpers import QUICK
from helpers.symmetry_checks import drawn, random_network

from dimat_jax import models
from dimat_jax.symmetries import find_symmetries, invert, permute
from dimat_jax.symmetries.permutations import with_outer

SMALL, LEAST_VGG = (4, 8, 8, 3), (4, 32, 32, 3)
ZOO = {
    "mlp": (models.mlp(width=0.125, norm="batch"), SMALL),
    "convnet": (models.convnet(), SMALL),
    "convnet layer": (models.convnet(norm="layer"), SMALL),
    "convnet group": (models.convnet(norm="group"), SMALL),
    "convnet none": (models.convnet(norm="none"), SMALL),
    "vgg11": (models.vgg11(width=0.125), LEAST_VGG),
    "vgg16": (models.vgg16(width=0.125, norm="group"), LEAST_VGG),
    "resnet20": (models.resnet20(width=0.25), SMALL),
    "resnet20 padding": (models.resnet20(width=0.25, shortcut="padding"), SMALL),
    "resnet50": (models.resnet50(width=0.125), SMALL),
    "vit": (models.vit(width=0.25, depth=2), SMALL),
}
LARGE = ("resnet50", "vgg16")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in ZOO]


def network(name, dtype):
    """A model, random variables and images of that dtype."""
    model, shape = ZOO[name]
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    return model, random_network(model, images), images


def assert_unchanged(function, symmetries, variables, tolerance):
    """All groups permuted at random: the outputs stay; updated variables are permuted, too."""

    def everything(permutations, variables):
        outputs, updated = function(permute(symmetries, permutations, variables))
        return outputs, permute(symmetries, invert(permutations), updated)

    run = jax.jit(everything, compiler_options=QUICK)  # compiled once for both calls
    permutations = with_outer(symmetries, drawn(symmetries, seed=1))
    identity = jax.tree.map(lambda p: np.sort(p, axis=-1), permutations)
    before, after = run(identity, variables), run(permutations, variables)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.abs(b - a).max() <= tolerance * np.abs(a).max()


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay_and_updated_statistics_are_permuted(name, x64):
    model, variables, images = network(name, "float64")

    def both_modes(variables):
        logits, updated = model.apply(variables, images, train=True)
        return (model.apply(variables, images)[0], logits), updated

    found = find_symmetries(model, variables, images)
    assert_unchanged(both_modes, found, variables, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay_in_float32(name):
    model, variables, images = network(name, "float32")
    found = find_symmetries(model, variables, images)
    assert_unchanged(lambda v: model.apply(v, images), found, variables, 1e-4)
