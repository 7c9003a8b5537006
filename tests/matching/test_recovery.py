"""Planted truth for every model of the zoo: permute every group, match, get all of them back."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures_helpers import QUICK
from helpers.symmetry_checks import drawn, random_network

from dimat_jax import models
from dimat_jax.matching import assign, cross_moments, match_activations, match_weights, scores
from dimat_jax.symmetries import (
    find_symmetries,
    invert,
    permute,
    read_activations,
    read_sites,
)
from dimat_jax.symmetries.permutations import with_outer

SMALL, SQUARE = (24, 8, 8, 3), (24, 32, 32, 3)
ZOO = {
    "mlp": (models.mlp(width=0.25), SMALL),
    "convnet": (models.convnet(), SMALL),
    "convnet group": (models.convnet(norm="group"), SMALL),
    "vgg11": (models.vgg11(width=0.125), SQUARE),
    "vgg16": (models.vgg16(width=0.125), SQUARE),
    "resnet20": (models.resnet20(width=0.5), SMALL),
    "resnet20 padding": (models.resnet20(width=0.5, shortcut="padding"), SMALL),
    "resnet50": (models.resnet50(width=0.125), SMALL),
    "vit": (models.vit(width=0.25, depth=2), SMALL),
}
LARGE = ("resnet50", "vgg16")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in ZOO]


PERMUTED = jax.jit(permute, static_argnums=0, compiler_options=QUICK)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def correlations(symmetries, target, source):
    return scores(cross_moments(symmetries, target, source))


def planted(name):
    """A network with random normalisation parameters and statistics, and a permuted copy."""
    model, shape = ZOO[name]
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    target = random_network(model, images)
    symmetries = find_symmetries(model, target, images)
    permutations = with_outer(symmetries, jax.tree.map(jnp.asarray, drawn(symmetries, seed=2)))
    source = PERMUTED(symmetries, permutations, target)
    return symmetries, model, target, source, images, invert(permutations)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_activations_recover_every_group(name):
    """By weights all units; by activations all but those that are equal on the images.

    Those are in ResNet-50 alone, whose last stages see one pixel of each image: units that are dead
    on all images, and two that are active on the same single one. Correlation cannot tell those.
    """
    symmetries, model, target, source, images, truth = planted(name)
    by_weights = match_weights(symmetries, target, source, jax.random.key(3))
    for group in symmetries.groups:
        np.testing.assert_array_equal(by_weights[group], truth[group], err_msg=group)

    read = jax.jit(read_sites(symmetries, model), compiler_options=QUICK)
    activations = read(target, images)
    found = assign(symmetries, correlations(symmetries, activations, read(source, images)))
    right = {group: found[group] == truth[group] for group in symmetries.groups}
    for group in [group for group in right if not right[group].all()]:
        assert name == "resnet50", group
        matched_with = np.argsort(truth[group])[found[group]]
        for x in activations[group,]:
            units = standardised(x)
            np.testing.assert_allclose(units, units[:, matched_with], atol=1e-4, err_msg=group)
    assert sum(r.sum() for r in right.values()) > 0.9 * sum(r.size for r in right.values())


def standardised(x):
    """Activations `[..., units]` as `[examples, units]` with mean 0 and deviation 1, or all 0."""
    centred = x.reshape(-1, x.shape[-1]) - x.mean(tuple(range(x.ndim - 1)))
    deviation = np.asarray(centred).std(0)
    return np.asarray(centred) / np.where(deviation > 0, deviation, 1)


def test_activation_matching_reaches_the_best_of_all_permutations():
    """Two unrelated networks of 6 and 4 units: every permutation's correlations, by NumPy."""
    generator = np.random.default_rng(0)
    networks = [
        {n: generator.normal(size=s) for n, s in dict(a=(3, 6), b=(6, 4), c=(4, 2)).items()}
        for _ in range(2)
    ]
    images = generator.normal(size=(50, 3))
    function = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]  # noqa: E731
    symmetries = find_symmetries(function, networks[0], images)
    found = match_activations(symmetries, function, *networks, images)
    read = read_activations(symmetries, function)
    target, source = (read(network, images) for network in networks)
    for group, size in (("a", 6), ("b", 4)):
        pair = np.asarray(target[group][0]), np.asarray(source[group][0])
        table = np.corrcoef(*pair, rowvar=False)[:size, size:]
        reached = table[np.arange(size), found[group]].sum()
        best = max(
            table[np.arange(size), list(p)].sum() for p in itertools.permutations(range(size))
        )
        np.testing.assert_allclose(reached, best, rtol=1e-5)
