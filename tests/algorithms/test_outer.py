"""An outer optimizer over merges, in NumPy and on a merger of plain NumPy."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.numpy_merger import STATISTICS, UNITS, Aligner, numpy_merger, order_of, round_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, with_outer_optimizer

AGENTS, ROUNDS = 4, 3
WA, UNIVERSE = METHODS["wa"].merge, METHODS["universe"].merge
MATRIX = topology.ring(AGENTS).mixing_matrix()
RING = round_of(topology.ring(AGENTS))
NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)


def drifts(seed=1):
    """What training changes in each round, ``[rounds, agents, units]``: small beside the units."""
    return 0.01 * np.random.default_rng(seed).normal(size=(ROUNDS, AGENTS, UNITS))


def start(seed=0):
    return np.random.default_rng(seed).normal(size=(AGENTS, UNITS))


def run(merge, x, drift):
    """The agents after each round of training (a drift) and merging, and the last `Merged`."""
    merger, states, taken = numpy_merger(Aligner()), merge.init({"params": jnp.asarray(x)}), []
    for change in drift:
        merged = merge.apply(merger, {"params": jnp.asarray(x + change)}, states, RING)
        x, states = np.asarray(merged.variables["params"]), merged.state
        taken.append(x)
    return np.stack(taken), merged


def nesterov(average, x, drift, rate=0.7, beta=0.9):
    """DiLoCo's outer steps, in NumPy: m ← β m + Δ; x ← x' − α (Δ + β m), Δ = x' − merge(x)."""
    momentum = np.zeros_like(x)
    for change in drift:
        gradient = x - average(x + change)
        momentum = beta * momentum + gradient
        x = x - rate * (gradient + beta * momentum)
        yield x


def test_sgd_at_rate_1_is_the_merge_itself(x64):
    for merge in (WA, METHODS["dimat"].merge):
        plain, _ = run(merge, start(), drifts())
        outer, merged = run(with_outer_optimizer(merge, optax.sgd(1.0)), start(), drifts())
        np.testing.assert_allclose(outer, plain, rtol=0, atol=1e-12)
        assert merged.variables["recomputed"] is STATISTICS


def test_nesterov_momentum_is_that_of_numpy(x64):
    expected = np.stack(list(nesterov(functools.partial(np.matmul, MATRIX), start(), drifts())))
    found, merged = run(with_outer_optimizer(WA, NESTEROV), start(), drifts())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(merged.state.params, found[-1], rtol=0, atol=0)
    assert merged.variables["recomputed"] is STATISTICS


def test_what_it_remembers_goes_with_the_units_into_another_frame(x64):
    """In the frame of a universe, all units in their order, it is the merge without alignment."""
    x = start()
    sorts = np.stack([order_of(np.arange(UNITS), row) for row in x])

    def into_universe(array):
        return np.take_along_axis(array, sorts, 1)

    drift = drifts()
    in_universe = np.concatenate([into_universe(drift[0])[None], drift[1:]])
    expected = list(nesterov(functools.partial(np.matmul, MATRIX), into_universe(x), in_universe))
    found, merged = run(with_outer_optimizer(UNIVERSE, NESTEROV), x, drift)
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-12)
    assert merged.moved


@pytest.mark.parametrize("merge", [WA, UNIVERSE])
def test_graph_and_message_are_the_merges_own(merge):
    outer = with_outer_optimizer(merge, NESTEROV)
    assert (outer.graph, outer.message) == (merge.graph, merge.message)


def test_what_it_remembers_is_the_start_and_an_optimizer_at_rest():
    x = jnp.asarray(start(), jnp.float32)
    state = with_outer_optimizer(WA, NESTEROV).init({"params": x})
    np.testing.assert_array_equal(state.params, x)
    assert state.params is not x  # which training overwrites
    np.testing.assert_array_equal(optax.tree.get(state.optimizer, "trace"), 0 * x)
