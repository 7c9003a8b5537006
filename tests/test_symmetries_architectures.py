"""The groups of small architectures of every kind: as reasoned, and really symmetries."""

from collections import Counter

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES

from dimat_jax.symmetries import find_symmetries, permute, random_permutations


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_those_expected_by_reasoning(name):
    function, variables, inputs = ARCHITECTURES[name].make()
    symmetries = find_symmetries(function, variables, *inputs)
    assert Counter(group.size for group in symmetries.groups.values()) == ARCHITECTURES[name].groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_permutations_of_all_groups_leave_the_output_unchanged(name, x64):
    function, variables, inputs = ARCHITECTURES[name].make()
    symmetries = find_symmetries(function, variables, *inputs)
    permutations = random_permutations(jax.random.key(1), symmetries)
    permuted = permute(symmetries, permutations, variables)
    evaluate = jax.jit(function)
    before, after = evaluate(variables, *inputs), evaluate(permuted, *inputs)
    assert before.dtype == np.float64
    assert np.abs(after - before).max() <= 1e-10 * np.abs(before).max()
    unmoved = jax.tree.map(lambda a, b: np.array_equal(a, b), variables, permuted)
    assert not all(jax.tree.leaves(unmoved))


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_every_library_gives_the_same_groups(kind):
    found = set()
    for library in ("plain", "linen", "nnx", "equinox"):
        function, variables, inputs = ARCHITECTURES[f"{library}_{kind}"].make()
        groups = find_symmetries(function, variables, *inputs).groups.values()
        found.add(tuple(sorted((group.size, len(group.sites)) for group in groups)))
    assert len(found) == 1
