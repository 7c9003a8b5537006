"""The run as a whole: its rows, and that nothing depends on where and in which form it runs."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from dimat_jax.execution.population import choose_execution
from helpers.small_runs import (
    Counter,
    assert_trees_close,
    assert_trees_equal,
    compilations,
    counted,
    linear_softmax,
    noise,
    small_config,
)

import dimat_jax as dj
from dimat_jax import communication, topology
from dimat_jax.algorithms import METHODS
from dimat_jax.metrics import Row
from dimat_jax.models.convnet import ConvNet
from dimat_jax.simulation import engine, setup, simulation
from dimat_jax.training import local as training

DATASET = noise(examples=320, tests=50, size=8)
MODELS = {
    "mlp": dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch"),
    "convnet": dj.from_linen(ConvNet(num_classes=4, channels=(3, 4), norm="batch")),
}
PARTS = {"compile", "train", "match", "assign", "mix", "statistics", "evaluate"}


class Watched(NamedTuple):
    """A run, and what its observer saw; after each row how often was traced and compiled."""

    result: dj.Result
    started: list
    labels: list[str]
    shares: list[float]
    rows: list[Row]
    traces: list[int]
    compilations: list[int]


def watch(config, model, traced: Counter, **options) -> Watched:
    started, labels, shares, rows, traces, compiled = [], [], [], [], [], []

    def on_row(row):
        rows.append(row)
        traces.append(traced.count)
        compiled.append(counter.count)

    def on_phase(label, share):
        labels.append(label)
        shares.append(share)

    observer = dj.Observer(started.append, on_phase, on_row)
    with compilations() as counter:
        result = dj.simulate(config, model=model, observer=observer, **options)
    return Watched(result, started, labels, shares, rows, traces, compiled)


@pytest.fixture(scope="module")
def main_job() -> Watched:
    """The main job in small: DIMAT and WA on a ring, a convnet looped over two agents a device."""
    model, traced = counted(MODELS["convnet"])
    config = small_config(rounds=3, devices=4, test_examples=30)
    return watch(config, model, traced, dataset=DATASET)


def test_nothing_is_traced_or_compiled_from_the_second_round_on(main_job):
    traces, compiled = main_job.traces, main_job.compilations
    assert traces[2] > traces[0] > 0 and compiled[2] > compiled[0] > 0
    for counts in (traces, compiled):
        assert set(counts[2:6]) == {counts[2]}  # DIMAT, from the end of its first round
        assert set(counts[7:]) == {counts[7]}  # WA, from its first merge
    assert traces[6] - traces[5] <= 1 and traces[7] == traces[6]  # all test images: another shape


def test_rows_come_in_order_of_time_with_the_agreed_fields(main_job):
    rows = main_job.result.history
    assert rows == main_job.rows
    expected = [("pretrain", 0, "pretrain", 1)]
    for method in ("dimat", "wa"):
        for round in (1, 2, 3):
            expected += [(method, round, "merge", round), (method, round, "train", round + 1)]
    assert [(r["method"], r["round"], r["phase"], r["epoch"]) for r in rows] == expected
    for row in rows:
        assert set(row) == set(Row.__annotations__)
        assert row["seed"] == 0
        assert row["seconds"] and row["seconds"].keys() <= PARTS
        trained = row["phase"] != "merge"
        assert (row["train_loss"] is not None) == (row["images_per_second"] is not None) == trained


def test_figures_over_agents_are_those_of_the_agents(main_job):
    for row in main_job.rows:
        agents = np.array(row["test_accuracy_agents"])
        assert agents.shape == (8,)
        np.testing.assert_array_equal(np.round(agents * 30), agents * 30)  # of 30 test images
        assert row["test_accuracy"] == pytest.approx(agents.mean())
        assert row["test_accuracy_std"] == pytest.approx(agents.std())
        assert 0 < row["test_loss"] < 10


def test_the_speed_is_that_of_training_alone(main_job):
    for row in main_job.rows:
        if row["phase"] != "merge":  # one epoch: five steps of eight images of eight agents
            images = row["images_per_second"] * row["seconds"]["train"]
            assert images == pytest.approx(320)


def test_an_agent_sends_to_two_neighbours_in_each_round(main_job):
    result = main_job.result
    bytes = 2 * communication.variables_bytes(result.setup.abstract[0])
    for row in main_job.rows:
        assert row["bytes_sent"] == bytes * row["round"]
    assert main_job.rows[0]["bytes_sent"] == 0


def test_what_comes_out_is_what_the_last_rows_say(main_job):
    result = main_job.result
    assert set(result.finals) == {("dimat", 0), ("wa", 0)}
    assert result.variables is result.finals["dimat", 0].variables
    model = result.setup.model
    mean, std = dj.datasets.channel_statistics(DATASET.train_images)
    x = dj.datasets.normalize(DATASET.test_images, mean, std)
    run = jax.jit(jax.vmap(lambda v: model.apply(v, x)[0]))
    for (method, _), final in result.finals.items():
        variables = jax.device_get(final.variables)
        last = [row for row in main_job.rows if row["method"] == method][-1]
        distance = engine.consensus_distance(variables)
        assert last["consensus_distance"] == pytest.approx(float(distance), rel=1e-5)
        correct = np.asarray(run(variables)).argmax(-1) == DATASET.test_labels
        np.testing.assert_allclose(final.test_accuracy, correct.mean(1), atol=0.021)
        used = final.permutations
        assert len(used) == (2 if method == "dimat" else 0)
        for permutations in used:
            for name, group in result.symmetries.groups.items():
                sorted_units = np.sort(permutations[name])
                np.testing.assert_array_equal(sorted_units, np.tile(range(group.size), (8, 1)))


def test_the_observer_hears_of_the_whole_run(main_job):
    assert main_job.started == [main_job.result.setup]
    heard = [*zip(main_job.labels, main_job.shares, strict=True)]
    epochs = [(label, share) for label, share in heard if "loss" in label]
    assert [share for _, share in epochs] == [pytest.approx(i / 7) for i in range(1, 8)]
    assert epochs[0][0].startswith("seed 0, pretrain, round 0, epoch 1 of 1: loss")
    assert epochs[-1][0].startswith("seed 0, wa, round 3, epoch 1 of 1: loss")
    # What is silent for a while is announced, where the epochs before it have brought the run.
    silent = [("compiling the first steps", 0.0)]
    for method, before in (("dimat", 1), ("wa", 4)):
        silent += [
            (f"seed 0, {method}, round {round}: merging", pytest.approx((before + round - 1) / 7))
            for round in (1, 2, 3)
        ]
        end = pytest.approx((before + 3) / 7)
        silent.append((f"seed 0, {method}: evaluating on all 50 test images", end))
    assert [(label, share) for label, share in heard if "loss" not in label] == silent


@pytest.mark.parametrize("options", [{"rounds": 1}, {"rounds": 0, "seeds": (0, 1)}])
def test_the_evaluation_on_all_images_is_measured_with_the_method_it_ends(monkeypatch, options):
    def make_engine(plan):
        parts = engine.make_engine(plan)

        def evaluate(variables, tests):
            time.sleep(0.5 * (tests is parts.all_tests))
            return parts.evaluate(variables, tests)

        return parts._replace(evaluate=evaluate)

    monkeypatch.setattr(simulation, "make_engine", make_engine)
    rows = quick(methods=("wa", "final_wa", "dsgd"), test_examples=30, **options).history
    last = [row["method"] != "pretrain" and row is rows[-1] for row in rows]
    for i, (row, after) in enumerate(zip(rows, rows[1:], strict=False)):
        last[i] = row["method"] not in ("pretrain", after["method"])
    if options["rounds"] == 0:  # Only the final merge has rows; wa and dsgd have none.
        assert [row["method"] for row in rows] == ["pretrain", "final_wa"] * 2
    assert [row["seconds"]["evaluate"] > 0.5 for row in rows] == last


def test_what_a_run_leaves_lies_on_the_host(main_job):
    for final in main_job.result.finals.values():
        assert {type(x) for x in jax.tree.leaves(final.variables)} == {np.ndarray}


def test_gossip_methods_say_that_they_start():
    labels = []
    observer = dj.Observer(on_phase=lambda label, share: labels.append((label, share)))
    config = small_config(methods=("dsgd",), pretrain_epochs=0, epochs_per_round=0, devices=2)
    dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=observer)
    assert ("seed 0, dsgd: starting", 0.0) in labels


def test_options_of_a_wrong_type_are_said_before_devices_are_prepared():
    config = small_config()
    object.__setattr__(config, "agents", "4")
    with pytest.raises(ValueError, match="agents must be a whole number, not '4'"):
        dj.simulate(config, dataset=DATASET)


FORMS = {
    "mlp": [(1, False), (2, False), (4, False), (8, False), (4, True)],
    "convnet": [(1, True), (2, True), (4, True), (8, True), (4, False)],
}


class Form(NamedTuple):
    """What a run in one form gives, on the host."""

    shards: dict
    start: training.AgentState
    history: list[Row]
    variables: dict


@functools.cache
def run_as(name, devices, looped) -> Form:
    """Two rounds of DIMAT, five steps each, in float64, on so many devices in this form."""
    starts = []

    def choose(*arguments):
        return choose_execution(*arguments)._replace(looped=looped)

    def make_engine(plan):
        parts = engine.make_engine(plan)

        def init(key):
            state = parts.init(key)
            starts.append(jax.device_get(state._replace(key=jax.random.key_data(state.key))))
            return state

        return parts._replace(init=init)

    with pytest.MonkeyPatch.context() as monkeypatch, jax.enable_x64(True):
        monkeypatch.setattr(setup, "choose_execution", choose)
        monkeypatch.setattr(simulation, "make_engine", make_engine)
        config = small_config(devices=devices, methods=("dimat",))
        result = dj.simulate(config, model=MODELS[name], dataset=DATASET)
        variables = jax.device_get(result.variables)
    return Form(result.setup.shards, *starts, result.history, variables)


@functools.cache
def all_methods(devices, looped) -> dj.Result:
    """Two rounds of every method, in float64, on so many devices in this form."""

    def choose(*arguments):
        return choose_execution(*arguments)._replace(looped=looped)

    with pytest.MonkeyPatch.context() as monkeypatch, jax.enable_x64(True):
        monkeypatch.setattr(setup, "choose_execution", choose)
        config = small_config(
            devices=devices, methods=tuple(METHODS), topology="fully_connected", batch_size=20
        )
        model = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
        return dj.simulate(config, model=model, dataset=DATASET)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_the_same_on_one_device_and_on_eight(method):
    one, eight = all_methods(1, False), all_methods(8, True)
    for key in ("test_loss", "train_loss", "consensus_distance", "bytes_sent"):
        first, other = (
            [row[key] for row in result.history if row["method"] == method]
            for result in (one, eight)
        )
        assert len(first) >= 2 and first == pytest.approx(other, abs=1e-6)
    first, other = (result.finals[method, 0].variables for result in (one, eight))
    assert_trees_close(jax.device_get(first), jax.device_get(other), 1e-6)


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in FORMS for form in FORMS[name][1:]]
)
def test_a_seed_gives_the_same_run_on_any_devices_in_any_form(name, form):
    first, other = run_as(name, *FORMS[name][0]), run_as(name, *form)
    assert {x.dtype for x in jax.tree.leaves(first.variables)} == {np.dtype("float64")}
    # Partitions, keys and initial weights bit for bit; the order of the data is test_training's.
    assert_trees_equal((other.shards, other.start), (first.shards, first.start))
    assert_trees_close(other.variables, first.variables, tolerance=1e-4)
    for row, expected in zip(other.history, first.history, strict=True):
        for field in row.keys() - {"seconds", "images_per_second"}:
            assert row[field] == pytest.approx(expected[field], abs=1e-4), field


def quick(**options) -> dj.Result:
    """A run of weight averaging that takes no time."""
    config = small_config(**{"methods": ("wa",), "devices": 2} | options)
    return dj.simulate(config, model=linear_softmax(), dataset=DATASET)


def test_every_seed_is_a_run_of_its_own_and_every_method_starts_from_the_same_agents():
    result = quick(methods=("wa", "dimat"), seeds=(3, 5), rounds=1)
    assert set(result.finals) == {(m, s) for m in ("wa", "dimat") for s in (3, 5)}
    first, second = (
        [{**row, "seed": None} for row in result.history if row["seed"] == seed] for seed in (3, 5)
    )
    assert [r["method"] for r in first] == ["pretrain", "wa", "wa", "dimat", "dimat"]
    assert first[0]["consensus_distance"] != second[0]["consensus_distance"]
    # Nothing is hidden in a linear model, so nothing can be permuted: both methods are one.
    assert result.symmetries.groups == {}
    for rows in (first, second):
        for wa, dimat in zip(rows[1:3], rows[3:], strict=True):
            for field in wa.keys() - {"method", "seconds", "images_per_second"}:
                assert wa[field] == dimat[field], field
    alone = quick(methods=("wa",), seeds=(5,), rounds=1)
    for row, other in zip(alone.history, second, strict=False):
        for field in row.keys() - {"seed", "seconds", "images_per_second"}:
            assert row[field] == other[field], field


def test_rounds_go_on_with_epochs_and_shards_of_their_own(monkeypatch):
    epochs, examples = [], []

    def make_engine(plan):
        parts = engine.make_engine(plan)

        def train(state, shards, key, epoch):
            epochs.append(epoch)
            examples.append(set(np.asarray(shards.labels).reshape(8, -1)[0]))
            return parts.train(state, shards, key, epoch)

        return parts._replace(train=train)

    monkeypatch.setattr(simulation, "make_engine", make_engine)
    options = {"batch_size": 4, "pretrain_epochs": 2, "epochs_per_round": 3}
    result = quick(partition="pretrain_iid_finetune_by_class", **options)
    assert [row["epoch"] for row in result.history] == [2, 2, 5, 5, 8]
    assert epochs == list(range(8))
    # Agent 0 is pretrained on all classes, and goes on with the one that is its own.
    assert examples == [{0, 1, 2, 3}] * 2 + [{0}] * 6


def test_without_rounds_there_is_pretraining_only():
    result = quick(rounds=0, pretrain_epochs=2)
    assert [(row["method"], row["epoch"]) for row in result.history] == [("pretrain", 2)]
    assert result.finals["wa", 0].test_accuracy.mean() == pytest.approx(
        result.history[0]["test_accuracy"]
    )


def test_a_time_varying_graph_goes_round_by_round():
    result = dj.simulate(
        small_config(methods=("wa",), rounds=3, epochs_per_round=0, pretrain_epochs=0),
        model=linear_softmax(),
        dataset=DATASET,
        topology=topology.one_peer_exponential(8),
    )
    distances = [row["consensus_distance"] for row in result.history if row["phase"] == "merge"]
    assert distances[0] > distances[1] > 0.01 and distances[2] < 1e-5  # three rounds are exact


def test_momentum_goes_on_after_a_merge_only_if_asked():
    fresh, kept = (
        quick(optimizer_after_merge=choice, rounds=1).history for choice in ("fresh", "kept")
    )
    assert fresh[1]["test_loss"] == kept[1]["test_loss"]  # the same up to the merge
    assert fresh[2]["test_loss"] != kept[2]["test_loss"]


def softmax_training(weights, images, labels, optimizer, steps, rate):
    """One agent's full-batch training of `linear_softmax` in NumPy, its optimizer fresh."""
    x, moments, squares = np.c_[images, np.ones(len(images))], 0.0, 0.0
    for step in range(1, steps + 1):
        logits = x @ weights
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = x.T @ (shares - np.eye(4)[labels]) / len(x)
        moments = 0.9 * moments + 0.1 * gradient
        squares = 0.999 * squares + 0.001 * gradient**2
        direction = moments / (1 - 0.9**step) / (np.sqrt(squares / (1 - 0.999**step)) + 1e-8)
        weights = weights - rate * (direction if optimizer == "adam" else gradient)
    return weights


