"""What a schedule of faults says: shares stay shares, whatever cannot be used."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dimat_jax as dj
from dimat_jax.algorithms import exchange_of
from dimat_jax.algorithms.stepping import left_out
from dimat_jax.simulation import faults, network
from dimat_jax.simulation.faults import check_schedule
from dimat_jax.topology import neighbor_slots

GRAPHS = {
    "ring": dj.topology.ring,
    "fully_connected": dj.topology.fully_connected,
    "exponential": dj.topology.exponential,
    "one_peer": dj.topology.one_peer_exponential,
    "star": dj.topology.star,
}


@st.composite
def networks(draw):
    """A graph, one of its rounds, and what reaches whom."""
    name = draw(st.sampled_from(list(GRAPHS)))
    n = draw(st.sampled_from([2, 4, 8]) if name == "one_peer" else st.integers(2, 9))
    graph = GRAPHS[name](n)
    seed, share = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    round = draw(st.integers(0, graph.period - 1))
    return graph, round, np.random.default_rng(seed).random((n, n)) < share


@given(networks())
@settings(max_examples=200, deadline=None)
def test_shares_stay_stochastic_over_what_can_be_used(case):
    graph, round, usable = case
    matrix = graph.mixing_matrix(round)
    found = faults.matrix_without(matrix, usable)
    np.testing.assert_allclose(found.sum(1), matrix.sum(1), atol=1e-12)
    assert (found >= 0).all()
    # Nobody takes from whom it cannot use, but from itself where there is nobody else.
    taken = found > 0
    np.fill_diagonal(taken, False)
    assert not (taken & ~usable).any()
    own = np.diag(usable)
    alone = ~(usable & (matrix > 0)).any(1)
    assert (np.diag(found)[~own & ~alone] == 0).all()
    np.testing.assert_allclose(np.diag(found)[alone], matrix.sum(1)[alone])
    # Of neighbours that can be used the shares are as before, where one's own can take the rest.
    same = own[:, None] & usable & ~np.eye(len(matrix), dtype=bool)
    np.testing.assert_allclose(found[same], matrix[same])


@given(networks())
def test_what_fails_both_ways_leaves_a_symmetric_matrix_doubly_stochastic(case):
    """And so the mean of the parameters where it was."""
    graph, round, usable = case
    matrix = graph.mixing_matrix(round)
    np.fill_diagonal(usable, True)
    found = faults.matrix_without((matrix + matrix.T) / 2, usable & usable.T)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-12)


@given(networks())
def test_slots_say_the_same_as_the_matrix(case):
    graph, round, usable = case
    sources, shares = neighbor_slots(graph, round)
    rows = np.arange(len(sources))[:, None]
    used, kept = faults.without(shares, sources, usable[rows, sources])
    found = np.zeros_like(usable, dtype=float)
    np.add.at(found, (np.broadcast_to(rows, used.shape), used), kept)
    np.testing.assert_allclose(found, faults.matrix_without(graph.mixing_matrix(round), usable))


@settings(deadline=None)  # The first of a size compiles.
@given(networks(), st.integers(0, 10**6))
def test_who_is_not_finite_is_left_out_on_the_devices_as_on_the_host(case, seed):
    graph, round, _ = case
    fine = np.random.default_rng(seed).random(graph.agents) < 0.6
    exchange = exchange_of(graph, round)
    found = left_out(exchange, jnp.asarray(fine))
    usable = np.broadcast_to(fine, (graph.agents, graph.agents))
    expected = faults.matrix_without(graph.mixing_matrix(round), usable)
    helped = fine | (expected[:, fine].sum(1) > 0)
    np.testing.assert_allclose(found.matrix[helped], expected[helped], atol=1e-6)
    rows = np.arange(graph.agents)[:, None]
    assert (fine[found.sources] | (np.asarray(found.sources) == rows)).all()
    assert not np.asarray(found.slot_mask)[~fine[np.asarray(exchange.sources)]].any()
    degraded = network.degraded(exchange, usable & usable.T)
    np.testing.assert_array_equal(degraded.reverse_slots, found.reverse_slots)


def test_what_is_drawn_depends_on_the_exchange_alone():
    schedule = faults.Schedule(dj.Faults(message_loss=0.5, stale=0.5))
    first = faults.arriving(schedule, 50, seed=1, round=3)
    np.testing.assert_array_equal(first, faults.arriving(schedule, 50, seed=1, round=3))
    for other in ((1, 4, 0), (2, 3, 0), (1, 3, 1)):
        assert (first != faults.arriving(schedule, 50, *other)).any()
    assert 0.45 < first[~np.eye(50, dtype=bool)].mean() < 0.55 and np.diag(first).all()
    stale = faults.stale_messages(schedule, 50, 1, 3)
    assert 0.45 < stale.mean() < 0.55 and not np.diag(stale).any()
    assert abs(np.corrcoef(stale.ravel(), first.ravel())[0, 1]) < 0.1


def test_losses_by_edge_and_for_certain():
    schedule = faults.Schedule(dj.Faults(message_loss={(0, 1): 1.0}, lost=((2, 1, 0),)))
    first, second = (faults.arriving(schedule, 3, 0, round) for round in (1, 2))
    assert not first[0, 1] and first.sum() == 8
    assert not second[0, 1] and not second[1, 0] and second.sum() == 7


def test_who_is_there():
    schedule = faults.Schedule(
        dj.Faults(down=((0, 2, 3),)),
        dj.Events(joins=((3, 1, "fresh"), (6, 2, "copy")), leaves=((4, 2), (5, 1))),
    )
    seen = np.array([faults.there(schedule, 4, round) for round in range(1, 8)])
    np.testing.assert_array_equal(seen[:, 0], [1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(seen[:, 1], [0, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(seen[:, 2], [1, 1, 1, 0, 0, 1, 1])
    assert seen[:, 3].all()


def unchecked(kind, **fields):
    """One whose fields are not checked by their annotations, as they are not outside the tests."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, fields.get(field.name, field.default))
    return made


