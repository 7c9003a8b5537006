"""Time-varying graphs: a period averages exactly, with few neighbours in each round; bad input."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dimat_jax import topology as T


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_one_peer_exponential_averages_exactly_in_a_period(n):
    graph = T.one_peer_exponential(n)
    product = np.eye(n)
    for matrix in graph.mixing_matrices:
        product = matrix @ product
    np.testing.assert_allclose(product, 1 / n, atol=1e-15)
    assert graph.period == math.log2(n)
    assert graph.spectral_gap == 1
    hops = [graph.neighbors(0, round) for round in range(graph.period)]
    assert hops == [[2**t] for t in range(graph.period)]
    assert graph.neighbors(0, graph.period) == graph.neighbors(0, 0)


@pytest.mark.parametrize("n", [3, 7, 12])
def test_base_k_averages_exactly_in_a_period(n):
    assert T.base_k(n, 1).spectral_gap == 1
    assert T.base_k(n, n - 1).period == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: T.base_k(1, 1), "'base_k' needs at least 2 agents"),
        (lambda: T.base_k(5, 0), "k is a number of neighbours, at least 1, not 0"),
        (lambda: T.one_peer_exponential(6), "needs 2, 4, 8, 16 ... agents, not 6"),
        (lambda: T.one_peer_exponential(0), "needs 2, 4, 8, 16 ... agents, not 0"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@hypothesis.given(st.integers(2, 20), st.floats(0.05, 1), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_random_peers_meet_in_pairs(n, p, seed):
    graph = T.random_peers(n, p, seed, period=7)
    assert graph.period == 7
    for matrix in graph.mixing_matrices:
        np.testing.assert_array_equal(matrix, matrix.T)
        met = (matrix != 0).sum(1)
        assert set(met) <= {1, 2} and (matrix[met == 2].max(1) == 0.5).all()
    T.check_doubly_stochastic(graph)


def test_agents_meet_a_random_peer_as_often_as_asked():
    graph = T.random_peers(16, 0.2, period=2000)
    meetings = [len(graph.neighbors(3, t)) for t in range(2000)]
    assert 0.15 < np.mean(meetings) < 0.2  # now and then one is left over
    assert [len(T.random_peers(16, 1.0).neighbors(i)) for i in range(16)] == [1] * 16


@pytest.mark.parametrize(
    "options", [{"p": 0.0}, {"p": 1.5}, {"period": 0}, {"period": 10**12}, {"n": 1}]
)
def test_random_peers_name_what_they_cannot_have(options):
    with pytest.raises(ValueError, match=r"0|1\.5|1"):
        T.random_peers(**{"n": 4} | options)


def test_random_matchings_pair_everyone():
    graph = T.random_matching(10, seed=1, period=50)
    for matrix in graph.mixing_matrices:
        np.testing.assert_array_equal(matrix @ matrix, matrix)  # averaging twice changes nothing
        assert ((matrix == 0.5).sum(1) == 2).all()
    T.check_connected(graph)
    assert all((m.max(1) == 1).sum() == 1 for m in T.random_matching(7).mixing_matrices)
    assert not np.array_equal(graph.mixing_matrices, T.random_matching(10, 2, 50).mixing_matrices)


@hypothesis.given(st.integers(2, 16), st.data(), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_epidemics_send_to_as_many_as_asked(n, data, seed):
    s = data.draw(st.integers(1, n - 1))
    graph = T.epidemic(n, s, seed=seed, period=5)
    T.check_doubly_stochastic(graph)
    for matrix in graph.mixing_matrices:
        assert set(np.unique(matrix)) <= {0, 1 / (1 + s)} and (matrix.diagonal() > 0).all()
    local = T.epidemic(n, s, balanced=0, seed=seed, period=5)
    for matrix in local.mixing_matrices:
        np.testing.assert_allclose(matrix.sum(1), 1)
        assert ((matrix != 0).sum(0) == 1 + s).all()  # each sends to s others


def test_epidemics_that_are_not_doubly_stochastic_are_refused_by_methods():
    with pytest.raises(ValueError, match="'epidemic' is not doubly stochastic in round 0: column"):
        T.check_doubly_stochastic(T.epidemic(8, 2, balanced=0))
    assert [len(T.epidemic(n).neighbors(0)) for n in (2, 3, 8, 9, 16)] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("options", [{"s": 0}, {"s": 4}, {"balanced": 2}, {"seed": -1}, {"n": 1}])
def test_epidemics_name_what_they_cannot_have(options):
    with pytest.raises(ValueError, match=r"[124]"):
        T.epidemic(**{"n": 4} | options)


def messages(graph, rounds):
    """How many are sent in so many rounds."""
    return sum(len(graph.neighbors(i, t)) for t in range(rounds) for i in range(graph.agents))


@pytest.mark.parametrize("shares", [(0.5, 0.25, 0.25), (0.1, 0.2, 0.7), (0.25, 0.5, 0.25)])
def test_a_schedule_spends_exactly_its_budget(shares):
    sparse, dense, peers = T.disconnected(8), T.ring(8), T.one_peer_exponential(8)
    graph = T.schedule(list(zip(shares, (sparse, dense, peers), strict=True)), rounds=20)
    assert graph.period == 20
    assert messages(graph, 20) == 8 * round(20 * shares[1]) * 2 + 8 * round(20 * shares[2])
    start = round(20 * (shares[0] + shares[1]))
    for t in range(start, 20):
        np.testing.assert_array_equal(graph.mixing_matrix(t), peers.mixing_matrix(t - start))
    T.check_doubly_stochastic(graph)


@pytest.mark.parametrize(
    ("parts", "rounds", "sentence"),
    [
        ([], 10, r"parts are \[\(share, topology\), ...\], not"),
        ([(0.5, T.ring(4))], 10, "must add up to 1, not to 0.5"),
        ([(1.5, T.ring(4)), (-0.5, T.ring(4))], 10, "share must be at most 1, not 1.5"),
        ([(0.5, T.ring(4)), (0.5, T.ring(5))], 10, "same number of agents, not 4, 5"),
        ([(0.99, T.ring(4)), (0.01, T.ring(4))], 10, "0.01 of 10 rounds is no round"),
        ([(1.0, "ring")], 10, "topology must be a Topology"),
        ([3], 10, "one is 3"),
        ([(1.0, T.ring(4))], 0, "rounds must be at least 1, not 0"),
    ],
)
def test_schedules_name_what_they_cannot_have(parts, rounds, sentence, untyped):
    with pytest.raises(ValueError, match=sentence):
        T.schedule(parts, rounds)


def test_a_stretched_graph_has_its_rounds_at_the_end_of_pauses():
    graph = T.one_peer_exponential(4)
    slow = T.stretched(graph, 3)
    assert slow.period == 6 and T.stretched(graph, 1) is graph
    for round in range(12):
        pause = (round + 1) % 3
        expected = np.eye(4) if pause else graph.mixing_matrix(round // 3)
        np.testing.assert_array_equal(slow.mixing_matrix(round), expected)