def weights_of(variables):
    """The agents' weights, the bias as a last row."""
    params = jax.device_get(variables["params"])
    return np.concatenate([params["kernel"], params["bias"][:, None]], 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_methods_that_train_apart_in_between_are_what_their_papers_say(optimizer):
    options = dict(batch_size=40, pretrain_epochs=0, optimizer=optimizer, learning_rate=0.01)
    with jax.enable_x64(True):
        start = weights_of(quick(rounds=0, **options).variables)
        methods = ("local_sgd", "fedavg", "final_wa", "final_dimat")
        result = quick(methods=methods, epochs_per_round=3, **options)
        mean, std = dj.datasets.channel_statistics(DATASET.train_images)
        images = np.asarray(dj.datasets.normalize(DATASET.train_images, mean, std), np.float64)
        images = images.reshape(len(images), -1)
        found = {m: weights_of(result.finals[m, 0].variables) for m in methods}
    shards = result.setup.shards[0][1]

    def trained(weights, steps):
        return np.stack(
            [
                softmax_training(w, images[s], DATASET.train_labels[s], optimizer, steps, 0.01)
                for w, s in zip(weights, shards, strict=True)
            ]
        )

    def averaged(weights):
        return np.broadcast_to(weights.mean(0), weights.shape)

    merged_each_round = trained(averaged(trained(averaged(start), 3)), 3)
    for method in ("local_sgd", "fedavg"):  # two rounds of a merge and three steps
        np.testing.assert_allclose(found[method], merged_each_round, atol=1e-5)
    for method in ("final_wa", "final_dimat"):  # a linear model has no units to align
        np.testing.assert_allclose(found[method], averaged(trained(start, 6)), atol=1e-5)
    assert np.abs(merged_each_round - averaged(trained(start, 6))).max() > 1e-3


def test_without_recomputation_a_merge_averages_statistics_with_the_rest():
    def run(rounds):
        options = dict(optimizer="adam", learning_rate=1e-3, epochs_per_round=0, devices=2)
        config = small_config(methods=("wa",), rounds=rounds, recompute_statistics=False, **options)
        return jax.device_get(dj.simulate(config, model=MODELS["mlp"], dataset=DATASET).variables)

    matrix = topology.ring(8).mixing_matrix()
    before, after = run(0), run(1)
    expected = jax.tree.map(lambda x: np.tensordot(matrix, x, 1), before)
    assert_trees_close(after, expected, 1e-5)
    assert np.ptp(before["batch_stats"]["BatchNorm_0"]["mean"], axis=0).max() > 1e-3


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(ValueError, match=r"loss of agent \d was not finite at step 2: a smaller"):
        quick(learning_rate=1e38)


def test_the_agent_that_diverged_first_is_named():
    simulation.check_finite(np.full(3, -1), np.full(3, True))
    with pytest.raises(ValueError, match="agent 2 was not finite at step 1"):
        simulation.check_finite(np.array([-1, 5, 0, 3]), np.full(4, False))


@pytest.mark.parametrize("method", ["wm", "cdsgd"])
def test_a_last_step_that_diverges_ends_the_run(method):
    # Of one step an epoch, before a merge and at the very end: no loss is taken after it.
    options = dict(batch_size=40, pretrain_epochs=0, rounds=1, optimizer="sgd")
    with pytest.raises(simulation.Diverged, match=r"parameters of agent \d are not finite"):
        quick(methods=(method,), learning_rate=1e38, **options)


def test_networks_too_far_gone_to_be_compared_have_diverged():
    options = dict(batch_size=40, pretrain_epochs=1, rounds=1, optimizer="sgd", devices=2)
    config = small_config(methods=("dimat",), learning_rate=1e15, **options)
    model = dj.models.mlp(num_classes=4, width=0.03, depth=2)
    with pytest.raises(simulation.Diverged, match="scores of group"):
        dj.simulate(config, model=model, dataset=DATASET)


def test_a_run_may_go_on_without_a_method_that_diverged():
    gone = []
    config = small_config(
        methods=("dsgd", "wa"), devices=2, rounds=1, method_learning_rate=(("dsgd", 1e38),)
    )
    observer = dj.Observer(on_diverged=lambda method, error: gone.append((method, type(error))))
    result = dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=observer)
    assert gone == [("dsgd", simulation.Diverged)] and set(result.finals) == {("wa", 0)}
    assert result.variables is result.finals["wa", 0].variables
    assert [row["method"] for row in result.history].count("pretrain") == 1


