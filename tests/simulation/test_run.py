"""The run as a whole: its rows, what its observer hears, and what its options change in it."""

import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.sessions import finish, session_as, timeless
from helpers.small_runs import (
    Counter,
    assert_trees_close,
    compilations,
    counted,
    linear_softmax,
    noise,
    small_config,
)

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm, communication
from dimat_jax.metrics import Row
from dimat_jax.models.convnet import ConvNet
from dimat_jax.simulation.measure import Diverged, consensus_distance

DATASET = noise(examples=320, tests=50, size=8)
MLP = dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")
CONVNET = dj.from_linen(ConvNet(num_classes=4, channels=(3, 4), norm="batch"))
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
    """The main job in small: DIMAT and WA on a ring, a convnet, two agents in turn on a device."""
    model, traced = counted(CONVNET)
    config = small_config(rounds=3, devices=4, test_examples=30)
    return watch(config, model, traced, dataset=DATASET)


def test_nothing_is_traced_or_compiled_from_the_second_round_on(main_job):
    traces, compiled = main_job.traces, main_job.compilations
    assert traces[2] > traces[0] > 0 and compiled[2] > compiled[0] > 0
    for counts in (traces, compiled):
        assert set(counts[2:6]) == {counts[2]}  # DIMAT, from the end of its first round
        assert set(counts[7:]) == {counts[7]}  # WA, from its first merge
    assert traces[6] - traces[5] <= 1 and traces[7] == traces[6]  # all test examples: another shape


def test_rows_come_in_order_of_time_with_the_agreed_fields(main_job):
    rows = main_job.result.history
    assert rows == main_job.rows
    expected = [("pretrain", 0, "pretrain", 1)]
    for method in ("dimat", "wa"):
        for round in (1, 2, 3):
            expected += [(method, round, "merge", round), (method, round, "train", round + 1)]
    assert [(r["method"], r["round"], r["phase"], r["epoch"]) for r in rows] == expected
    for row in rows:
        assert set(row) == Row.__required_keys__
        assert row["seed"] == 0
        assert row["seconds"] and row["seconds"].keys() <= PARTS
        trained = row["phase"] != "merge"
        assert (row["train_loss"] is not None) == (row["images_per_second"] is not None) == trained


def test_figures_over_agents_are_those_of_the_agents(main_job):
    for row in main_job.rows:
        agents = np.array(row["test_accuracy_agents"])
        assert agents.shape == (8,)
        np.testing.assert_array_equal(np.round(agents * 30), agents * 30)  # of 30 test examples
        assert row["test_accuracy"] == pytest.approx(agents.mean())
        assert row["test_accuracy_std"] == pytest.approx(agents.std(ddof=1))
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
    task = result.setup.task
    mean, std = dj.datasets.channel_statistics(DATASET.train_images)
    x = dj.datasets.normalize(DATASET.test_images, mean, std)
    run = jax.jit(jax.vmap(lambda v: task.outputs(v, {"inputs": x})))
    for (method, _), final in result.finals.items():
        variables = jax.device_get(final.variables)
        last = [row for row in main_job.rows if row["method"] == method][-1]
        distance = consensus_distance(variables)
        assert last["consensus_distance"] == pytest.approx(float(distance), rel=1e-5)
        correct = np.asarray(run(variables)).argmax(-1) == DATASET.test_labels
        np.testing.assert_allclose(final.measured["accuracy"], correct.mean(1), atol=0.021)
        used = final.permutations
        assert len(used) == (2 if method == "dimat" else 0)
        for permutations in used:
            for name, group in result.symmetries.groups.items():
                sorted_units = np.sort(permutations[name])
                np.testing.assert_array_equal(sorted_units, np.tile(range(group.size), (8, 1)))


