"""CGA's quadratic program, seen through a step: against SciPy, and by its optimality conditions."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.algorithm_references import nearest_without_conflict
from helpers.quadratics import SIZE, flat_of, tree_of

from dimat_jax import topology
from dimat_jax.algorithms import METHODS, exchanges

CGA = METHODS["cga"].gossip
AGENTS = 9  # more neighbours than dimensions
GRAPHS = {"everyone": topology.fully_connected(AGENTS), "star": topology.star(AGENTS)}
KINDS = ("random", "zero", "the agent's own", "against it", "another's", "almost another's", "tiny")


def draw_gradients(kinds: list[str], seed: int) -> np.ndarray:
    """Gradients ``[of agent, at agent's model, SIZE]``; at agent 0's, its neighbours' of kinds."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(AGENTS, AGENTS, SIZE))
    own = gradients[0, 0]
    for j, kind in enumerate(kinds, start=1):
        random, before = gradients[j, 0], gradients[j - 1, 0]
        gradients[j, 0] = {
            "random": random,
            "zero": 0 * random,
            "the agent's own": own,
            "against it": -3 * own,
            "another's": before,
            "almost another's": before + 1e-3 * random,
            "tiny": 1e-4 * random,
        }[kind]
    return gradients


@functools.partial(jax.jit, static_argnums=0)
def projected(gossip, gradients, scale, exchange):
    """g̃ of every agent, ``[agents, SIZE]``: what the first step at rate 1 leaves besides mixing.

    Agent i's model is ``i * scale``, of the gradients' size, so that little is lost in the sum.
    """
    models = scale * jnp.tile(jnp.arange(AGENTS, dtype=gradients.dtype)[:, None], (1, SIZE))
    params, state = gossip.init(tree_of(models), exchange)

    def gradient(point):
        place = jnp.round(flat_of(point)[:, 0] / scale).astype(int)  # whose model it is
        return tree_of(gradients[jnp.arange(AGENTS), place])

    points = params, *gossip.points(params, state, exchange)
    taken = tuple(gradient(point) for point in points)
    params, _ = gossip.update(params, taken, state, exchange, jnp.ones((), gradients.dtype))
    return exchange.matrix @ models - flat_of(params)


def check(graph: topology.Topology, gradients: np.ndarray, tolerance: float) -> None:
    """Every agent's g̃ is SciPy's, and allowed."""
    exchange = jax.tree.map(lambda x: x[0], exchanges(graph))
    found = np.asarray(projected(CGA, jnp.asarray(gradients), 1.0, exchange))
    for i in range(AGENTS):
        others = gradients[graph.neighbors(i), i]
        expected = nearest_without_conflict(gradients[i, i], others)
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=tolerance)
        assert (others @ found[i]).min() >= -tolerance * np.abs(others).max()


@pytest.mark.parametrize("graph", GRAPHS)
@hypothesis.given(
    st.lists(st.sampled_from(KINDS), min_size=AGENTS - 1, max_size=AGENTS - 1),
    st.integers(0, 2**32 - 1),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_the_program_is_solved_as_scipy_does(graph, kinds, seed):
    with jax.enable_x64(True):
        check(GRAPHS[graph], draw_gradients(kinds, seed), 1e-7)


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([1e-4, 1.0, 1e4]))
@hypothesis.settings(deadline=None, max_examples=20)
def test_single_precision_is_enough_at_any_scale(seed, scale):
    graph = topology.bipartite(AGENTS)  # fewer neighbours than dimensions, as in any network
    gradients = draw_gradients(["random"] * (AGENTS - 1), seed)
    with jax.enable_x64(False):
        exchange = jax.tree.map(lambda x: x[0], exchanges(graph))
        scaled = jnp.asarray(scale * gradients, jnp.float32)
        found = projected(CGA, scaled, scale, exchange)
    expected = nearest_without_conflict(gradients[0, 0], gradients[graph.neighbors(0), 0])
    # Through inner products ‖g̃‖² has single precision, so g̃ its square root: 3e-4.
    np.testing.assert_allclose(found[0] / scale, expected, rtol=0, atol=3e-3)


def test_the_reference_is_optimal():
    """Another solver of SciPy's, on the program as it stands in the paper."""
    from scipy.optimize import minimize

    gradients = draw_gradients(["random", "against it", *["random"] * 6], seed=3)
    g, others = gradients[0, 0], gradients[1:4, 0]
    solved = minimize(
        lambda z: np.sum((z - g) ** 2) / 2,
        np.zeros(SIZE),
        jac=lambda z: z - g,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: others @ z, "jac": lambda z: others},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(nearest_without_conflict(g, others), solved.x, atol=1e-6)


def test_it_needs_neighbours_that_hear_from_each_other():
    with pytest.raises(ValueError, match=r"agents? 0 .*1|\(0, 1\)"):
        CGA.graph(topology.one_peer_exponential(4))
