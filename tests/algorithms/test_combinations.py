"""Methods of several parts: each part's effect is there, and each byte is counted once.

The reference is a loop in NumPy over rounds and steps: a merge is a matrix, a training step is the
method's formula (`algorithm_references`), and the model is a softmax regression.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from helpers.algorithm_references import Step, mix_then_step
from helpers.algorithm_table import GOSSIP, GOSSIPING, KINDS, MERGES, everyone
from helpers.sessions import Finished, copied, finish, session_as
from helpers.small_runs import assert_trees_close, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm, with_outer_optimizer
from dimat_jax.algorithms.communication import variables_bytes
from dimat_jax.algorithms.gossip import mix_then_step as gossip_with_momentum
from dimat_jax.execution.placement import to_host
from dimat_jax.simulation.session import Session
from dimat_jax.simulation.state import seed_keys
from dimat_jax.training.local import epoch_order

AGENTS, ROUNDS, STEPS, BATCH, RATE = 5, 2, 2, 8, 0.1
DATASET = noise(examples=AGENTS * 16, tests=20, size=4, channels=1)
STAR = topology.star(AGENTS)
WA, EVERYONE = METHODS["wa"].merge, METHODS["local_sgd"].merge
MOMENTUM = 0.9


def config_of(**options) -> dj.Config:
    defaults = dict(
        agents=AGENTS,
        topology="star",
        rounds=ROUNDS,
        batch_size=BATCH,
        learning_rate=RATE,
        augmentation="none",
        optimizer="sgd",
        methods=("local_only",),
        devices=2,
    )
    return small_config(**defaults | options)


class Data(NamedTuple):
    """What each agent trains on: a row of ones for the bias, and its labels.

    Attributes:
      x: ``[agents, examples, features]``.
      y: ``[agents, examples]``.
    """

    x: np.ndarray
    y: np.ndarray

    def gradient(self, order, agent, point):
        """Of the mean loss on one batch at ``[features * 4]``, the bias in the last row."""
        x, y = self.x[agent, order[agent]], self.y[agent, order[agent]]
        logits = x @ point.reshape(-1, 4)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return (x.T @ (shares - np.eye(4)[y]) / len(x)).ravel()


def data_of(session: Session) -> Data:
    rows = session.setup.shards[0][1]
    mean, std = dj.datasets.channel_statistics(DATASET.train_images)
    images = (DATASET.train_images[rows] / 255 - np.float64(mean)) / np.float64(std)
    flat = images.reshape(*rows.shape, -1)
    return Data(np.concatenate([flat, np.ones((*rows.shape, 1))], -1), DATASET.train_labels[rows])


def weights_of(variables) -> np.ndarray:
    """``[agents, features * 4]``, the bias last."""
    params = variables["params"]
    weights = np.concatenate([params["kernel"], params["bias"][:, None]], 1)
    return weights.reshape(len(weights), -1)


def pretrained_weights(session: Session, done: Finished) -> np.ndarray:
    return weights_of(to_host(session.setup.execution, done.ends[0].pretrained.variables))


def steps_of(session: Session, epoch: int, matrix: np.ndarray) -> list[Step]:
    """An epoch's steps, for a reference."""
    data = data_of(session)
    order = epoch_order(seed_keys(0).order, epoch, AGENTS, 16, STEPS, BATCH, 1)
    return [
        Step(matrix, functools.partial(data.gradient, np.asarray(order[:, step])), RATE)
        for step in range(STEPS)
    ]


def three_parts(name: str) -> Algorithm:
    """A gossip method that averages with its neighbours each round, at the end with everyone."""
    return Algorithm(f"{name} and merges", gossip=GOSSIPING[name], merge=WA, final=EVERYONE)


ONCE = [name for name in GOSSIPING if name in KINDS]
"""Every kind of gossip method."""


@pytest.fixture(scope="module")
def all_gossip() -> tuple[Session, Finished]:
    """Every gossip method with a merge each round and one at the end, from the same agents."""
    with jax.enable_x64(True):
        methods = {f"{name}_merged": three_parts(name) for name in ONCE}
        session = session_as(config_of(), linear_softmax(), DATASET, methods=methods)
        return session, finish(session)


