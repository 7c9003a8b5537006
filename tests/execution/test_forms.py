"""The two forms in which what one agent does becomes what all agents do."""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import (
    assert_trees_equal,
    compilations,
    equations,
    execution_of,
    noise,
    normaliser,
    traced_through,
)

import dimat_jax as dj
from dimat_jax.execution import forms
from dimat_jax.execution.kernels import SWITCH
from dimat_jax.execution.placement import AGENTS, REPLICATED, pad, place, replicate, shard
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging import statistics
from dimat_jax.training.evaluation import evaluate_update, zero_score
from dimat_jax.training.local import train_update
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import init_population

AGENT_COUNT, ROWS, TIMES = 8, 3, 5
FORMS = [
    execution_of(agents, devices, sequential, at_once)
    for agents, devices, at_once in [
        (8, 1, None),
        (8, 2, 2),
        (8, 4, None),
        (8, 8, None),
        (5, 3, None),
        (7, 2, 2),
        (11, 4, 3),
    ]
    for sequential in (True, False)
]


def update(carry, operands, resident):
    """Exact in integers, and different for every agent, step and row; carries a key as well."""
    row = operands["rows"][carry["step"] % ROWS]
    total = carry["total"] * 3 + operands["own"] + resident[row]
    key = jax.random.fold_in(carry["key"], carry["step"])
    return {"total": total, "step": carry["step"] + 1, "key": key}


def inputs(execution, resident_spec):
    """A carry, operands and resident rows; where they lie on each device, lanes have their own."""
    rng = np.random.default_rng(0)
    agents = execution.agents
    rows = rng.permuted(np.tile(np.arange(ROWS), (agents, 1)), axis=1).astype(np.int32)
    values = rng.integers(0, 9, (agents, ROWS, 2)).astype(np.int32)
    own = rng.integers(0, 9, (agents, 2)).astype(np.int32)
    rows = pad(execution, rows)
    if resident_spec == AGENTS:
        lane = np.arange(execution.all_lanes, dtype=np.int32) % execution.lanes
        rows = rows + ROWS * lane[:, None]
        resident = shard(execution, pad(execution, values).reshape(-1, 2))
    else:
        resident = replicate(execution, values[0])
    carry = {
        "total": jnp.arange(agents * 2, dtype=jnp.int32).reshape(agents, 2),
        "step": jnp.zeros(agents, jnp.int32),
        "key": jax.random.split(jax.random.key(1), agents),
    }
    carry, own = place(execution, (carry, own))
    return carry, {"rows": shard(execution, rows), "own": own}, resident


def expected_totals(execution, operands, resident_spec, resident, times):
    """The same in plain loops over lanes and steps."""
    rows, own, values = map(np.asarray, (operands["rows"], operands["own"], resident))
    totals = np.arange(execution.agents * 2).reshape(-1, 2)[execution.agent_of_lane]
    for lane in range(execution.all_lanes):
        first = lane // execution.lanes * execution.lanes * ROWS if resident_spec == AGENTS else 0
        for step in range(times):
            row = first + rows[lane, step % ROWS]
            totals[lane] = totals[lane] * 3 + own[lane] + values[row]
    return totals


def name_of(execution):
    kind = "sequential" if execution.sequential else "scanned"
    return f"{execution.agents}-on-{execution.mesh.size}-{execution.lanes_at_once}-{kind}"


@pytest.mark.parametrize("execution", FORMS, ids=name_of)
def test_every_form_does_what_plain_loops_do(execution):
    spec = AGENTS if execution.mesh.size < 8 else REPLICATED
    carry, operands, resident = inputs(execution, spec)
    expected = expected_totals(execution, operands, spec, resident, TIMES)
    keys, carry_sharding = carry["key"], carry["total"].sharding
    for step in range(TIMES):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    run = forms.repeat(execution, update, Stopwatch(), spec)
    result = run(carry, operands, resident, TIMES)
    np.testing.assert_array_equal(result["total"], expected)
    np.testing.assert_array_equal(result["step"], TIMES)
    np.testing.assert_array_equal(jax.random.key_data(result["key"]), jax.random.key_data(keys))
    assert result["total"].sharding.is_equivalent_to(carry_sharding, ndim=2)


