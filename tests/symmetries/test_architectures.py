"""The groups of small architectures of every kind: as reasoned, and really symmetries."""

from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest
from helpers.architectures import ARCHITECTURES
from helpers.architectures_helpers import QUICK
from helpers.symmetry_checks import drawn, sizes

from dimat_jax.symmetries import find_symmetries, permute
from dimat_jax.symmetries.groups import path_name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_those_expected_by_reasoning(name):
    function, variables, inputs = ARCHITECTURES[name].make()
    symmetries = find_symmetries(function, variables, *inputs)
    assert Counter(sizes(symmetries)) == ARCHITECTURES[name].groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_permutations_of_all_groups_leave_the_output_unchanged(name, x64):
    function, variables, inputs = ARCHITECTURES[name].make()
    symmetries = find_symmetries(function, variables, *inputs)
    (before, same), (after, permuted) = before_and_after(function, symmetries, variables, inputs)
    assert before.dtype == np.float64
    assert np.abs(after - before).max() <= 1e-10 * np.abs(before).max()
    for group in symmetries.groups.values():
        assert not any(moved(site.path, variables, same) for site in group.sites)
        assert any(moved(site.path, variables, permuted) for site in group.sites)


FLOAT32 = ["mixture_of_experts", "channel_shuffle", "fused_qkv_reshaped", "grouped_query", "lstm"]


@pytest.mark.parametrize("name", FLOAT32)
def test_the_output_stays_in_float32(name):
    function, variables, inputs = ARCHITECTURES[name].make()
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    symmetries = find_symmetries(function, variables, *inputs)
    (before, _), (after, _) = before_and_after(function, symmetries, variables, inputs)
    assert before.dtype == np.float32
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def before_and_after(function, symmetries, variables, inputs):
    """The outputs and variables with the identity for all groups, and with a permutation of all."""

    @partial(jax.jit, compiler_options=QUICK)  # compilation is what costs: once for both calls
    def output(permutations, variables, *inputs):
        permuted = permute(symmetries, permutations, variables)
        return function(permuted, *inputs), permuted

    permutations = drawn(symmetries, seed=1)
    identity = {name: np.sort(permutation) for name, permutation in permutations.items()}
    return [output(p, variables, *inputs) for p in (identity, permutations)]


def moved(path, before, after):
    sides = (jax.tree_util.tree_leaves_with_path(tree) for tree in (before, after))
    return any(
        path_name(where) == path and not np.array_equal(a, b)
        for (where, a), (_, b) in zip(*sides, strict=True)
    )


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_every_library_gives_the_same_groups(kind):
    found = set()
    for library in ("plain", "linen", "nnx", "equinox"):
        function, variables, inputs = ARCHITECTURES[f"{library}_{kind}"].make()
        groups = find_symmetries(function, variables, *inputs).groups.values()
        found.add(tuple(sorted((group.size, len(group.sites)) for group in groups)))
    assert len(found) == 1
