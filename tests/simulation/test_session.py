"""A run step by step, by hand and along its plan; all that it is lies in its state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sessions import copied, finish, session_as, timeless
from helpers.small_runs import (
    assert_trees_close,
    assert_trees_equal,
    compilations,
    linear_softmax,
    noise,
    small_config,
)

import dimat_jax as dj
from dimat_jax.algorithms import METHODS, Algorithm
from dimat_jax.algorithms.communication import variables_bytes
from dimat_jax.simulation.measure import Diverged
from dimat_jax.simulation.plan import Action, plan
from dimat_jax.simulation.state import RunState

DATASET = noise(examples=160, tests=20, size=8)
MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
MINE = Algorithm(
    "Mine",
    gossip=METHODS["cga"].gossip,
    merge=METHODS["universe"].merge,
    final=METHODS["local_sgd"].merge,
)
CONFIG = small_config(
    agents=4, methods=("dimat", "cdsgd"), devices=2, test_examples=10, optimizer_after_merge="kept"
)


@pytest.fixture(scope="module")
def session() -> dj.Session:
    """Three methods, one of them with every part; its compiled parts are those of all tests."""
    return session_as(CONFIG, MLP, DATASET, methods={"mine": MINE})


@pytest.fixture(scope="module")
def rows(session):
    """What `simulate` gives of the same run."""
    return dj.simulate(CONFIG, model=MLP, dataset=DATASET, methods={"mine": MINE}).history


def by_hand(session: dj.Session) -> list:
    """The whole run by the session's own functions, without its plan."""
    rows, state = [], session.recompute(session.train(session.start()))
    rows.append(session.measure(state, "pretrain"))
    for name, method in session.setup.methods.items():
        state = session.begin(state, name)
        for round in (1, 2):
            if method.merge:
                state = session.merge(state)
                rows.append(session.measure(state, "merge"))
            state = state._replace(position=state.position._replace(round=round))
            state = session.train(state)
            state = session.recompute(state)
            rows.append(session.measure(state, "train"))
        if method.final:
            state = session.merge(state, "final")
            rows.append(session.measure(state, "merge"))
    return rows


def test_a_run_by_hand_gives_the_rows_of_simulate(session, rows):
    assert [timeless(row) for row in by_hand(session)] == [timeless(row) for row in rows]
    assert {row["method"] for row in rows} == {"pretrain", "dimat", "cdsgd", "mine"}


def test_a_run_along_its_plan_gives_the_rows_of_simulate(session, rows):
    assert [timeless(row) for row in finish(session).rows] == [timeless(row) for row in rows]


def test_the_plan_is_what_is_gone_through(session):
    assert session.plan == plan(session.setup.config, session.setup.methods)
    state, seen = session.start(), [session.plan[0]]
    while event := session.next_event(state):
        seen.append(event)
        state, row = session.advance(state)
        assert (row is not None) == (event.phase is not None)
        assert state.position.event == len(seen)
        assert session.method_of(state) == event.method
        if row is not None:
            assert (row["method"], row["round"]) == (event.method, event.round)
            assert row["phase"] == event.phase
    assert tuple(seen) == session.plan
    with pytest.raises(ValueError, match="ended"):
        session.advance(state)


def test_advancing_a_copy_gives_the_same_at_every_event(session):
    state = session.start()
    while session.next_event(state):
        first, row = session.advance(copied(state))
        state, again = session.advance(state)
        assert_trees_equal(without_clock(first), without_clock(state))
        assert (row and timeless(row)) == (again and timeless(again))


def without_clock(state: RunState) -> RunState:
    return state._replace(images_per_second=None)


def test_a_state_is_a_pytree_of_all_that_a_run_is(session):
    state = session.begin(session.train(session.start()), "mine")
    state = session.train(session.merge(state))
    leaves = jax.tree.leaves(state)
    assert all(isinstance(x, jax.Array | np.ndarray | int | float) for x in leaves)
    ids = {id(x) for x in leaves}
    for part in (
        *(state.agents.variables, state.agents.optimizer, state.agents.key),
        *(state.method.gossip, state.method.merge, state.method.final),
        *(state.keys, state.pretrained, state.permutations),
    ):
        assert {id(x) for x in jax.tree.leaves(part)} <= ids
    again = jax.tree.unflatten(jax.tree.structure(state), leaves)
    assert type(again) is RunState and again.position == state.position
    stacked = [x for x in leaves if isinstance(x, jax.Array) and x.ndim]
    assert all(len(x) == session.setup.execution.all_lanes for x in stacked)
    assert state.method.gossip is not None and state.permutations


def test_no_parameters_lie_in_the_methods_state_or_the_optimizers(session):
    """They have one owner, so that a merge cannot miss any."""
    state = session.begin(session.train(session.start()), "cdsgd")
    before = session.train(state)
    of_agents = [np.asarray(x).tobytes() for x in jax.tree.leaves(before.agents.variables)]
    kept = jax.tree.leaves((before.method, before.agents.optimizer))
    assert not {np.asarray(x).tobytes() for x in kept if x.ndim > 1} & set(of_agents)