def test_the_observer_hears_of_the_whole_run(main_job):
    assert main_job.started == [main_job.result.setup]
    heard = [*zip(main_job.labels, main_job.shares, strict=True)]
    before = ["starting JAX", "reading the data set noise"]
    assert heard[:2] == [(label, 0.0) for label in before]
    assert heard[2] == ("finding the permutation groups of the model own", 0.0)
    assert heard[3] == ("seed 0: initial weights", 0.0)
    epochs = [(label, share) for label, share in heard if "loss" in label]
    assert len(epochs) == 7
    assert epochs[0][0].startswith("seed 0, pretraining: epoch 1 of 1, loss ")
    assert epochs[-1][0].startswith("seed 0, WA, round 3: epoch 1 of 1, loss ")
    # What has not been seen before is announced, and so are its parts.
    for method in ("DIMAT", "WA"):
        assert f"seed 0, {method}, round 1: merging" in main_job.labels
        assert f"seed 0, {method}, round 1: merging, averaging" in main_job.labels
    for part in ("comparing units", "assigning units", "recomputing statistics", "compiling"):
        assert f"seed 0, DIMAT, round 1: merging, {part}" in main_job.labels
    assert "seed 0, DIMAT, round 3: evaluating on all 50 test examples" in main_job.labels
    shares = main_job.shares
    assert 0 < shares[-1] < 1 and all(0 <= share < 1 for share in shares)


@pytest.mark.parametrize("options", [{"rounds": 1}, {"rounds": 0, "seeds": (0, 1)}])
def test_the_evaluation_on_all_images_is_measured_with_the_method_it_ends(options):
    config = small_config(
        methods=("wa", "final_wa", "dsgd"), test_examples=30, devices=2, **options
    )
    session = session_as(config, linear_softmax(), DATASET)
    parts = session.parts

    def evaluate(variables, tests):
        time.sleep(0.5 * (tests is parts.all_tests))
        return parts.evaluate(variables, tests)

    rows = finish(session._replace(parts=parts._replace(evaluate=evaluate))).rows
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
    observer = dj.Observer(on_phase=lambda label, share: labels.append(label))
    config = small_config(methods=("dsgd",), pretrain_epochs=0, epochs_per_round=0, devices=2)
    dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=observer)
    assert "seed 0, DSGD: starting" in labels


def test_options_of_a_wrong_type_are_said_before_devices_are_prepared():
    config = small_config()
    object.__setattr__(config, "agents", "4")
    with pytest.raises(ValueError, match="agents must be a whole number, not '4'"):
        dj.simulate(config, dataset=DATASET)


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


def test_rounds_go_on_with_epochs_and_shards_of_their_own():
    epochs, examples = [], []
    options = {"batch_size": 4, "pretrain_epochs": 2, "epochs_per_round": 3, "methods": ("wa",)}
    config = small_config(partition="pretrain_iid_finetune_by_class", devices=2, **options)
    session = session_as(config, linear_softmax(), DATASET)

    def train(state, shards, key, epoch):
        epochs.append(epoch)
        examples.append(set(np.asarray(shards.examples["labels"]).reshape(8, -1)[0]))
        return session.parts.train(state, shards, key, epoch)

    rows = finish(session._replace(parts=session.parts._replace(train=train))).rows
    assert [row["epoch"] for row in rows] == [2, 2, 5, 5, 8]
    assert epochs == list(range(8))
    # Agent 0 is pretrained on all classes, and goes on with the one that is its own.
    assert examples == [{0, 1, 2, 3}] * 2 + [{0}] * 6