@pytest.mark.parametrize("name", ONCE)
def test_gossip_and_merges_are_those_of_a_plain_loop(name, all_gossip):
    session, done = all_gossip
    row, matrix = GOSSIP[name], STAR.mixing_matrix()
    x = pretrained_weights(session, done)
    if row.message.to_server:  # it begins from agent 0's parameters, before the first merge
        x = np.tile(x[0], (AGENTS, 1))
    for round in range(ROUNDS):
        x = matrix @ x
        with jax.enable_x64(True):
            steps = steps_of(session, 1 + round, row.matrix(matrix))
        *_, x = row.reference(x, steps)  # afresh in each round
    x = everyone(matrix) @ x
    found = weights_of(done.variables[f"{name}_merged", 0])
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ONCE)
def test_each_byte_of_each_part_is_counted_once(name, all_gossip):
    session, done = all_gossip
    size = variables_bytes(session.setup.abstract[0])
    row, neighbors = GOSSIP[name], 2 * (AGENTS - 1) / AGENTS  # of an agent of a star, in the mean
    message = row.message.parameters * size + 4 * row.message.scalars
    heard = 1 if row.message.to_server else neighbors * row.message.messages
    merge, train, final = neighbors * size, STEPS * heard * message, (AGENTS - 1) * size
    expected = np.cumsum([merge, train, merge, train, final])
    rows = [row for row in done.rows if row["method"] == f"{name}_merged"]
    assert [row["phase"] for row in rows] == ["merge", "train", "merge", "train", "merge"]
    np.testing.assert_allclose([row["bytes_sent"] for row in rows], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("of_run", "of_merge"), [("fresh", None), ("kept", None), ("fresh", "kept"), ("kept", "fresh")]
)
def test_a_gossip_methods_momentum_goes_on_after_a_merge_only_if_asked(of_run, of_merge, x64):
    merge, choice = WA._replace(optimizer=of_merge), of_merge or of_run
    mine = Algorithm("mine", gossip=gossip_with_momentum(MOMENTUM), merge=merge, final=EVERYONE)
    config = config_of(optimizer_after_merge=of_run, pretrain_epochs=0, epochs_per_round=2)
    session = session_as(config, linear_softmax(), DATASET, methods={"mine": mine})
    x = weights_of(to_host(session.setup.execution, session.start().agents.variables))
    matrix, v = STAR.mixing_matrix(), np.zeros_like(x)
    for round in range(ROUNDS):
        x, v = matrix @ x, v if choice == "kept" else 0 * v
        for epoch in (2 * round, 2 * round + 1):
            for step in steps_of(session, epoch, matrix):
                gradients = [step.gradient(i, x[i]) for i in range(AGENTS)]
                v = MOMENTUM * v - RATE * np.stack(gradients)
                x = matrix @ x + v
    found = weights_of(finish(session).variables["mine", 0])
    np.testing.assert_allclose(found, everyone(matrix) @ x, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_dimat_plus_keeps_what_optimizers_remember_through_alignment(x64):
    def losses(method, choice):
        config = config_of(
            methods=(method,),
            optimizer_after_merge=choice,
            agents=4,
            topology="ring",
            optimizer="adam",
        )
        rows = finish(session_as(config, MLP, DATASET)).rows
        return [(row["phase"], row["test_loss"], row["bytes_sent"]) for row in rows]

    found = losses("dimat_plus", "fresh")
    assert found == losses("dimat_once", "kept") != losses("dimat_once", "fresh")


def test_an_outer_optimizer_over_merges_is_that_of_a_plain_loop(x64):
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    methods = {
        "nesterov": Algorithm("DiLoCo", merge=with_outer_optimizer(EVERYONE, outer)),
        "plain": Algorithm("plain", merge=with_outer_optimizer(EVERYONE, optax.sgd(1.0))),
    }
    config = config_of(methods=("local_sgd",), rounds=3)
    session = session_as(config, linear_softmax(), DATASET, methods=methods)
    done = finish(session)
    assert_trees_close(done.variables["plain", 0], done.variables["local_sgd", 0], 1e-12)

    x = pretrained_weights(session, done)
    before, momentum = x, np.zeros_like(x)  # what they had when the round before ended
    for round in range(3):
        gradient = before - x.mean(0)
        momentum = 0.9 * momentum + gradient
        x = before = before - 0.7 * (gradient + 0.9 * momentum)
        *_, x = mix_then_step(x, steps_of(session, 1 + round, np.eye(AGENTS)))
    found = weights_of(done.variables["nesterov", 0])
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-9)
    last = {row["method"]: row["bytes_sent"] for row in done.rows}
    assert last["nesterov"] == last["plain"] == last["local_sgd"] > 0  # nothing more is sent


MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")


@pytest.mark.slow
def test_sparse_gossip_and_an_aligned_merge_each_round(x64):
    """The merge is DIMAT's on everyone's networks; the steps after it are those of the gossip."""
    aligned = METHODS["dimat"].merge._replace(graph=EVERYONE.graph)
    gossip = GOSSIPING["cdsgd"]._replace(graph=lambda graph: topology.one_peer_exponential(4))
    methods = {
        "merge": Algorithm("aligned merges", merge=aligned),
        "gossip": Algorithm("sparse gossip", gossip=gossip),
        "both": Algorithm("both", gossip=gossip, merge=aligned),
    }
    config = config_of(agents=4, topology="ring", methods=("local_only",), rounds=1, devices=2)
    session = session_as(config, MLP, DATASET, methods=methods)
    pretrained = session.train(session.start())

    def begin(method):
        return session.begin(copied(pretrained), method)

    merged, both = session.merge(begin("merge")), session.merge(begin("both"))
    assert_trees_close(both.agents.variables, merged.agents.variables, 1e-12)
    assert_trees_close(both.permutations, merged.permutations, 0)
    assert len(both.permutations) == 3
    with pytest.raises(AssertionError):
        assert_trees_close(both.agents.variables, pretrained.agents.variables, 1e-3)

    afresh = begin("gossip")
    afresh = afresh._replace(agents=afresh.agents._replace(variables=copied(both.agents.variables)))
    afresh, after = session.train(afresh), session.train(both)
    assert_trees_close(after.agents.variables, afresh.agents.variables, 1e-12)
    alone = session.train(merged)
    with pytest.raises(AssertionError):
        assert_trees_close(after.agents.variables, alone.agents.variables, 1e-4)
    assert after.bytes_sent == pytest.approx(afresh.bytes_sent + alone.bytes_sent)


NOBODY = topology.disconnected(4)


def assert_a_relabelling(merge, gossip=None, final=None, choice="kept"):
    """On a graph without edges a merge that moves units changes nothing but their order."""
    methods = {
        name: Algorithm(
            name, gossip=gossip, final=final, merge=part._replace(graph=lambda graph: NOBODY)
        )
        for name, part in {"moving": merge, "staying": WA}.items()
    }
    config = config_of(agents=4, topology="disconnected", optimizer_after_merge=choice)
    session = session_as(config, MLP, DATASET, methods=methods)
    done = finish(session)
    moving, staying = ([row for row in done.rows if row["method"] == method] for method in methods)
    for field in ("test_loss", "train_loss", "test_accuracy_agents"):
        for row, other in zip(moving, staying, strict=True):
            if row[field] is not None or other[field] is not None:
                assert row[field] == pytest.approx(other[field], rel=1e-9), field
    with pytest.raises(AssertionError):
        assert_trees_close(*(done.variables[method, 0]["params"] for method in methods), 1e-3)


@pytest.mark.slow
def test_a_gossip_methods_state_goes_with_the_units_into_another_frame(x64):
    assert_a_relabelling(MERGES["universe"], gossip=gossip_with_momentum(MOMENTUM))


@pytest.mark.parametrize("choice", ["fresh", "kept"])
def test_what_the_final_merge_remembers_goes_with_the_units_too(choice, x64):
    """Halfway to where they began: an outer optimizer remembers the networks of the beginning."""
    alone = WA._replace(graph=lambda graph: NOBODY)
    halfway = with_outer_optimizer(alone, optax.sgd(0.5))
    assert_a_relabelling(MERGES["universe"], final=halfway, choice=choice)


def test_a_final_merge_is_counted_on_the_graph_of_its_round(x64):
    """On a graph that changes from round to round, as it is merged."""
    graph = topology.from_matrix(
        [np.eye(4), np.eye(4), np.full((4, 4), 1 / 4)], name="late"
    )  # nobody hears from anybody but in the third round
    mine = {"mine": Algorithm("mine", final=WA)}
    config = config_of(agents=4, rounds=2)
    session = session_as(config, linear_softmax(), DATASET, topology=graph, methods=mine)
    done = finish(session)
    weights = weights_of(done.variables["mine", 0])
    np.testing.assert_allclose(weights, np.tile(weights[:1], (4, 1)), atol=1e-12)
    assert done.rows[-1]["bytes_sent"] == 3 * variables_bytes(session.setup.abstract[0])