def test_no_round_but_the_first_of_a_method_compiles_anything(session):
    def round_of(state, method):
        if method.merge:
            state = session.merge(state)
            session.measure(state, "merge")
        state = session.train(state)
        if method.gossip:
            state = session.recompute(state)
        session.measure(state)
        return state

    pretrained = session.train(session.start())
    for name, method in session.setup.methods.items():
        state = session.begin(copied(pretrained), name)
        state = round_of(state, method)
        with compilations() as counter:
            for _ in range(2):
                state = round_of(state, method)
        assert counter.count == 0, name


def test_the_model_is_traced_no_oftener_in_more_rounds():
    chex.clear_trace_counter()
    linear = linear_softmax()
    traced = chex.assert_max_traces(linear.apply, n=12)  # shapes, symmetries, train, evaluate
    model = dj.Model(linear.init, lambda v, x, train=False, key=None: traced(v, x))
    config = small_config(agents=4, methods=("wa", "cdsgd"), devices=2, rounds=6)
    assert len(finish(session_as(config, model, DATASET)).rows) == 1 + 12 + 6


def test_a_seed_that_is_not_of_the_run_is_refused(session):
    with pytest.raises(ValueError, match=r"seed must be one of \(0,\), not 3"):
        session.start(3)


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("cdsgd", "merge", "'cdsgd' has no merge"),
        ("dimat", "final", "'dimat' has no final"),
        ("dimat", "initial", "'dimat' has no initial"),
        ("dimat", "average", "'dimat' has no average"),
        (None, "merge", "'pretrain' has no merge"),
    ],
)
def test_a_merge_that_a_method_has_not_is_refused(session, method, name, message):
    state = session.start()
    state = state if method is None else session.begin(state, method)
    with pytest.raises(ValueError, match=message):
        session.merge(state, name)


def test_a_method_may_begin_without_pretraining(session):
    state = session.begin(session.start(), "dimat")
    assert_trees_equal(state.agents.variables, session.start().agents.variables)
    again = session.begin(session.train(session.merge(state)), "cdsgd")
    assert_trees_equal(again.agents.variables, session.start().agents.variables)
    assert again.bytes_sent == 0 and again.permutations == () and again.position.round == 0


def test_the_seeds_of_a_run_come_one_after_the_other():
    config = small_config(agents=4, seeds=(3, 5), methods=("wa",), rounds=1, devices=2)
    session = session_as(config, linear_softmax(), DATASET)
    second = session.start(5)
    assert session.plan[second.position.event - 1][:2] == (Action.START, 5)
    state, seeds = session.start(), []
    while event := session.next_event(state):
        state, row = session.advance(state)
        if event.action is Action.START:
            assert_trees_equal(state, second)
        seeds += [] if row is None else [row["seed"]]
    assert seeds == [3] * 3 + [5] * 3


def test_a_method_that_diverges_can_be_left_out():
    rates = (("cdsgd", 1e38),)
    config = small_config(
        agents=4, methods=("cdsgd", "wa"), rounds=1, devices=2, method_learning_rate=rates
    )
    session, state, seen = session_as(config, linear_softmax(), DATASET), None, []
    state = session.start()
    while event := session.next_event(state):
        try:
            state, row = session.advance(state)
        except Diverged:
            state = session.skip_method(state)
            continue
        seen += [] if row is None else [event.method]
    assert seen == ["pretrain", "wa", "wa"]


@pytest.mark.parametrize("method", ["dimat", "wa"])
def test_images_that_agents_share_count_as_sent_where_they_are_looked_at(method):
    """Those to match on are DIMAT's alone; the statistics stay each agent's own."""
    options = {"methods": (method,), "devices": 2, "rounds": 2, "agents": 4}
    config = small_config(matching_data="shared", matching_images=24, **options)
    session = session_as(config, MLP, DATASET)
    state = session.begin(session.start(), method)
    for _ in range(2):
        state = session.merge(state)
    networks = 2 * variables_bytes(session.setup.abstract[0])
    images = 24 * (8 * 8 * 3 + 4) * 3 / 4 if method == "dimat" else 0  # labels go along
    assert state.bytes_sent == 2 * (networks + images)


def test_a_merge_shows_its_permutations_and_the_agents_stay_what_they_are(session):
    state = session.begin(session.train(session.start()), "mine")
    before = copied(state)
    state = session.merge(state)
    (permutations,) = state.permutations  # of a universe: one dict for all
    for name, group in session.setup.symmetries.groups.items():
        units = np.sort(np.asarray(permutations[name]))
        np.testing.assert_array_equal(units, np.tile(np.arange(group.size), (4, 1)))
    assert not jnp.array_equal(*(jax.tree.leaves(s.agents.variables)[-1] for s in (before, state)))
    with pytest.raises(AssertionError):
        assert_trees_close(before.agents.optimizer, state.agents.optimizer, 0)