def test_centralized_training_has_every_agents_examples_in_each_lane():
    plan = setup.prepare(small_config(partition="by_class"), linear_softmax(), DATASET)
    apart, pooled, again = (
        np.asarray(engine.place_shards(plan, 0, 1, pooled=p).labels).reshape(8, -1)
        for p in (False, True, True)
    )
    assert all(len(set(labels)) == 1 for labels in apart)
    assert all(len(set(labels)) == 4 for labels in pooled)
    np.testing.assert_array_equal(np.sort(apart.ravel()), np.sort(pooled.ravel()))
    np.testing.assert_array_equal(pooled, again)
    dealt = []

    def place(*arguments, pooled=False):
        dealt.append(pooled)
        return engine.place_shards(*arguments, pooled=pooled)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(simulation, "place_shards", place)
        quick(methods=("centralized", "cdsgd"), rounds=0)
    assert dealt == [False, False, True]


def test_the_share_done_grows_evenly_to_one():
    config = small_config(pretrain_epochs=3, rounds=2, epochs_per_round=2, seeds=(7, 1))
    shares = []
    for seed in (7, 1):
        shares += [simulation.share_done(config, seed, "pretrain", 0, e) for e in (1, 2, 3)]
        for method in ("dimat", "wa"):
            shares += [
                simulation.share_done(config, seed, method, round, epoch)
                for round in (1, 2)
                for epoch in (1, 2)
            ]
    np.testing.assert_allclose(shares, np.arange(1, 23) / 22)


