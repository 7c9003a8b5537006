"""The merge's operator: against dense algebra and closed forms, and what alignments do to it."""

import hypothesis
import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest

import dimat_jax as dj
from dimat_jax import spectral
from dimat_jax import topology as T
from dimat_jax.topology import neighbor_slots
from dimat_jax.topology.deterministic import circulant


def one_way(n):
    """The directed static exponential graph."""
    hops = sorted({2**k % n for k in range((n - 1).bit_length())} | {0})
    return T.from_matrix(circulant(n, hops), "one_way")


GRAPHS = st.sampled_from([T.ring, T.fully_connected, T.exponential, T.star, one_way])
CHECKS = hypothesis.settings(deadline=None, max_examples=25)


def operator_of(graph, units, moves=None):
    """The operator of a graph's first round; moves ``(i, j) -> permutation``, else none."""
    sources, weights = neighbor_slots(graph)
    own = np.arange(units)
    rows = [
        [own if slot == 0 or moves is None else moves(i, int(j)) for slot, j in enumerate(of_agent)]
        for i, of_agent in enumerate(sources)
    ]
    return spectral.MergeOperator(sources, weights, np.array(rows))


def consistent(n, units, seed):
    """P_ij = Q_i⁻¹ Q_j of random frames Q."""
    rng = np.random.default_rng(seed)
    frames = [rng.permutation(units) for _ in range(n)]
    return lambda i, j: frames[j][np.argsort(frames[i])]


def random_pairs(units, seed):
    """A permutation of its own for each pair, in each direction."""
    return lambda i, j: np.random.default_rng([seed, i, j]).permutation(units)


def deviation(matrix):
    """What Π does to disagreement: its singular values and eigenvalue moduli beside J's."""
    rest = matrix - 1 / len(matrix)
    return np.linalg.norm(rest, 2), np.abs(np.linalg.eigvals(rest)).max()


@pytest.mark.parametrize(
    ("graph", "gap"),
    [
        (T.ring(5), 0.461),
        (T.ring(10), 0.127),
        (T.ring(16), 0.051),
        (T.ring(20), 0.033),
        (T.ring(64), 0.003),
        (one_way(8), 0.500),
        (one_way(64), 0.286),
        (T.exponential(16), 0.400),
        (T.torus(4, 4), 0.400),
        (T.torus(8, 8), 0.117),
        (T.fully_connected(6), 1.0),
        (T.disconnected(4), 1.0),  # every agent by itself: nothing is outside the fixed space
    ],
    ids=lambda x: f"{x.name}-{x.agents}" if isinstance(x, dj.Topology) else "",
)
def test_gaps_in_closed_form(graph, gap):
    found = spectral.spectrum(operator_of(graph, 1))
    assert found.gap == pytest.approx(gap, abs=6e-4)
    if graph.name != "disconnected":
        assert found.gap == pytest.approx(graph.spectral_gap, abs=1e-6)


