"""Every method against an independent reference, on quadratics with a known optimum."""

import helpers.algorithm_references as references
import numpy as np
import pytest
from helpers.algorithm_references import Step
from helpers.algorithm_table import GOSSIP, GOSSIPING, GRAPHS, MERGES, MERGING
from helpers.quadratics import SIZE, Run, models, run_of, steps_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS
from dimat_jax.algorithms.cross_gradient import cross_gradient_aggregation
from dimat_jax.algorithms.gossip import mix_then_step, step_then_mix
from dimat_jax.algorithms.momentum import with_momentum
from dimat_jax.algorithms.quasi_global import quasi_global_momentum


def test_every_method_has_a_row_for_what_it_does():
    assert set(GOSSIP) == set(GOSSIPING) and set(MERGING) == set(MERGES)
    alone = [name for name, method in METHODS.items() if not method.parts()]
    several = ["dimat_once", "dimat_plus", "sparse_final_wa", "sparse_final_dimat"]
    assert {*GOSSIP, *MERGING, *alone, *several} == set(METHODS) and alone == ["local_only"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name):
    method = METHODS[name]
    assert method.label and method.update and method.source
    assert method.rate_of is None or METHODS[method.rate_of].rate_of is None
    assert [other.label for other in METHODS.values()].count(method.label) == 1


@pytest.mark.parametrize("name", GOSSIP | MERGING)
def test_a_message_holds_what_the_method_needs(name):
    assert (GOSSIPING | MERGES)[name].message == (GOSSIP | MERGING)[name].message


RATES = [0.1, 0.08, 0.2, 0.05, 0.1]
CASES = [(name, graph) for name, row in GOSSIP.items() for graph in row.graphs]


@pytest.mark.parametrize(("name", "graph"), CASES)
def test_the_first_steps_are_the_papers(name, graph, x64):
    run = run_of(GRAPHS[graph], RATES, noise=0.3)
    row = GOSSIP[name]
    expected = np.stack(list(row.reference(run.start, steps_of(run, row.matrix))))
    np.testing.assert_allclose(models(GOSSIPING[name], run), expected, rtol=0, atol=1e-10)


