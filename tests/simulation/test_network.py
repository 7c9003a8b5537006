"""Runs whose network has faults, and whose agents join and leave."""

import jax
import numpy as np
import pytest
from helpers.sessions import finish, timeless
from helpers.small_runs import (
    assert_trees_equal,
    compilations,
    linear_softmax,
    noise,
    pick,
    small_config,
)

import dimat_jax as dj
from dimat_jax.algorithms import METHODS
from dimat_jax.execution.placement import to_host
from dimat_jax.simulation.session import make_session

DATASET = noise(examples=160, tests=20, size=8)
MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
OFTEN, RARELY = ("dimat", "sgp", "d2"), ("wa", "dsgd_momentum", "cga", "qg_dsgdm_n", "local_only")
METHODS_OF = [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in RARELY)]


def session_of(methods, faults=None, events=None, model=MLP, **options):
    config = small_config(
        **dict(agents=4, rounds=3, methods=methods, merged_every=1, devices=3) | options
    )
    return make_session(config, model=model, dataset=DATASET, faults=faults, events=events)


def states(session, method):
    """The state after every event of a method, with its event; arrays on the host."""
    state = session.start()
    while event := session.next_event(state):
        state, row = session.advance(state)
        if event.method == method:
            agents = to_host(session.setup.execution, state.agents)
            yield event, agents, row