WRONG = [
    (dict(faults=3), "faults must be a dj.Faults, not 3"),
    (dict(events=dj.Faults()), "events must be a dj.Events"),
    (
        dict(faults=unchecked(dj.Faults, message_loss=1.5)),
        "message_loss must be at most 1, not 1.5",
    ),
    (
        dict(faults=unchecked(dj.Faults, message_loss={(0, 9): 0.1})),
        "an agent of message_loss must be",
    ),
    (dict(faults=unchecked(dj.Faults, stale=-1)), "stale must be at least 0"),
    (dict(faults=unchecked(dj.Faults, stale=float("nan"))), "stale must be a finite number"),
    (
        dict(faults=unchecked(dj.Faults, lost=(1, 2))),
        "lost must be a tuple of .*, not of 1",
    ),
    (
        dict(faults=unchecked(dj.Faults, lost="12")),
        "lost must be a tuple of .round, agent, agent., not",
    ),
    (
        dict(faults=unchecked(dj.Faults, down=((9, 1, 2),))),
        "an agent of down must be at most 3, not 9",
    ),
    (
        dict(faults=unchecked(dj.Faults, down=((1, 0, 2),))),
        "the round of down must be at least 1, not 0",
    ),
    (
        dict(faults=unchecked(dj.Faults, corrupt=((1, 0, "zero"),))),
        "Unknown corrupt of agent 0 'zero'",
    ),
    (
        dict(faults=unchecked(dj.Faults, corrupt=((1.5, 0, "nan"),))),
        "the round of corrupt must be a whole",
    ),
    (dict(events=unchecked(dj.Events, joins=((1, 0, "new"),))), "Unknown joins of agent 0 'new'"),
    (
        dict(events=unchecked(dj.Events, leaves=((1,),))),
        "leaves must be a tuple of .round, agent., not of .1",
    ),
]


@pytest.mark.parametrize("given, said", WRONG)
def test_a_schedule_that_cannot_be_is_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=said) as error:
        check_schedule(faults.Schedule(**{"faults": dj.Faults(), **given}), 4)
    assert "\n" not in str(error.value)


def test_a_fault_is_said_once():
    config = dj.Config(agents=4, dataset="digits", model="mlp", message_loss=0.1)
    with pytest.raises(ValueError, match="faults has message_loss: leave message_loss at 0"):
        dj.make_session(config, faults=dj.Faults(message_loss=0.2))
    session = dj.make_session(config, faults=dj.Faults(stale=0.2))
    assert session.setup.schedule.faults == dj.Faults(message_loss=0.1, stale=0.2)


def test_nothing_is_a_schedule_that_is_false():
    assert not faults.Schedule() and not faults.scheduled(None, None)
    assert faults.Schedule(dj.Faults(stale=0.1)) and faults.scheduled(
        None, dj.Events(leaves=((1, 0),))
    )


def test_a_choice_by_lane():
    tree = {"a": jnp.arange(6.0).reshape(3, 2), "k": jax.random.split(jax.random.key(0), 3)}
    other = jax.tree.map(lambda x: x[::-1], tree)
    found = network.choose(jnp.array([True, False, True]), tree, other)
    np.testing.assert_array_equal(found["a"], [[0, 1], [2, 3], [4, 5]])
    assert (found["k"] == tree["k"]).all()