@CHECKS
@hypothesis.given(GRAPHS, st.integers(2, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_consistent_alignments_leave_the_spectrum_as_it_is(make, n, units, seed):
    graph = make(n)
    operator = operator_of(graph, units, consistent(n, units, seed))
    ours = np.linalg.svd(spectral.matrix_of(operator).toarray(), compute_uv=False)
    of_graph = np.linalg.svd(graph.mixing_matrix(), compute_uv=False)
    np.testing.assert_allclose(ours, np.sort(np.repeat(of_graph, units))[::-1], atol=1e-10)
    found = spectral.spectrum(operator)
    assert found.fixed_dimension == units
    np.testing.assert_allclose(found[1:], deviation(graph.mixing_matrix()), atol=1e-6)
    assert spectral.cycle_inconsistency(operator)[:2] == (0, 0)
    assert spectral.stochasticity_error(operator) < 1e-12
    plain = spectral.effective_neighbors(operator_of(graph, 1))
    assert spectral.effective_neighbors(operator) == pytest.approx(plain, rel=1e-9)


@CHECKS
@hypothesis.given(GRAPHS, st.integers(2, 7), st.integers(1, 6), st.integers(0, 10**6))
def test_any_alignments_are_as_dense_algebra_has_them(make, n, units, seed):
    operator = operator_of(make(n), units, random_pairs(units, seed))
    matrix = spectral.matrix_of(operator).toarray()
    x = np.random.default_rng(seed).standard_normal((n, units))
    expected = [
        sum(w * x[j][p] for j, w, p in zip(*of_agent, strict=True))
        for of_agent in zip(*operator, strict=True)
    ]
    linear = spectral.linear_map(operator)
    np.testing.assert_allclose(linear.matvec(x.ravel()), np.ravel(expected), atol=1e-12)
    np.testing.assert_allclose(matrix @ x.ravel(), np.ravel(expected), atol=1e-12)
    np.testing.assert_allclose(linear.rmatvec(x.ravel()), matrix.T @ x.ravel(), atol=1e-12)

    values, vectors = np.linalg.eig(matrix)
    found = spectral.spectrum(operator)
    assert found.fixed_dimension == n * units - np.linalg.matrix_rank(matrix - np.eye(len(matrix)))
    # The eigenvalue 1 as often as the fixed space has dimensions, the largest of the rest next.
    moduli = np.sort(np.abs(values))[::-1]
    rest = moduli[found.fixed_dimension] if found.fixed_dimension < len(moduli) else 0.0
    assert found.eigenvalue == pytest.approx(rest, abs=1e-6)
    labels = spectral.fixed_space(operator).ravel()
    projection = (labels[:, None] == labels) / np.bincount(labels)[labels]
    np.testing.assert_allclose(matrix @ projection, projection, atol=1e-12)
    assert found.singular_value == pytest.approx(np.linalg.norm(matrix - projection, 2), abs=1e-6)
    assert found.eigenvalue <= found.singular_value + 1e-6


@pytest.mark.parametrize("moves", [consistent(8, 40, 1), random_pairs(40, 1), None])
@pytest.mark.parametrize("make", [T.ring, T.exponential, T.fully_connected])
def test_large_operators_are_as_small_ones(make, moves, monkeypatch):
    operator = operator_of(make(8), 40, moves)
    monkeypatch.setattr("dimat_jax.spectral.measures.DENSE", 1024)
    dense = spectral.spectrum(operator)
    # Random pairs make one component of nearly everything, consistent ones many of 8.
    monkeypatch.setattr("dimat_jax.spectral.measures.DENSE", 64)
    sparse = spectral.spectrum(operator)
    assert sparse.fixed_dimension == dense.fixed_dimension
    np.testing.assert_allclose(sparse[1:], dense[1:], atol=1e-4)


def test_random_pairs_on_a_ring_agree_on_less():
    # A ring of 5 with 6 units: 6 dimensions when consistent, one for each cycle of what going
    # around moves when not.
    moves = random_pairs(6, 3)
    ring = {(i, (i + 1) % 5): moves(i, (i + 1) % 5) for i in range(5)}
    both_ways = {**ring, **{(j, i): np.argsort(p) for (i, j), p in ring.items()}}
    operator = operator_of(T.ring(5), 6, lambda i, j: both_ways[i, j])
    around = np.arange(6)
    for i in range(5):
        around = ring[i, (i + 1) % 5][around]
    orbits = {frozenset(orbit(around, start)) for start in range(6)}
    found = spectral.spectrum(operator)
    assert found.fixed_dimension == len(orbits) < 6
    assert found.singular_value > deviation(T.ring(5).mixing_matrix())[0]
    inconsistency = spectral.cycle_inconsistency(operator)
    assert inconsistency.number == 1 and inconsistency.there_and_back == 0
    assert inconsistency.cycles == np.mean(around != np.arange(6))


def orbit(permutation, start):
    """Where a unit comes to."""
    seen = [start]
    while (after := int(permutation[seen[-1]])) != start:
        seen.append(after)
    return seen


@pytest.mark.parametrize("swapped", [2, 3])
def test_a_planted_cycle_shrinks_what_agents_agree_on(swapped):
    # One edge of an otherwise consistent ring turns some units around: they become one.
    turned = np.r_[np.roll(np.arange(swapped), 1), np.arange(swapped, 8)]

    def moves(i, j):
        return {(0, 1): turned, (1, 0): np.argsort(turned)}.get((i, j), np.arange(8))

    operator = operator_of(T.ring(6), 8, moves)
    assert spectral.spectrum(operator).fixed_dimension == 8 - swapped + 1
    assert spectral.cycle_inconsistency(operator).cycles == swapped / 8
    # On a path nothing is inconsistent: there is no cycle.
    path = operator_of(T.from_graph(nx.path_graph(6)), 8, moves)
    assert spectral.spectrum(path).fixed_dimension == 8
    assert spectral.cycle_inconsistency(path) == (0, 0, 0)


@pytest.mark.parametrize("n", [4, 9])
def test_effective_neighbors_are_the_papers(n):
    # For a symmetric Π: 1/(1−γ) / (1/n Σ λ²/(1 − λ²γ)), arXiv 2206.03093.
    for graph in (T.ring(n), T.fully_connected(n), T.disconnected(n), T.star(n)):
        values = np.linalg.eigvalsh(graph.mixing_matrix())
        for decay in (0.0, 0.5, 0.9, 0.99):
            expected = 1 / (1 - decay) / np.mean(values**2 / (1 - values**2 * decay))
            found = spectral.effective_neighbors(operator_of(graph, 2), decay)
            assert found == pytest.approx(expected, rel=1e-4)
    assert spectral.effective_neighbors(operator_of(T.disconnected(n), 3)) == pytest.approx(1)
    assert spectral.effective_neighbors(operator_of(T.fully_connected(n), 3)) == pytest.approx(n)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan"), None])
def test_a_decay_out_of_range_is_named(wrong, untyped):
    with pytest.raises(ValueError, match="decay must be"):
        spectral.effective_neighbors(operator_of(T.ring(4), 1), wrong)


def test_what_is_not_doubly_stochastic_is_refused():
    graph = T.epidemic(6, 2, balanced=0)
    with pytest.raises(ValueError, match="not doubly stochastic: a row or column sums to 1 ±"):
        spectral.spectrum(operator_of(graph, 2))
    twice = operator_of(T.ring(4), 3, lambda i, j: np.array([0, 0, 1]))
    assert spectral.stochasticity_error(twice) > 0.3
    with pytest.raises(ValueError, match="and permutations"):
        spectral.fixed_space(twice)