VARIANTS = {
    "DSGDm": (
        with_momentum(step_then_mix(), 0.8, nesterov=False),
        references.momentum_then_mix,
        dict(momentum=0.8, nesterov=False),
    ),
    "CDMSGD": (mix_then_step(0.5), references.mix_then_step, dict(momentum=0.5)),
    "QG-DSGDm": (
        quasi_global_momentum(0.8, nesterov=False, decay=0.6),
        references.quasi_global,
        dict(momentum=0.8, nesterov=False, decay=0.6),
    ),
    "CGA": (cross_gradient_aggregation(0.5), references.cross_gradient, dict(momentum=0.5)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_arguments_mean_what_they_mean_in_the_papers(variant, x64):
    gossip, reference, arguments = VARIANTS[variant]
    run = run_of(GRAPHS["ring"], RATES, noise=0.3)
    expected = np.stack(list(reference(run.start, steps_of(run), **arguments)))
    np.testing.assert_allclose(models(gossip, run), expected, rtol=0, atol=1e-10)


def stalling_point(run: Run, steps_then_mixes: bool, rate: float) -> np.ndarray:
    """The x with ``x = Π x − α K A (x − b)``, K = Π or I, of a linear system in all agents' x."""
    agents = run.topology.agents
    mixing = np.kron(run.topology.mixing_matrix(), np.eye(SIZE))
    hessian = np.zeros((agents * SIZE, agents * SIZE))
    for i in range(agents):
        own = slice(i * SIZE, (i + 1) * SIZE)
        hessian[own, own] = run.problem.hessians[i]
    step = rate * (mixing @ hessian if steps_then_mixes else hessian)
    point = np.linalg.solve(np.eye(len(step)) - mixing + step, step @ run.problem.minima.ravel())
    return point.reshape(agents, SIZE)


@pytest.mark.parametrize("name", [name for name, row in GOSSIP.items() if row.rate_factor])
def test_at_a_constant_rate_a_biased_method_stalls_where_linear_algebra_says(name, x64):
    run = run_of(GRAPHS["ring"], np.full(2000, 0.05))
    row = GOSSIP[name]
    expected = stalling_point(run, row.steps_then_mixes, row.rate_factor * run.rates[0])
    assert np.abs(expected - run.problem.optimum).max() > 0.05
    np.testing.assert_allclose(models(GOSSIPING[name], run)[-1], expected, atol=1e-8)


@pytest.mark.parametrize(("name", "graph"), [case for case in CASES if GOSSIP[case[0]].exact])
def test_an_exact_method_reaches_the_optimum_at_a_constant_rate(name, graph, x64):
    run = run_of(GRAPHS[graph], np.full(2000, 0.05))
    expected = np.tile(run.problem.optimum, (run.topology.agents, 1))
    np.testing.assert_allclose(models(GOSSIPING[name], run)[-1], expected, atol=1e-8)


def centralized_models(name: str, run: Run) -> np.ndarray:
    """What the method is for one agent that has all data: ``[steps, SIZE]``."""

    def mean_gradient(noise):
        gradient = run.problem.gradient(noise)
        return lambda _, x: np.mean([gradient(i, x) for i in range(len(noise))], axis=0)

    steps = [
        Step(np.eye(1), mean_gradient(noise), rate)
        for noise, rate in zip(run.noise, run.rates, strict=True)
    ]
    return np.stack(list(GOSSIP[name].centralized(run.start[:1], steps)))[:, 0]


ONE_MODEL = [name for name, row in GOSSIP.items() if row.centralized and row.steps_then_mixes]
ONE_MEAN = [name for name, row in GOSSIP.items() if row.centralized and not row.steps_then_mixes]


@pytest.mark.parametrize("name", ONE_MODEL)
def test_stepping_then_mixing_with_everyone_is_centralized_training(name, x64):
    run = run_of(GRAPHS["fully connected"], RATES, noise=0.3, same_start=True)
    taken, expected = models(GOSSIPING[name], run), centralized_models(name, run)
    np.testing.assert_allclose(taken, np.tile(expected[:, None], (1, 4, 1)), atol=1e-10)


@pytest.mark.parametrize("name", ONE_MEAN)
def test_mixing_then_stepping_is_centralized_training_in_the_mean_of_one_hessian(name, x64):
    run = run_of(GRAPHS["fully connected"], RATES, noise=0.3, same_start=True, same_hessian=True)
    taken, expected = models(GOSSIPING[name], run), centralized_models(name, run)
    np.testing.assert_allclose(taken.mean(1), expected, atol=1e-10)
    assert np.ptp(taken, axis=1).max() > 0.01, "each agent has one step of its own ahead"


def test_cross_gradients_that_agree_are_centralized_training_in_the_mean(x64):
    run = run_of(GRAPHS["fully connected"], [0.1] * 5, same_start=True, same_hessian=True)
    # Far from all minima, which are near to each other, every agent's gradient helps the others.
    run = run._replace(problem=run.problem._replace(minima=0.01 * run.problem.minima))
    taken, expected = models(GOSSIPING["cga"], run), centralized_models("cdmsgd", run)
    np.testing.assert_allclose(taken.mean(1), expected, atol=1e-10)
    assert np.ptp(taken, axis=1).max() > 1e-4, "each agent has one step of its own ahead"


@pytest.mark.parametrize("name", GOSSIPING)
def test_at_learning_rate_0_agents_that_agree_stay(name, x64):
    run = run_of(GRAPHS["star"], np.zeros(len(RATES)), same_start=True)
    taken = models(GOSSIPING[name], run)
    np.testing.assert_allclose(taken, np.tile(run.start, (len(RATES), 1, 1)), atol=1e-12)


ON_OTHERS = ("centralized", "relay_sgd")
WEIGHED = [name for name in GOSSIPING if name.removesuffix("_nesterov") not in ON_OTHERS]


@pytest.mark.parametrize("name", WEIGHED)
def test_a_method_names_what_makes_a_graph_unfit(name):
    rows_only = topology.from_matrix([[0.5, 0.5], [0.2, 0.8]], name="mine")
    with pytest.raises(ValueError, match=r"'mine'.* column 0 sums to 0\.7"):
        GOSSIPING[name].graph(rows_only)