@pytest.mark.parametrize("execution", FORMS, ids=name_of)
def test_a_loop_of_steps_and_exchanges_does_what_plain_loops_do(execution):
    """A step of each agent, then all of them get what the lane before them has."""
    carry, operands, resident = inputs(execution, REPLICATED)
    lanes, stopwatch = execution.all_lanes, Stopwatch()
    before = np.roll(np.arange(lanes), 1)
    rows, own, values = map(np.asarray, (operands["rows"], operands["own"], resident))
    expected = np.asarray(carry["total"])
    for step in range(TIMES):
        expected = expected * 3 + own + values[rows[:, step % ROWS]]
        expected = expected[before]

    def roll(carry, shift):
        return carry | {"total": jnp.roll(carry["total"], shift, 0)}

    step = forms.lift(execution, update, stopwatch)
    rolling = forms.exchange(execution, roll, stopwatch, donate=1)

    def body(carry, operands, resident, shared):
        return rolling(step(carry, operands, resident), shared)

    run = forms.loop(execution, body, stopwatch)
    result = run(carry, operands, resident, replicate(execution, jnp.int32(1)), TIMES)
    np.testing.assert_array_equal(result["total"], expected)
    assert len(result["total"].addressable_shards) == execution.mesh.size


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_items_are_gone_through_in_order(sequential, number):
    execution = execution_of(AGENT_COUNT, 2, sequential)
    items = [{"x": jnp.full(2, i)} for i in range(number)]
    carry, results = forms.for_each(
        execution, lambda total, item: (total * 10 + item["x"], total), jnp.ones(2), items
    )
    expected = [np.full(2, float("1012"[: i + 1])) for i in range(number + 1)]
    np.testing.assert_array_equal(carry, expected[-1])
    assert_trees_equal(results, [jnp.asarray(x, jnp.float32) for x in expected[:-1]])


@pytest.mark.parametrize("sequential", [True, False])
def test_an_update_is_traced_and_compiled_once_and_its_carry_donated(sequential):
    chex.clear_trace_counter()
    execution = execution_of(AGENT_COUNT, 2, sequential)
    run = forms.repeat(execution, chex.assert_max_traces(update, n=1), Stopwatch())
    carry, operands, resident = inputs(execution, REPLICATED)
    expected = expected_totals(execution, operands, REPLICATED, resident, 3 * TIMES)
    compiled = []
    for _ in range(3):
        given = carry
        with compilations() as counter:
            carry = run(given, operands, resident, TIMES)
        compiled.append(counter.count)
        assert all(x.is_deleted() for x in jax.tree.leaves(given))
        assert not any(x.is_deleted() for x in jax.tree.leaves((operands, resident)))
    assert compiled[0] > 0 and compiled[1:] == [0, 0]
    np.testing.assert_array_equal(carry["total"], expected)


def updates_of(model, dataset):
    """Everything that runs a model over many batches: its update, carry, operands, resident."""
    normalise = normaliser(dataset)
    images = jnp.asarray(dataset.train_images[: AGENT_COUNT * ROWS])
    labels = jnp.asarray(dataset.train_labels[: AGENT_COUNT * ROWS])
    rows = jnp.zeros((AGENT_COUNT, 1, ROWS), jnp.int32)
    optimizer = OPTIMIZERS["momentum"]()
    state = jax.eval_shape(
        lambda key: init_population(model, optimizer, key, AGENT_COUNT, images.shape[1:]),
        jax.random.key(0),
    )
    train = train_update(model, optimizer, lambda step: 0.1, lambda key, images: normalise(images))
    evaluate = evaluate_update(model, normalise)
    score = jax.eval_shape(lambda: zero_score(AGENT_COUNT, 4))
    tests = images[None], labels[None]
    total = statistics.StatisticsMean(state.variables["batch_stats"], score.batch)
    summing = statistics.statistics_update(model, normalise)
    return {
        "train": (train, state, rows, (images, labels)),
        "evaluate": (evaluate, score, state.variables, tests),
        "statistics": (summing, total, (state.variables, rows), images),
    }


def convolutions(execution, update, *arguments):
    """The convolutions of two steps: their groups, and whether a loop is around them."""
    run = forms.repeat(execution, update, Stopwatch())
    jaxpr = jax.make_jaxpr(lambda *args: run(*args, 2))(*arguments).jaxpr
    found = []
    for eqn, inside in equations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
            found.append((max(groups), bool({"scan", "while"} & set(inside))))
    return found


@pytest.mark.parametrize("name", ["train", "evaluate", "statistics"])
def test_the_sequential_form_has_no_grouped_convolution_and_none_in_a_loop(name, monkeypatch):
    traced_through(monkeypatch)
    monkeypatch.setenv(SWITCH, "0")
    case = updates_of(dj.models.convnet(num_classes=4, width=0.25), noise(examples=24))[name]
    in_sequence = convolutions(execution_of(AGENT_COUNT, 4, sequential=True), *case)
    passes = 3 if name != "train" else 3 + 5  # the first layer's input needs no gradient
    assert in_sequence == [(1, False)] * (2 * 2 * passes)  # two steps of two lanes
    scanned = convolutions(execution_of(AGENT_COUNT, 4, sequential=False), *case)
    assert len(scanned) == passes and all(groups == 2 and loop for groups, loop in scanned)


def test_map_agents_is_a_function_of_each_agent():
    execution = execution_of(AGENT_COUNT, 4)
    add = forms.map_agents(execution, lambda a, b: a + b.sum(), Stopwatch(), donate=0)
    first = place(execution, jnp.arange(8.0))
    rows = place(execution, jnp.arange(16.0).reshape(8, 2))
    np.testing.assert_array_equal(add(first, rows), np.arange(8) + 4 * np.arange(8) + 1)
    assert first.is_deleted() and not rows.is_deleted()


def test_threads_are_shared_out_among_the_devices_of_a_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert [forms.threads_each(execution_of(8, n)) for n in (1, 2, 4, 8)] == [6, 3, 1, 1]
