"""Public architectures, as their packages have them: the groups that an expert expects, in each."""

from collections import Counter

import jax
import numpy as np
import pytest
from helpers.architectures_helpers import QUICK

import dimat_jax as dj
from dimat_jax.symmetries.groups import shape_of

pytestmark = pytest.mark.museum
pytest.importorskip("transformers", reason="the museum's packages: pip install -e '.[museum]'")

from zoo.museum import EXHIBITS  # noqa: E402


@pytest.mark.parametrize(
    "exhibit",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (i % 3 > 0), id=x.name)
        for i, x in enumerate(EXHIBITS)
    ],
)
def test_groups_are_those_an_expert_expects(exhibit):
    function, variables, inputs = exhibit.make()
    symmetries = dj.find_symmetries(function, variables, *inputs)
    found = Counter(shape_of(symmetries, name) for name in symmetries.groups)
    assert found == Counter(exhibit.groups)

    permutations = dj.random_permutations(jax.random.key(0), symmetries)
    permuted = dj.permute(symmetries, permutations, variables)
    output = jax.jit(function, compiler_options=QUICK)
    before, after = np.asarray(output(variables, *inputs)), output(permuted, *inputs)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())

    planted = dj.match_weights(symmetries, variables, permuted, jax.random.key(1))
    recovered = dj.permute(symmetries, planted, permuted)
    jax.tree.map(np.testing.assert_array_equal, recovered, variables)


def test_there_are_enough_of_them():
    assert len(EXHIBITS) >= 30 and len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
