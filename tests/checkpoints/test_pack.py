"""A state that was written and read again is the same, bit for bit, at every event of a run."""

import json

import jax
import numpy as np
import optax
import pytest
from helpers.sessions import assert_rows_close, finish, session_as, timeless
from helpers.small_runs import assert_trees_equal, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax.algorithms import METHODS, Algorithm, with_outer_optimizer
from dimat_jax.checkpoints import store
from dimat_jax.checkpoints.pack import pack, unpack

DATASET = noise(examples=160, tests=20, size=8)
MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
MINE = Algorithm(
    "Mine",
    gossip=METHODS["cga"].gossip,
    merge=with_outer_optimizer(METHODS["universe"].merge, optax.adam(0.5)),
    final=METHODS["local_sgd"].merge,
)


def session_on(devices: int, model: dj.Model = MLP, **options) -> dj.Session:
    """A run of three methods, one of which has every part."""
    defaults = dict(agents=4, methods=("dimat", "relay_sgd"), devices=devices, optimizer="adam")
    config = small_config(**defaults | options)
    return session_as(config, model, DATASET, methods={"mine": MINE})


def through_disk(session, state, pretrained, folder, before=None):
    """The state as another process would read it; ``before`` is the session that it is of."""
    lanes = (before or session).setup.execution.all_lanes
    store.save(folder, state.position.event, pack(state, lanes), {})
    about = store.load(folder, state.position.event)
    return unpack(session, about, store.arrays_of(folder, state.position.event), pretrained)


@pytest.mark.slow
def test_a_state_comes_back_bit_for_bit_after_every_event(tmp_path):
    session = session_on(2)
    state = session.start()
    pretrained = None
    while session.next_event(state):
        state, _ = session.advance(state)
        again = through_disk(session, state, pretrained, tmp_path)
        if state.pretrained is not None and pretrained is None:
            pretrained = again
            again = again._replace(pretrained=again.agents)
        assert jax.tree.structure(again) == jax.tree.structure(state)
        assert_trees_equal(again, state)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
            assert type(one) is type(other)
            if isinstance(one, jax.Array):
                assert getattr(one, "weak_type", False) == getattr(other, "weak_type", False)
    assert len(list(tmp_path.iterdir())) == len(session.plan) - 1


@pytest.mark.parametrize(
    "agents, before, after",
    # One of five agents has a masked lane beside it on two devices, and none on one.
    [
        pytest.param(4, 2, 3, marks=pytest.mark.slow),
        (5, 2, 1),
        pytest.param(5, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_another_number_of_devices(tmp_path, agents, before, after):
    options = dict(agents=agents, methods=("relay_sgd",))
    before, after = (session_on(devices, **options) for devices in (before, after))
    state = before.start()
    while before.method_of(state) != "relay_sgd" or state.position.round < 2:
        state, _ = before.advance(state)
    pretrained = state._replace(agents=state.pretrained)
    pretrained = through_disk(after, pretrained, None, tmp_path, before)
    again = through_disk(after, state, pretrained, tmp_path, before)
    assert len(again.agents.step) == after.setup.execution.all_lanes
    found = []
    while after.next_event(again):
        again, row = after.advance(again)
        found += [row] * (row is not None)
    rows = finish(before).rows
    assert_rows_close(found, rows[-len(found) :], tolerance=1e-4)
    assert {row["method"] for row in found} == {"relay_sgd", "mine"}


def test_what_the_description_holds_is_json_and_names_every_leaf():
    session = session_on(1)
    state = session.begin(session.train(session.start()), "mine")
    packed = pack(state, 4)
    about = json.loads(json.dumps(packed.about))
    assert about == packed.about
    leaves = jax.tree.leaves((state.agents, state.method))
    assert len(about["agents"]) + len(about["method"]) == len(leaves)
    assert about["agents"][0]["path"].startswith(".variables['batch_stats']")
    assert all(np.size(array) for array in packed.arrays.values())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"model": linear_softmax()}, r"agents\.variables\['batch_stats'\].* is not in this run"),
        (
            {"model": dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")},
            r"agents\.variables\[.*\] is float32\[5\] in it, and float32\[8\] here",
        ),
        ({"optimizer": "momentum"}, r"agents\.optimizer.* is not in this run"),
    ],
)
def test_a_state_of_another_run_is_refused_by_the_leaf(tmp_path, options, said):
    state = session_on(1).start()
    with pytest.raises(ValueError, match=f"The checkpoint is of another run: {said}"):
        through_disk(session_on(1, **options), state, None, tmp_path)


@pytest.mark.slow
def test_numbers_and_rows_that_follow_are_those_of_the_run(tmp_path):
    session = session_on(1)
    state = session.recompute(session.train(session.start()))
    again = through_disk(session, state, None, tmp_path)
    assert timeless(session.measure(again)) == timeless(session.measure(state))
    assert again.train_loss == state.train_loss and again.bytes_sent == state.bytes_sent
