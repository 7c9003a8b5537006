"""Cycle-consistent alignment: planted truth, a monotone objective, consistent pairs."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from helpers.small_runs import assert_trees_close, assert_trees_equal, disorder, random_variables

import dimat_jax as dj
from dimat_jax.matching import match_universe, universe_objective
from dimat_jax.symmetries import Permutations

SHAPE = (4, 4, 1)
MODEL = dj.models.mlp(num_classes=3, width=0.03, depth=2)
SYMMETRIES = dj.find_symmetries(
    MODEL,
    random_variables(MODEL, SHAPE),
    jax.ShapeDtypeStruct((1, *SHAPE), np.float32),
)
KEY = jax.random.key(0)


def networks(number, seed, noise):
    """Permuted copies of one network, each plus noise, and the permutations that made them."""
    rng = np.random.default_rng(seed)
    one = random_variables(MODEL, SHAPE)
    planted = [disorder(SYMMETRIES, seed + k) for k in range(number)]
    copies = [
        dj.permute(
            SYMMETRIES,
            p,
            jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape).astype(x.dtype), one),
        )
        for p in planted
    ]
    return copies, planted


def into_universe(permutations, copies):
    return [dj.permute(SYMMETRIES, p, x) for p, x in zip(permutations, copies, strict=True)]


@hypothesis.given(st.integers(1, 5), st.integers(0, 2**16))
@hypothesis.settings(deadline=None, max_examples=5)
def test_permuted_copies_come_out_equal(number, seed):
    copies, _ = networks(number, seed, noise=0.0)
    aligned = into_universe(match_universe(SYMMETRIES, copies, KEY), copies)
    for network in aligned[1:]:
        assert_trees_equal(network, aligned[0])


def test_noise_is_all_that_is_left_and_pairs_are_the_planted_ones():
    copies, planted = networks(4, seed=1, noise=1e-3)
    found = match_universe(SYMMETRIES, copies, KEY)
    aligned = into_universe(found, copies)
    for network in aligned[1:]:
        assert_trees_close(network, aligned[0], tolerance=2e-2)
    for i, j in itertools.combinations(range(4), 2):
        pair = dj.compose(found[j], dj.invert(found[i]))  # P_ij = Q_i⁻¹ Q_j
        assert_trees_equal(dict(pair), dict(dj.compose(dj.invert(planted[j]), planted[i])))


def test_the_objective_never_decreases_from_sweep_to_sweep():
    gains = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        different = [
            jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), x)  # noqa: B023
            for x in [random_variables(MODEL, SHAPE)] * 4
        ]
        values = [
            float(
                universe_objective(
                    SYMMETRIES, match_universe(SYMMETRIES, different, KEY, sweeps), different
                )
            )
            for sweeps in range(5)
        ]
        assert values[1] > values[0], "of the identity"
        assert (np.diff(values) >= -1e-4).all(), values
        gains.append(values[4] - values[1])
    assert max(gains) > 1, "further sweeps find more"


def test_the_same_key_gives_the_same_universe():
    copies, _ = networks(3, seed=2, noise=1.0)
    assert_trees_equal(*(dict(match_universe(SYMMETRIES, copies, KEY)[1]) for _ in range(2)))


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        match_universe(SYMMETRIES, [], KEY)
    with pytest.raises(ValueError, match="at least one"):
        universe_objective(SYMMETRIES, [], [])


def test_permutations_of_fewer_networks_are_refused():
    copies, _ = networks(2, seed=2, noise=1.0)
    with pytest.raises(ValueError, match="for each network, not 1 for 2"):
        universe_objective(SYMMETRIES, [Permutations({})], copies)
