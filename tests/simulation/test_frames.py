"""Runs in a common frame, with averaged optimizers, with pauses: what comes out, what is sent."""

import jax
import numpy as np
import pytest
from helpers.sessions import assert_rows_close, copied, finish, session_as
from helpers.small_runs import assert_trees_close, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm, common_frame
from dimat_jax.algorithms.communication import variables_bytes
from dimat_jax.algorithms.merging import by_activations
from dimat_jax.execution.placement import to_host

DATASET = noise(examples=64, tests=24, size=4, channels=1)
MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
AGENTS = 4


def config_of(**options) -> dj.Config:
    return small_config(**{"agents": AGENTS, "devices": 2} | options)


def bytes_by_row(config, methods=None, model=MLP):
    session = session_as(config, model, DATASET, methods=methods)
    done = finish(session)
    size = variables_bytes(session.setup.abstract[0])
    name = list(session.setup.methods)[-1]
    sent = [row["bytes_sent"] / size for row in done.rows if row["method"] == name]
    return sent, session, done


FLOOD = (AGENTS - 1) / AGENTS  # of one network over the edges of a tree, an agent in the mean


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [2, 2, 4, 4, 6, 6, 8], marks=pytest.mark.slow),
        ({"merge_frame": "reference"}, [2, 2, 4, 4, 6, 6, 8]),
        pytest.param(
            {"merge_frame": "tree", "align_every": 2},
            [2, 2, 4, 4, 6, 6, 8],
            marks=pytest.mark.slow,
        ),
        ({"merge_frame": "reference", "align_every": "once"}, [2, 2, 4, 4, 6, 6, 8]),
    ],
)
def test_a_common_frame_costs_each_agent_nearly_one_network_an_alignment(options, expected, x64):
    config = config_of(methods=("dimat",), rounds=3, merge_at_end=True, **options)
    sent, _, _ = bytes_by_row(config)
    every = {1: [1, 2, 3, 4], 2: [1, 1, 2, 2], "once": [1, 1, 1, 1]}[options.get("align_every", 1)]
    floods = np.repeat(every, [2, 2, 2, 1]) * FLOOD * ("merge_frame" in options)
    np.testing.assert_allclose(sent, np.array(expected) + floods)


@pytest.mark.parametrize("frame", ["reference", "tree"])
def test_once_all_are_in_one_frame_the_mean_is_theirs(frame, x64):
    config = config_of(methods=("dimat",), merge_frame=frame, align_every="once", rounds=3)
    session = session_as(config, MLP, DATASET)
    done = finish(session)
    rows = [row for row in done.rows if row["method"] == "dimat"]
    assert all(row["consensus_distance_aligned"] == row["consensus_distance"] for row in rows)
    moved = [row["units_moved"] for row in rows]
    assert moved[0] > 0.1 and moved[1:] == [None] * 5


ALIKE = ("test_loss", "train_loss", "test_accuracy_agents", "merged_accuracy", "epoch")


@pytest.mark.parametrize("frame", ["own", "reference", "tree"])
def test_without_edges_dimat_is_agents_alone(frame, x64):
    config = config_of(
        methods=("dimat", "local_only"),
        topology="disconnected",
        merge_frame=frame,
        optimizer_after_merge="kept",
    )
    done = finish(session_as(config, MLP, DATASET))
    assert_trees_close(done.variables["dimat", 0], done.variables["local_only", 0], 1e-12)
    rows = [
        [r for r in done.rows if r["method"] == m and r["phase"] == "train"] for m in config.methods
    ]
    for row, alone in zip(*rows, strict=True):
        for field in ALIKE[:3]:
            assert row[field] == pytest.approx(alone[field], rel=1e-9), field
        assert row["bytes_sent"] == alone["bytes_sent"] == 0


def test_gossip_after_an_alignment_pays_for_one_network_more(x64):
    gossip = METHODS["dsgd"].gossip
    aligned = Algorithm("aligned", initial=common_frame(by_activations), gossip=gossip)
    config = config_of(methods=("local_only",), rounds=1, gossip_every=2)
    sent, session, done = bytes_by_row(config, {"aligned": aligned})
    params = variables_bytes(session.setup.abstract[0]["params"])
    size = variables_bytes(session.setup.abstract[0])
    steps = session.setup.epoch_examples[1] // session.setup.batch_size
    np.testing.assert_allclose(sent, [FLOOD + steps // 2 * 2 * params / size])
    row = done.rows[-1]
    assert row["consensus_distance_aligned"] == row["consensus_distance"]


def test_sparse_gossip_and_one_merge_at_the_end(x64):
    """Each meeting sends a network, the last merge one to everyone; aligned, the flood, too."""
    config = config_of(methods=("sparse_final_wa", "sparse_final_dimat"), rounds=4)
    sent, session, done = bytes_by_row(config)
    graph = topology.random_peers(AGENTS, 0.2)
    meetings = [sum(len(graph.neighbors(i, t)) for i in range(AGENTS)) / AGENTS for t in range(4)]
    total = np.repeat(np.cumsum(meetings), 2).tolist()
    expected = np.array([*total, total[-1] + AGENTS - 1])
    np.testing.assert_allclose(sent, expected + FLOOD)
    size = variables_bytes(session.setup.abstract[0])
    plain = [r["bytes_sent"] / size for r in done.rows if r["method"] == "sparse_final_wa"]
    np.testing.assert_allclose(plain, expected)
    for method in config.methods:
        params = done.variables[method, 0]["params"]
        first = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), params)
        assert_trees_close(params, first, 1e-12)


