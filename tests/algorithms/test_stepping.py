"""Gossip training, against a plain loop over steps and agents."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_runs import (
    as_batch,
    assert_trees_close,
    assert_trees_equal,
    compilations,
    counted,
    equations,
    execution_of,
    linear_softmax,
    noise,
    normaliser,
    pick,
    preparer,
    small_config,
    traced_through,
)

import dimat_jax as dj
from dimat_jax.algorithms import METHODS, Gossip, exchanges
from dimat_jax.algorithms.stepping import (
    gossip_resume,
    gossip_start,
    gossip_training,
    gradient_update,
    round_of,
)
from dimat_jax.execution.forms import lift
from dimat_jax.execution.placement import AGENTS, place
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.models.convnet import ConvNet
from dimat_jax.simulation.examples import Shards, place_shards
from dimat_jax.simulation.parts import make_parts
from dimat_jax.simulation.setup import prepare
from dimat_jax.simulation.state import seed_keys
from dimat_jax.training.local import epoch_order
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import AgentState, init_population

DATASET = noise(examples=80, tests=20, size=8)
EPOCHS, STEPS, BATCH, RATE = 2, 2, 5, 0.1


def config_of(**options):
    defaults = dict(batch_size=BATCH, learning_rate=RATE, augmentation="none", devices=4)
    return small_config(**defaults | options)


def plain_loop(plan, gossip: Gossip, state: AgentState, shards: Shards, key):
    """The same epochs by loops over steps, points and agents; on the host, but for the formulas."""
    normalise, agents = normaliser(DATASET), range(plan.config.agents)
    images, labels = (np.asarray(shards.examples[name]) for name in ("inputs", "labels"))
    rounds = exchanges(plan.graphs[plan.config.methods[0]]["gossip"])
    params, kept = gossip.init(state.variables["params"], pick(rounds, 0))

    @jax.jit
    def gradient_at(params, images, labels):
        def loss(params):
            logits = plan.task.outputs({"params": params}, {"inputs": normalise(images)})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    for step in range(EPOCHS * STEPS):
        now = pick(rounds, step % len(rounds.matrix))
        order = epoch_order(
            key, step // STEPS, len(agents), shards.number, STEPS, BATCH, len(agents)
        )
        gradients = []
        for point in (params, *gossip.points(params, kept, now)):
            batches = [
                (images[order[i, step % STEPS]], labels[order[i, step % STEPS]]) for i in agents
            ]
            each = [gradient_at(pick(point, i), *batches[i]) for i in agents]
            gradients.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
        rate = jnp.asarray(RATE)
        params, kept = gossip.update(params, tuple(gradients), kept, now, rate)
    return params


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("method", "topology"),
    [("cdsgd", "one_peer_exponential"), ("cga", "ring"), ("sgp", "exponential")],
)
def test_epochs_are_those_of_a_plain_loop(method, topology, sequential):
    with jax.enable_x64(True):
        config = config_of(methods=(method,), topology=topology)
        plan = prepare(config, model=linear_softmax(), dataset=DATASET)
        execution = plan.execution._replace(
            sequential=sequential, lanes_at_once=1 if sequential else plan.execution.lanes
        )
        plan = plan._replace(execution=execution)
        parts, keys = make_parts(plan), seed_keys(0)
        shards, state = place_shards(plan, 0, 1), parts.init(keys.init)
        gossip = METHODS[method].gossip
        expected = plain_loop(plan, gossip, state, shards, keys.order)
        graph = exchanges(plan.graphs[method]["gossip"])
        state, kept = parts.gossip(gossip).start(state, graph)
        for epoch in range(EPOCHS):
            state, kept = parts.gossip(gossip).train(state, kept, graph, shards, keys.order, epoch)
        assert_trees_close(state.variables["params"], expected, 1e-10)
        np.testing.assert_array_equal(state.step, [EPOCHS * STEPS] * 8)
        np.testing.assert_array_equal(kept.turn, [EPOCHS * STEPS] * 8)
        np.testing.assert_array_equal(state.diverged, [-1] * 8)


def started(method: str, agents: int = 4, graph=None):
    """A method's state before its first step, of a softmax regression, and the graph's rounds."""
    gossip = METHODS[method].gossip
    rounds = exchanges(gossip.graph(graph or dj.topology.ring(agents)))
    batch = as_batch(jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), ())
    state = init_population(
        dj.classification(linear_softmax()), OPTIMIZERS["sgd"](), jax.random.key(0), agents, batch
    )
    return gossip, *gossip_start(gossip, state, rounds), rounds


def test_a_method_starts_from_the_agents_own_parameters_and_first_round():
    gossip, state, kept, rounds = started("cga")
    params = state.variables["params"]
    assert_trees_equal(kept.points, gossip.points(params, kept.method, round_of(rounds, 0)))
    assert len(kept.points) == 2 and len(kept.gradients) == 3
    assert not any(x.any() for x in jax.tree.leaves(kept.gradients))
    np.testing.assert_array_equal(kept.turn, 0)


def test_after_a_merge_the_points_are_those_of_the_merged_parameters():
    gossip, state, kept, rounds = started("cga", 4, dj.topology.fully_connected(4))
    kept = kept._replace(turn=kept.turn + 3)
    merged = jax.tree.map(lambda x: x + 1, state.variables["params"])
    after = gossip_resume(gossip, state._replace(variables={"params": merged}), kept, rounds)
    now = round_of(rounds, 3)
    assert_trees_equal(after.points, gossip.points(merged, kept.method, now))
    assert_trees_equal(after._replace(points=()), kept._replace(points=()))


def test_rounds_of_a_graph_repeat_after_its_period():
    rounds = exchanges(dj.topology.one_peer_exponential(8))
    assert_trees_equal(round_of(rounds, 1), round_of(rounds, 4))
    assert not np.array_equal(round_of(rounds, 0).matrix, round_of(rounds, 1).matrix)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("method", "points"), [("cdsgd", 1), ("relay_sgd", 1), ("cga", 3)])
def test_no_gradient_is_scattered_into_the_memory_of_others(
    method, points, sequential, monkeypatch
):
    """Nothing of a model's size is written in part: with one point there is nothing to pick."""
    traced_through(monkeypatch)
    execution = execution_of(4, 2, sequential)
    # A softmax regression reads its labels' logits: their gradient is a scatter, [lanes, 4] small.
    task, stopwatch = dj.classification(linear_softmax()), Stopwatch()
    gossip, state, kept, rounds = started(method)
    state, kept = place(execution, (state, kept))
    update = gradient_update(task, lambda key, batch: preparer(DATASET)(batch))
    step = lift(execution, update, stopwatch, AGENTS)
    run = gossip_training(execution, gossip, lambda step: 0.1, step, stopwatch)
    resident = as_batch(DATASET.train_images[:40], DATASET.train_labels[:40])
    order = place(execution, np.zeros((4, 1, 5), np.int32))
    jaxpr = jax.make_jaxpr(lambda *args: run(*args, 1))(state, kept, order, resident, rounds).jaxpr
    found = [eqn for eqn, _ in equations(jaxpr)]
    kernel = 8 * 8 * 3 * 4
    scattered = [
        eqn.outvars[0].aval.shape
        for eqn in found
        if eqn.primitive.name.startswith("scatter") and eqn.outvars[0].aval.size >= kernel
    ]
    assert scattered == []
    taken = [eqn for eqn in found if eqn.primitive.name == "dot_general"]
    assert len(kept.gradients) == points and taken


