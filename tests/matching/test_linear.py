"""Linear assignment: optimal by brute force; ties keep their order."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat_jax.matching.linear import assign_units, best_total


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_reaches_the_best_of_all_permutations(units, seed):
    scores = np.random.default_rng(seed).normal(size=(units, units))
    totals = [
        sum(scores[i, p[i]] for i in range(units)) for p in itertools.permutations(range(units))
    ]
    assigned = assign_units(scores)
    assert sorted(assigned) == list(range(units))
    np.testing.assert_allclose(scores[np.arange(units), assigned].sum(), max(totals), rtol=1e-12)
    np.testing.assert_allclose(best_total(scores), max(totals), rtol=1e-12)


def test_equal_scores_give_the_identity():
    for scores in (np.zeros((7, 7)), np.full((7, 7), -3.5)):
        np.testing.assert_array_equal(assign_units(scores), np.arange(7))


def test_dead_units_are_matched_in_order():
    """Targets 1, 4, 5 and sources 0, 2, 5 are dead; the others match exactly one each."""
    scores = np.zeros((6, 6))
    scores[[0, 2, 3], [3, 1, 4]] = [0.9, 0.1, 0.5]
    np.testing.assert_array_equal(assign_units(scores), [3, 0, 1, 4, 2, 5])


def test_leading_axes_are_separate_problems():
    scores = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    assigned = assign_units(scores)
    assert assigned.shape == (2, 3, 4) and assigned.dtype == np.int32
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(assigned[index], assign_units(scores[index]))
