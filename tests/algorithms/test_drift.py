"""The correction of drift over merges, in NumPy and on a merger of plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.numpy_merger import UNITS, Aligner, numpy_merger, round_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, with_drift_correction

AGENTS = 5
RING = round_of(topology.ring(AGENTS))
MATRIX = topology.ring(AGENTS).mixing_matrix()


def run(merge, x, train, rounds):
    """The agents after each merge; training is a function of where it begins."""
    merger, state, taken = numpy_merger(Aligner()), merge.init({"params": jnp.asarray(x)}), []
    for _ in range(rounds):
        merged = merge.apply(merger, {"params": jnp.asarray(train(x))}, state, RING)
        x, state = np.asarray(merged.variables["params"]), merged.state
        taken.append(x)
    return np.stack(taken)


def test_it_is_exact_diffusion_with_a_stretch_of_training_in_the_place_of_a_step(x64):
    rng = np.random.default_rng(0)
    x, minima = rng.normal(size=(2, AGENTS, UNITS))

    def train(x):
        return x - 0.3 * (x - minima)

    found = run(with_drift_correction(METHODS["wa"].merge), x, train, 3)
    started = ended = x
    for merged in found:
        psi = train(started)
        expected = MATRIX @ (psi + started - ended)
        np.testing.assert_allclose(merged, expected, atol=1e-12)
        started, ended = expected, psi


def test_agents_of_different_data_come_to_one_optimum_where_averaging_alone_stalls(x64):
    """Agent i pulls to its own minimum; the sum of all is least at their mean."""
    rng = np.random.default_rng(0)
    x, minima = rng.normal(size=(2, AGENTS, UNITS))

    def train(x):
        return x - 0.3 * (x - minima)

    optimum = np.tile(minima.mean(0), (AGENTS, 1))
    corrected = run(with_drift_correction(METHODS["wa"].merge), x, train, 400)[-1]
    np.testing.assert_allclose(corrected, optimum, atol=1e-8)
    assert np.abs(run(METHODS["wa"].merge, x, train, 400)[-1] - optimum).max() > 0.1


@pytest.mark.parametrize("name", ["dimat", "universe"])
def test_what_is_remembered_goes_with_units_that_are_moved(name, x64):
    """Agents that differ by their order alone stay so: nothing is left to correct."""
    network = np.random.default_rng(1).normal(size=UNITS)
    x = np.stack([np.random.default_rng(i).permutation(network) for i in range(AGENTS)])
    found = run(with_drift_correction(METHODS[name].merge), x, lambda x: 1.1 * x, 3)
    for round, merged in enumerate(found, 1):
        scaled = 1.1**round * np.sort(network)
        np.testing.assert_allclose(np.sort(merged), np.tile(scaled, (AGENTS, 1)), atol=1e-9)