def rows_of(model, own=None, **options):
    """A run's rows, and how often was traced and compiled until each."""
    model, traced = counted(model)
    rows, counts = [], []
    with compilations() as compiled:

        def on_row(row):
            rows.append(row)
            counts.append((traced.count, compiled.count))

        observer = dj.Observer(on_row=on_row)
        result = dj.simulate(
            config_of(**options), model=model, dataset=DATASET, methods=own, observer=observer
        )
    return result, rows, counts


MLP = dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")
CONVNET = dj.from_linen(ConvNet(num_classes=4, channels=(3, 4), norm="batch"))


@pytest.fixture(scope="module")
def gossip_run():
    """Two gossip methods that share their gradients, of three rounds each."""
    return rows_of(CONVNET, methods=("cdsgd", "cdmsgd"), rounds=3)


def test_a_gossip_run_compiles_in_its_first_round_alone_and_counts_every_step(gossip_run):
    result, rows, counts = gossip_run
    assert [(r["method"], r["phase"], r["round"]) for r in rows[1:]] == [
        (method, "train", round) for method in ("cdsgd", "cdmsgd") for round in (1, 2, 3)
    ]
    assert counts[1] == counts[2] == counts[3] and counts[4] == counts[5] == counts[6]
    # The second method's gradients are the first's: all test images are another shape, no more.
    assert counts[4][0] - counts[3][0] <= 1
    params = result.setup.abstract[0]["params"]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    for row in rows[1:]:
        assert row["bytes_sent"] == row["round"] * STEPS * 2 * size
        assert row["train_loss"] > 0 and row["images_per_second"] > 0


@pytest.mark.parametrize("recompute", [True, False])
def test_running_statistics_are_recomputed_after_a_round_if_asked_for(recompute, gossip_run):
    if not recompute:
        options = {"methods": ("cdsgd",), "rounds": 1, "recompute_statistics": False}
        gossip_run = rows_of(MLP, **options)
    result, rows, _ = gossip_run
    assert ("statistics" in rows[1]["seconds"]) == recompute
    stats = jax.tree.leaves(result.variables["batch_stats"])
    assert all(np.isfinite(x).all() and np.ptp(x, axis=0).max() > 0 for x in stats)


@pytest.mark.slow
def test_a_method_has_a_learning_rate_of_its_own():
    def ends(**options):
        config = config_of(methods=("cdsgd", "wa"), rounds=1, pretrain_epochs=0, **options)
        finals = dj.simulate(config, model=linear_softmax(), dataset=DATASET).finals
        return {method: final.variables for (method, _), final in finals.items()}

    own = ends(method_learning_rate=(("cdsgd", 0.03), ("wa", 0.04)))
    for method, rate in (("cdsgd", 0.03), ("wa", 0.04)):
        assert_trees_close(own[method], ends(learning_rate=rate)[method], 1e-6)
    other = ends()
    for method in own:
        with pytest.raises(AssertionError):
            assert_trees_close(own[method], other[method], 1e-6)


def test_a_final_merge_comes_after_all_training():
    final = dj.algorithms.Algorithm("mine", final=METHODS["wa"].merge)
    result, rows, _ = rows_of(linear_softmax(), {"mine": final}, methods=("final_wa",), rounds=2)
    for name in ("final_wa", "mine"):
        mine = [row for row in rows if row["method"] == name]
        assert [(r["phase"], r["round"]) for r in mine] == [
            ("train", 1),
            ("train", 2),
            ("merge", 3),
        ]
        assert [r["epoch"] for r in mine] == [2, 3, 3]
        assert [r["bytes_sent"] > 0 for r in mine] == [False, False, True]