def test_without_rounds_there_is_pretraining_only():
    result = quick(rounds=0, pretrain_epochs=2)
    assert [(row["method"], row["epoch"]) for row in result.history] == [("pretrain", 2)]
    assert result.finals["wa", 0].measured["accuracy"].mean() == pytest.approx(
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
    # Two rounds of a merge and three steps; FedAvg ends with the server's model.
    np.testing.assert_allclose(found["local_sgd"], merged_each_round, atol=1e-5)
    np.testing.assert_allclose(found["fedavg"], averaged(merged_each_round), atol=1e-5)
    for method in ("final_wa", "final_dimat"):  # a linear model has no units to align
        np.testing.assert_allclose(found[method], averaged(trained(start, 6)), atol=1e-5)
    assert np.abs(merged_each_round - averaged(trained(start, 6))).max() > 1e-3


def test_without_recomputation_a_merge_averages_statistics_with_the_rest():
    def run(rounds):
        options = dict(optimizer="adam", learning_rate=1e-3, epochs_per_round=0, devices=2)
        config = small_config(methods=("wa",), rounds=rounds, recompute_statistics=False, **options)
        return jax.device_get(dj.simulate(config, model=MLP, dataset=DATASET).variables)

    matrix = topology.ring(8).mixing_matrix()
    before, after = run(0), run(1)
    expected = jax.tree.map(lambda x: np.tensordot(matrix, x, 1), before)
    assert_trees_close(after, expected, 1e-5)
    assert np.ptp(before["batch_stats"]["BatchNorm_0"]["mean"], axis=0).max() > 1e-3


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(
        ValueError, match=r"loss of agent \d was not finite at step 2: the learning"
    ):
        quick(learning_rate=1e38)


@pytest.mark.parametrize("method", ["wm", "cdsgd"])
def test_a_last_step_that_diverges_ends_the_run(method):
    # Of one step an epoch, before a merge and at the very end: no loss is taken after it.
    options = dict(batch_size=40, pretrain_epochs=0, rounds=1, optimizer="sgd")
    with pytest.raises(Diverged, match=r"parameters of agent \d are not finite"):
        quick(methods=(method,), learning_rate=1e38, **options)


@pytest.mark.slow
def test_networks_too_far_gone_to_be_compared_have_diverged():
    options = dict(batch_size=40, pretrain_epochs=1, rounds=1, optimizer="sgd", devices=2)
    config = small_config(methods=("dimat",), learning_rate=1e15, **options)
    model = dj.models.mlp(num_classes=4, width=0.03, depth=2)
    with pytest.raises(Diverged, match="scores of group"):
        dj.simulate(config, model=model, dataset=DATASET)


def test_a_run_whose_pretraining_diverged_ends_whatever_the_observer_says():
    observer = dj.Observer(on_diverged=lambda method, error: None)
    config = small_config(methods=("wa",), devices=2, learning_rate=1e38)
    with pytest.raises(Diverged, match="loss of agent"):
        dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=observer)


def test_a_run_may_go_on_without_a_method_that_diverged():
    gone = []
    config = small_config(
        methods=("dsgd", "wa"), devices=2, rounds=1, method_learning_rate=(("dsgd", 1e38),)
    )
    observer = dj.Observer(on_diverged=lambda method, error: gone.append((method, type(error))))
    result = dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=observer)
    assert gone == [("dsgd", Diverged)] and set(result.finals) == {("wa", 0)}
    assert result.variables is result.finals["wa", 0].variables
    assert [row["method"] for row in result.history].count("pretrain") == 1


class Stopped(NamedTuple):
    """What an observer was given when a run ended before its end."""

    result: dj.Result
    reason: str


def stop_in(config, **observer) -> Stopped:
    """Runs until it stops; what the observer is given."""
    stopped = []
    watching = dj.Observer(on_stop=lambda *given: stopped.append(Stopped(*given)), **observer)
    with pytest.raises((KeyboardInterrupt, Diverged)):
        dj.simulate(config, model=linear_softmax(), dataset=DATASET, observer=watching)
    (found,) = stopped
    return found


def test_an_interruption_goes_on_after_the_observer_was_given_what_there_is():
    def interrupt(row):
        if row["method"] == "dsgd":
            raise KeyboardInterrupt

    config = small_config(methods=("wa", "dsgd"), devices=2, rounds=2)
    found = stop_in(config, on_row=interrupt)
    assert [row["method"] for row in found.result.history] == ["pretrain", *["wa"] * 4, "dsgd"]
    assert set(found.result.finals) == {("wa", 0)}
    assert found.reason == ("Interrupted in seed 0, DSGD, round 1: evaluating on 50 test examples.")