def seed_run(**options) -> tuple[simulation.SeedRun, engine.Shards]:
    plan = setup.prepare(small_config(devices=4, **options), linear_softmax(), DATASET)
    run = simulation.SeedRun(plan, None, 0, setup.seed_keys(0), None, None)
    return run, engine.place_shards(plan, 0, 1)


def images_on_device(batches, agent, lanes):
    """What an agent sees through its batches: bytes of images, from its own device only."""
    shards = {
        shard.device.id: np.asarray(shard.data) for shard in batches.images.addressable_shards
    }
    rows = np.asarray(batches.rows)[agent].ravel()
    return [shards[agent // lanes][row].tobytes() for row in rows]


def test_agents_match_and_count_on_images_of_their_own():
    run, shards = seed_run(
        matching_images=24, statistics_images=1000, topology="one_peer_exponential"
    )
    first, second = (
        simulation.merge_round(run, run.setup.topology, shards, round) for round in (1, 2)
    )
    assert first.matching.rows.shape == (8, 1, 24) and first.statistics.rows.shape == (8, 1, 40)
    assert not np.array_equal(first.matching.rows, second.matching.rows)  # drawn anew
    own = DATASET.train_images[run.setup.shards[0][1]]
    for agent in range(8):
        allowed = {image.tobytes() for image in own[agent]}
        assert set(images_on_device(first.statistics, agent, 2)) == allowed
        matched = images_on_device(first.matching, agent, 2)
        assert len(set(matched)) == 24 and set(matched) <= allowed
    for round, found in enumerate((first, second)):
        sources, weights = topology.neighbor_slots(run.setup.topology, round)
        np.testing.assert_array_equal(found.sources, sources)
        np.testing.assert_array_equal(found.weights, weights)
        assert not found.first_frame


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({"matching_data": "shared"}, range(8)),
        ({"merge_frame": "first", "topology": "fully_connected"}, range(1)),
        (
            {"merge_frame": "first", "topology": "fully_connected", "matching_data": "shared"},
            range(8),
        ),
    ],
)
def test_common_images_are_the_same_for_all(options, pool):
    run, shards = seed_run(matching_images=24, **options)
    round = simulation.merge_round(run, run.setup.topology, shards, 1)
    own = DATASET.train_images[run.setup.shards[0][1]]
    allowed = {image.tobytes() for agent in pool for image in own[agent]}
    seen = [images_on_device(round.matching, agent, 2) for agent in range(8)]
    assert all(images == seen[0] for images in seen)
    assert len(set(seen[0])) == 24 and set(seen[0]) <= allowed
    assert round.first_frame == ("merge_frame" in options)
    # Statistics come from each agent's own images, but where data are shared.
    agents = range(8) if "matching_data" in options else [3]
    found = set(images_on_device(round.statistics, 3, 2))
    assert found <= {x.tobytes() for agent in agents for x in own[agent]}
    assert (found <= {x.tobytes() for x in own[3]}) == ("matching_data" not in options)


def test_shared_statistics_are_the_same_wherever_agents_are():
    options = dict(matching_data="shared", methods=("wa",), topology="fully_connected", rounds=1)
    result = dj.simulate(
        small_config(devices=4, epochs_per_round=0, **options), model=MODELS["mlp"], dataset=DATASET
    )
    for leaf in jax.tree.leaves(result.variables["batch_stats"]):
        np.testing.assert_allclose(leaf, np.tile(leaf[:1], (8, 1)), atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 127, 128, 129, 300, 1024, 1250])
def test_images_are_split_into_batches_of_one_size(number):
    batches, size = simulation.split_evenly(number)
    assert size <= simulation.FORWARD_BATCH
    assert number - batches < batches * size <= number