@pytest.mark.slow
def test_without_faults_nothing_changes():
    methods = ("dimat", "sgp")
    plain = session_of(methods, rounds=2)
    scheduled = session_of(methods, dj.Faults(seed=1), rounds=2)
    assert scheduled.setup.schedule and not plain.setup.schedule
    for row, other in zip(finish(scheduled).rows, finish(plain).rows, strict=True):
        assert row["agents_measured"] == 4
        assert row["messages_lost"] == row["messages_left_out"] == 0
        for name, value in timeless(other).items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(row[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
            else:
                assert row[name] == value


@pytest.mark.parametrize("method", METHODS_OF)
def test_nothing_that_is_not_finite_spreads(method):
    corrupt = dj.Faults(corrupt=((1, 2, "nan"), (3, 0, "nan")))
    for event, agents, row in states(session_of((method,), corrupt), method):
        if event.round == 0:
            continue
        # Statistics are of training, in which an agent meets its own numbers: they are recomputed.
        leaves = jax.tree.leaves(agents.variables if row else agents.variables["params"])
        fine = [all(np.isfinite(x[agent]).all() for x in leaves) for agent in range(4)]
        if method == "local_only":
            assert fine == [event.round < 3, True, False, True]
        else:
            assert all(fine)
        if row is not None:
            assert row["agents_measured"] == sum(fine)
            assert np.isfinite(row["test_loss"]) and np.isfinite(row["consensus_distance"])
            assert np.isfinite(row["merged_loss"])


def test_left_out_messages_are_counted():
    rows = finish(session_of(("wa",), dj.Faults(corrupt=((1, 2, "nan"),)))).rows
    # Two neighbours on the ring of four.
    assert [r["messages_left_out"] for r in rows if r["method"] == "wa"] == [2] * 6
    lost = finish(session_of(("wa", "dsgd"), dj.Faults(message_loss=1.0))).rows
    assert [r["messages_lost"] for r in lost if r["method"] == "wa"] == [8, 8, 16, 16, 24, 24]
    assert [r["messages_lost"] for r in lost if r["method"] == "dsgd"] == [40, 80, 120]


@pytest.mark.slow
def test_where_every_message_is_lost_agents_are_alone():
    kept = dict(optimizer_after_merge="kept")
    found = finish(session_of(("wa", "local_only"), dj.Faults(message_loss=1.0), **kept)).variables
    assert_trees_equal(found["wa", 0]["params"], found["local_only", 0]["params"])


@pytest.mark.parametrize("method", ["dimat", pytest.param("cga", marks=pytest.mark.slow)])
def test_who_is_down_stays_as_it_is_and_nobody_hears_from_it(method):
    down = dj.Faults(down=((1, 2, 2),))
    before, last = None, {}
    for event, agents, row in states(session_of((method,), down), method):
        now = pick(agents.variables, 1)
        if event.round == 2:
            assert_trees_equal(now, before)
            if row is not None:
                assert row["agents_measured"] == 3 and np.isnan(row["test_loss_agents"][1])
        before = last[event.round] = now
    first, second = (jax.tree.leaves(last[round]["params"])[0] for round in (2, 3))
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_what_a_down_agent_holds_does_not_matter():
    """The others' numbers are the same whatever it is."""
    down = dict(down=((1, 1, 3),))
    clean = finish(session_of(("dimat", "dsgd", "sgp"), dj.Faults(**down))).variables
    spoilt = dj.Faults(**down, corrupt=((1, 1, "garbage"),))
    other = finish(session_of(("dimat", "dsgd", "sgp"), spoilt)).variables
    for name, variables in clean.items():
        for agent in (0, 2, 3):
            assert_trees_equal(pick(variables, agent), pick(other[name], agent))


def test_a_newcomer_copies_a_neighbour_or_begins_anew():
    joins = dj.Events(joins=((2, 1, "copy"), (3, 3, "fresh")), leaves=((3, 0),))
    seen = {}
    for event, agents, _ in states(session_of(("local_only",), None, joins), "local_only"):
        seen[event.round] = agents
    copied, source = pick(seen[1].variables, 0), pick(seen[2].variables, 1)
    # It has trained for a round since, as its neighbour has, on other images.
    assert jax.tree.structure(copied) == jax.tree.structure(source)
    assert_trees_equal(pick(seen[3].variables, 0), pick(seen[2].variables, 0))
    assert_trees_equal(pick(seen[2].variables, 3), pick(seen[1].variables, 3))
    kernels = [np.asarray(jax.tree.leaves(s.variables["params"])[-1]) for s in seen.values()]
    near = np.linalg.norm(kernels[2][1] - kernels[1][0])
    far = np.linalg.norm(kernels[2][1] - kernels[1][1])
    assert near < far


@pytest.mark.parametrize(
    ("faults", "kept"),
    [
        (dj.Faults(seed=3), True),
        (dj.Faults(lost=((1, 0, 1), (1, 1, 0)), down=((2, 2, 3),)), True),
        (dj.Faults(stale=1.0), True),
        (dj.Faults(lost=((1, 0, 1),)), False),
    ],
    ids=["nothing happens", "a link fails both ways, an agent is down", "stale", "one way"],
)
def test_the_mean_of_the_parameters_is_kept_where_nobody_trains(faults, kept):
    """Losses that leave the matrix doubly stochastic keep it, others need not."""
    session = session_of(("wa",), faults, epochs_per_round=0)
    means = [
        np.asarray(jax.tree.leaves(agents.variables["params"])[0]).mean(0)
        for event, agents, _ in states(session, "wa")
    ]
    moved = max(float(np.abs(mean - means[0]).max()) for mean in means[1:])
    assert (moved < 1e-6) == kept, moved


def test_stale_messages_are_those_of_the_merge_before():
    session = session_of(
        ("wa",), dj.Faults(stale=1.0), model=linear_softmax(), devices=2, epochs_per_round=0
    )
    assert session.setup.schedule.faults.stale == 1
    seen = [
        pick(a.variables, slice(None)) for e, a, _ in states(session, "wa") if e.phase != "train"
    ]
    kernels = []
    for variables in seen:
        kernel = np.asarray(variables["params"]["kernel"])
        if not kernels or not np.array_equal(kernels[-1], kernel):
            kernels.append(kernel)
    matrix = session.setup.topology.mixing_matrix(0)
    own = np.diag(np.diag(matrix))
    # The first merge has nothing older; then x ← own share of x now + neighbours' share of before.
    first = np.einsum("ij,jkl->ikl", matrix, kernels[0])
    np.testing.assert_allclose(kernels[1], first, atol=1e-6)
    second = np.einsum("ij,jkl->ikl", own, kernels[1])
    second += np.einsum("ij,jkl->ikl", matrix - own, kernels[0])
    np.testing.assert_allclose(kernels[2], second, atol=1e-6)


def test_nothing_compiles_once_each_fault_has_happened():
    faults = dj.Faults(message_loss=0.4, stale=0.3, down=((1, 2, 2), (0, 3, 3), (2, 5, 7)))
    session = session_of(("dimat", "dsgd"), faults, rounds=8)
    state, counts = session.start(), {}
    while event := session.next_event(state):
        with compilations() as counter:
            state, _ = session.advance(state)
        key = (event.method, event.round)
        counts[key] = counts.get(key, 0) + counter.count
    for method in ("dimat", "dsgd"):
        assert [counts[method, round] for round in (6, 7, 8)] == [0, 0, 0], counts


@pytest.mark.slow
def test_events_may_be_named_on_the_command_line_by_probability(tmp_path):
    config = small_config(
        agents=4, methods=("wa",), message_loss=0.5, stale_messages=0.5, out=tmp_path
    )
    result = dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=None)
    assert result.history[-1]["messages_lost"] > 0
    again = dj.simulate(
        small_config(**{"agents": 4, "methods": ("wa",)}, message_loss=0.5, stale_messages=0.5),
        model=linear_softmax(),
        dataset=DATASET,
        observer=None,
    )
    assert [timeless(r) for r in again.history] == [timeless(r) for r in result.history]


@pytest.mark.slow
def test_every_method_bears_faults_and_newcomers():
    config = small_config(agents=4, rounds=2, methods=tuple(METHODS), merge_at_end=True)
    model = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="none")
    faults = dj.Faults(message_loss=0.3, stale=0.3, down=((0, 2, 2),), corrupt=((1, 1, "nan"),))
    events = dj.Events(joins=((2, 3, "copy"),))
    session = make_session(config, model=model, dataset=DATASET, faults=faults, events=events)
    found = finish(session)
    assert {method for method, _ in found.variables} == set(METHODS)