def test_a_method_that_diverges_ends_and_of_a_run_that_did_there_is_what_there_is():
    config = small_config(
        methods=("wa", "dsgd"), devices=2, rounds=1, method_learning_rate=(("dsgd", 1e38),)
    )
    found = dj.simulate(config, model=linear_softmax(), dataset=DATASET)
    assert set(found.finals) == {("wa", 0)} and set(found.diverged) == {("dsgd", 0)}
    assert [row["method"] for row in found.history if "diverged" in row] == ["dsgd"]
    assert found.history[-1]["diverged"].startswith("seed 0, DSGD, round 1: epoch 1 of 1: The")
    nothing = stop_in(small_config(methods=("wa",), devices=2, learning_rate=1e38))
    assert nothing.result.history == [] and nothing.result.variables is None


def test_only_a_method_with_all_data_in_one_place_is_dealt_everyones_examples():
    dealt = []
    config = small_config(methods=("centralized", "cdsgd"), rounds=1, devices=2)
    session = session_as(config, linear_softmax(), DATASET)

    def shards(seed, part, pooled):
        dealt.append((part, pooled))
        return session.shards(seed, part, pooled)

    finish(session._replace(shards=shards))
    assert list(dict.fromkeys(dealt)) == [(0, False), (1, True), (1, False)]


def test_shared_statistics_are_the_same_wherever_agents_are():
    options = dict(statistics_data="shared", methods=("wa",), topology="fully_connected", rounds=1)
    result = dj.simulate(
        small_config(devices=4, epochs_per_round=0, **options), model=MLP, dataset=DATASET
    )
    for leaf in jax.tree.leaves(result.variables["batch_stats"]):
        np.testing.assert_allclose(leaf, np.tile(leaf[:1], (8, 1)), atol=1e-6)


def test_a_method_of_ones_own_runs_beside_the_others_and_changes_nothing_global():
    before = dict(METHODS)
    mine = Algorithm("Mine", merge=METHODS["local_sgd"].merge)
    config = small_config(methods=("local_sgd",), devices=2)
    found = dj.simulate(config, model=linear_softmax(), dataset=DATASET, methods={"mine": mine})
    assert found.setup.config.methods == ("local_sgd", "mine") == tuple(found.setup.methods)
    assert set(found.finals) == {("local_sgd", 0), ("mine", 0)}
    own, other = (
        [timeless(row) | {"method": ""} for row in found.history if row["method"] == name]
        for name in ("mine", "local_sgd")
    )
    assert own == other != []
    assert dict(METHODS) == before and config.methods == ("local_sgd",)


def assert_a_relabelling(method, other, optimizer, choice, **options):
    """A merge without neighbours that moves units changes nothing, nor does what is remembered."""
    own = options.pop("topology", None)
    config = small_config(
        agents=4,
        methods=(method, other),
        optimizer=optimizer,
        optimizer_after_merge=choice,
        learning_rate=0.01,
        devices=2,
        **({} if own else {"topology": "disconnected"}),
        **options,
    )
    result = dj.simulate(config, model=MLP, dataset=DATASET, topology=own)
    moved, stayed = (
        [row for row in result.history if row["method"] == name] for name in (method, other)
    )
    assert len(moved) == len(stayed) == 4
    for row, expected in zip(moved, stayed, strict=True):
        for field in ("test_loss", "train_loss", "test_accuracy_agents"):
            assert row[field] == pytest.approx(expected[field], abs=1e-5), field
    with pytest.raises(AssertionError):  # the units were moved
        assert_trees_close(
            *(result.finals[name, 0].variables["params"] for name in (method, other)), 1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("choice", ["fresh", pytest.param("kept", marks=pytest.mark.slow)])
def test_without_edges_a_universe_is_a_relabelling(optimizer, choice, x64):
    assert_a_relabelling("universe", "wa", optimizer, choice)


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_without_weight_on_neighbours_the_reference_frame_is_a_relabelling(optimizer, x64):
    nearly = np.full((4, 4), 1e-12) + (1 - 4e-12) * np.eye(4)  # all are in agent 0's tree
    graph = topology.from_matrix(nearly, "nearly disconnected")
    assert_a_relabelling("dimat", "wa", optimizer, "kept", topology=graph, merge_frame="reference")