def test_an_alignment_that_averages_nothing_leaves_each_agent_its_optimizers_state(x64):
    mine = {
        "mine": Algorithm("mine", initial=common_frame(by_activations), merge=METHODS["wa"].merge)
    }
    config = config_of(
        methods=("fedavg",),
        optimizer_after_merge="averaged",
        batch_size=2,
        partition="dirichlet",
        alpha=0.3,
    )
    session = session_as(config, linear_softmax(), DATASET, methods=mine)
    trained = session.train(session.start())
    before = to_host(session.setup.execution, copied(trained.agents.optimizer))
    aligned = session.merge(session.begin(copied(trained), "mine"), "initial")
    assert_trees_close(to_host(session.setup.execution, aligned.agents.optimizer), before, 0)
    # A server weighs what belongs to the units as it weighs the networks.
    merged = session.merge(session.begin(copied(trained), "fedavg"))
    examples = session.setup.examples[0]
    mean = jax.tree.map(
        lambda x: np.broadcast_to(np.average(x, axis=0, weights=examples), x.shape), before
    )
    assert_trees_close(to_host(session.setup.execution, merged.agents.optimizer), mean, 1e-12)


def test_fedavg_ends_with_the_servers_model_weighed_by_examples(x64):
    config = config_of(
        methods=("fedavg",), partition="dirichlet", alpha=0.3, rounds=0, batch_size=2
    )
    session = session_as(config, linear_softmax(), DATASET)
    done = finish(session)
    examples = session.setup.examples[0]
    assert len(set(examples.tolist())) > 1
    before = to_host(session.setup.execution, done.ends[0].pretrained.variables)["params"]
    expected = jax.tree.map(lambda x: np.average(x, axis=0, weights=examples), before)
    for agent in range(AGENTS):
        found = jax.tree.map(lambda x, a=agent: x[a], done.variables["fedavg", 0]["params"])
        assert_trees_close(found, expected, 1e-12)


def test_the_optimizers_state_is_averaged_as_the_networks_are_and_sent(x64):
    config = config_of(
        methods=("wa",),
        topology="fully_connected",
        optimizer_after_merge="averaged",
        rounds=1,
        batch_size=4,
    )
    session = session_as(config, linear_softmax(), DATASET)
    state = session.train(session.start())
    begun = session.begin(copied(state), "wa")
    before = to_host(session.setup.execution, copied(begun.agents.optimizer))
    merged = session.merge(begun)
    after = to_host(session.setup.execution, merged.agents.optimizer)
    mean = jax.tree.map(lambda x: np.broadcast_to(x.mean(0), x.shape), before)
    assert_trees_close(after, mean, 1e-12)
    size = variables_bytes(session.setup.abstract[0])
    assert merged.bytes_sent == 2 * 3 * size


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["own", "reference"])
def test_averaged_state_goes_with_units_that_are_moved(frame, x64):
    """Copies of one network in other orders: the merge, state and all, is what each of them was."""
    config = config_of(
        methods=("dimat",),
        topology="fully_connected",
        merge_frame=frame,
        optimizer_after_merge="averaged",
        matching_data="shared",
        batch_size=4,
    )
    session = session_as(config, MLP, DATASET)
    state = session.begin(session.train(session.start()), "dimat")
    one = lambda tree: jax.tree.map(lambda x: x[np.zeros(len(x), int)], tree)  # noqa: E731
    symmetries, merger = session.setup.symmetries, session.parts.merger
    keys = jax.random.split(jax.random.key(5), AGENTS)
    disorder = jax.vmap(lambda key: dj.random_permutations(key, symmetries))(keys)
    variables, optimizer = one(state.agents.variables), one(state.agents.optimizer)
    moved = merger.permute_state(disorder, variables, optimizer)
    expected = (
        moved
        if frame == "own"
        else merger.permute_state(
            jax.tree.map(lambda p: p[np.zeros(len(p), int)], disorder), variables, optimizer
        )
    )
    agents = state.agents._replace(
        variables=merger.permute(disorder, variables), optimizer=copied(moved)
    )
    merged = session.merge(state._replace(agents=agents))
    assert_trees_close(merged.agents.optimizer, expected, 1e-9)


def test_a_run_may_take_over_agents_that_another_has_pretrained(x64):
    config = config_of(methods=("dimat", "wa"), pretrain_epochs=2)
    session = session_as(config, MLP, DATASET)
    expected = finish(session)
    other = session_as(config_of(methods=("wa",), pretrain_epochs=2), MLP, DATASET)
    state = other.take_over(expected.ends[0]._replace(agents=expected.ends[0].pretrained))
    state = state._replace(position=state.position._replace(epoch=2))
    rows = []
    while other.next_event(state):
        state, row = other.advance(state)
        rows += [row] if row else []
    assert_rows_close(rows, [row for row in expected.rows if row["method"] == "wa"])
    with pytest.raises(ValueError, match="seed must be one of"):
        session_as(config_of(seeds=(3,)), MLP, DATASET).take_over(expected.ends[0])


def test_the_pull_begins_with_the_first_merge(x64):
    free, pulled = (
        finish(session_as(config_of(methods=("wa", "local_only"), proximal=mu), MLP, DATASET))
        for mu in (0.0, 5.0)
    )
    assert_trees_close(free.variables["local_only", 0], pulled.variables["local_only", 0], 0)
    with pytest.raises(AssertionError):
        assert_trees_close(free.variables["wa", 0], pulled.variables["wa", 0], 1e-4)
