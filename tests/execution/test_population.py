"""Where agents live, and the two forms in which an update is lifted to all of them."""

import os
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimat_jax.execution.population import AGENTS, REPLICATED
from helpers.small_runs import (
    compilations,
    equations,
    execution_of,
    noise,
    normaliser,
    traced_through,
)

import dimat_jax as dj
from dimat_jax.execution import population
from dimat_jax.execution.kernels import SWITCH
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging import statistics
from dimat_jax.training import local as training

AGENT_COUNT, ROWS, TIMES = 8, 3, 5
FORMS = [(devices, looped) for devices in (1, 2, 4, 8) for looped in (True, False)]


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
    values = rng.integers(0, 9, (agents * ROWS, 2)).astype(np.int32)
    own = rng.integers(0, 9, (agents, 2)).astype(np.int32)
    if resident_spec == AGENTS:
        rows = rows + ROWS * (np.arange(agents, dtype=np.int32) % execution.lanes)[:, None]
        resident = population.spread(execution, values)
    else:
        resident = population.replicate(execution, values[:ROWS])
    carry = {
        "total": jnp.arange(agents * 2, dtype=jnp.int32).reshape(agents, 2),
        "step": jnp.zeros(agents, jnp.int32),
        "key": jax.random.split(jax.random.key(1), agents),
    }
    operands = {"rows": rows, "own": own}
    return *population.spread(execution, (carry, operands)), resident


def expected_totals(execution, operands, resident_spec, resident, times):
    """The same in plain loops over agents and steps."""
    rows, own, values = map(np.asarray, (operands["rows"], operands["own"], resident))
    totals = np.arange(execution.agents * 2).reshape(-1, 2)
    for agent in range(execution.agents):
        first = agent // execution.lanes * execution.lanes * ROWS if resident_spec == AGENTS else 0
        for step in range(times):
            row = first + rows[agent, step % ROWS]
            totals[agent] = totals[agent] * 3 + own[agent] + values[row]
    return totals


@pytest.mark.parametrize(("devices", "looped"), FORMS)
def test_every_form_does_what_plain_loops_do(devices, looped):
    spec = AGENTS if devices < 8 else REPLICATED
    execution = execution_of(AGENT_COUNT, devices, looped)
    carry, operands, resident = inputs(execution, spec)
    expected = expected_totals(execution, operands, spec, resident, TIMES)
    keys, carry_sharding = carry["key"], carry["total"].sharding
    for step in range(TIMES):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    run = population.repeat(execution, update, Stopwatch(), spec)
    result = run(carry, operands, resident, TIMES)
    np.testing.assert_array_equal(result["total"], expected)
    np.testing.assert_array_equal(result["step"], TIMES)
    np.testing.assert_array_equal(jax.random.key_data(result["key"]), jax.random.key_data(keys))
    assert result["total"].sharding.is_equivalent_to(carry_sharding, ndim=2)


@pytest.mark.parametrize("looped", [True, False])
def test_an_update_is_traced_and_compiled_once_and_its_carry_donated(looped):
    chex.clear_trace_counter()
    execution = execution_of(AGENT_COUNT, 2, looped)
    run = population.repeat(execution, chex.assert_max_traces(update, n=1), Stopwatch())
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
    optimizer = training.OPTIMIZERS["momentum"]()
    state = jax.eval_shape(
        lambda key: training.init_population(model, optimizer, key, AGENT_COUNT, images.shape[1:]),
        jax.random.key(0),
    )
    train = training.train_update(
        model, optimizer, lambda step: 0.1, lambda key, images: normalise(images)
    )
    evaluate = training.evaluate_update(model, normalise)
    score = jax.eval_shape(lambda: training.zero_score(AGENT_COUNT))
    tests = images[None], labels[None]
    total = statistics.StatisticsSum(state.variables["batch_stats"], score.batch)
    summing = statistics.statistics_update(model, normalise)
    return {
        "train": (train, state, rows, (images, labels)),
        "evaluate": (evaluate, score, state.variables, tests),
        "statistics": (summing, total, (state.variables, rows), images),
    }


def convolutions(execution, update, *arguments):
    """The convolutions of two steps: their groups, and whether a loop is around them."""
    run = population.repeat(execution, update, Stopwatch())
    jaxpr = jax.make_jaxpr(lambda *args: run(*args, 2))(*arguments).jaxpr
    found = []
    for eqn, inside in equations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
            found.append((max(groups), bool({"scan", "while"} & set(inside))))
    return found


@pytest.mark.parametrize("name", ["train", "evaluate", "statistics"])
def test_the_looped_form_has_no_grouped_convolution_and_none_in_a_loop(name, monkeypatch):
    traced_through(monkeypatch)
    monkeypatch.setenv(SWITCH, "0")
    case = updates_of(dj.models.convnet(num_classes=4, width=0.25), noise(examples=24))[name]
    looped = convolutions(execution_of(AGENT_COUNT, 4, looped=True), *case)
    passes = 3 if name != "train" else 3 + 5  # the first layer's input needs no gradient
    assert looped == [(1, False)] * (2 * 2 * passes)  # two steps of two lanes
    scanned = convolutions(execution_of(AGENT_COUNT, 4, looped=False), *case)
    assert len(scanned) == passes and all(groups == 2 and loop for groups, loop in scanned)


@pytest.mark.parametrize("size", [1, 6, 16, 17, 97, 128])
def test_a_population_lies_in_order_over_the_devices(size):
    devices = max(d for d in range(1, 9) if size % d == 0)
    execution = execution_of(size, devices)
    assert execution.agents == size
    placed = population.spread(execution, {"x": np.arange(size)})["x"]
    for shard in placed.addressable_shards:
        assert {agent // execution.lanes for agent in np.asarray(shard.data)} == {shard.device.id}
    copied = population.replicate(execution, np.arange(3))
    assert [shard.data.tolist() for shard in copied.addressable_shards] == [[0, 1, 2]] * devices


def test_map_agents_is_a_function_of_each_agent():
    execution = execution_of(AGENT_COUNT, 4)
    add = population.map_agents(execution, lambda a, b: a + b.sum(), Stopwatch(), donate=0)
    first = population.spread(execution, jnp.arange(8.0))
    rows = population.spread(execution, jnp.arange(16.0).reshape(8, 2))
    np.testing.assert_array_equal(add(first, rows), np.arange(8) + 4 * np.arange(8) + 1)
    assert first.is_deleted() and not rows.is_deleted()


@hypothesis.given(st.integers(1, 2000), st.integers(1, 128))
@hypothesis.settings(deadline=None, max_examples=200)
def test_virtual_devices_divide_the_agents_and_keep_the_cores_busy(agents, cores):
    devices = population.virtual_devices(agents, cores)
    possible = [d for d in range(1, population.MOST_CPU_DEVICES + 1) if agents % d == 0]
    assert devices in possible
    assert all(d < cores for d in possible if d < devices)  # none smaller would do
    assert devices >= cores or devices == max(possible)


def test_virtual_devices_looks_for_the_cores_itself(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert population.virtual_devices(16) == population.virtual_devices(16, 5) == 8


class FakeDevice:
    """What `choose_execution` asks of a device."""

    platform = "gpu"


@pytest.mark.parametrize(("agents", "devices"), [(16, 8), (6, 6), (7, 7), (9, 3), (11, 1), (1, 1)])
def test_as_many_devices_are_taken_as_divide_the_agents(agents, devices):
    execution = population.choose_execution(agents, convolutions=True)
    assert (execution.mesh.size, execution.lanes) == (devices, agents // devices)
    assert list(execution.mesh.devices) == jax.devices()[:devices]


def test_agents_are_looped_over_on_cpu_with_convolutions_only(monkeypatch):
    assert population.choose_execution(8, convolutions=True, devices=2).looped
    assert not population.choose_execution(8, convolutions=False).looped
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice()])
    monkeypatch.setattr(population, "Mesh", lambda devices, axes, axis_types: devices)
    assert not population.choose_execution(8, convolutions=True).looped


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (0, "1 to 8, .* not 0"),
        (9, "1 to 8, .* not 9"),
        (-1, "not -1"),
        (3, "3 devices .* 8 agents"),
    ],
)
def test_devices_that_cannot_be_are_refused(devices, message):
    with pytest.raises(ValueError, match=message):
        population.choose_execution(8, convolutions=False, devices=devices)


@pytest.mark.parametrize(
    ("agents", "devices", "message"),
    [(0, None, "agents must be at least 1, not 0"), (4, 0, "devices must be at least 1, not 0")],
)
def test_devices_are_not_prepared_for_nobody(agents, devices, message):
    with pytest.raises(ValueError, match=message):
        population.prepare_devices(agents, devices)


def test_convolutions_are_found_wherever_they_are():
    image = jnp.zeros((1, 16, 16, 3))
    kernel = jnp.zeros((3, 3, 3, 3))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def in_a_scan(x):
        return jax.lax.scan(lambda x, _: (jax.jit(convolve)(x), None), x, length=2)[0]

    assert population.has_convolutions(convolve, image)
    assert population.has_convolutions(in_a_scan, image)
    assert not population.has_convolutions(lambda x: x @ x.mT, image)


def run_python(code: str, **environment: str) -> str:
    """What a fresh Python says, standard error included; JAX has one CPU device unless asked."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_devices_are_prepared_before_jax_starts():
    code = """
import dimat_jax as dj
dj.prepare_devices(6, devices=5)
dj.prepare_devices(12, devices=3)  # The first word counts.
import jax
assert len(jax.devices()) == 5, jax.devices()
dj.prepare_devices(6)
assert len(jax.devices()) == 5, jax.devices()
"""
    assert run_python(code) == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_CPU_DEVICES": "3"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
    ],
    ids=str,
)
def test_the_number_of_devices_that_a_user_has_set_stays(environment):
    code = """
import dimat_jax as dj
dj.prepare_devices(4, devices=2)
import jax
assert len(jax.devices()) == 3, jax.devices()
"""
    assert run_python(code, **environment) == ""


def test_memory_is_kept_wherever_there_is_a_way(monkeypatch):
    set_options = {}

    class Library:
        mallopt = staticmethod(set_options.__setitem__)

    monkeypatch.setattr(population.ctypes, "CDLL", lambda name: Library)
    population.keep_memory()
    assert set_options == population.MALLOC_OPTIONS
    monkeypatch.setattr(population.ctypes, "CDLL", lambda name: object())
    population.keep_memory()


def test_one_cpu_device_gives_the_best_form_left_and_one_warning():
    code = """
import os
os.sched_getaffinity = lambda _: {0, 1}
import jax, numpy as np
assert len(jax.devices()) == 1
import dimat_jax as dj
images, labels = np.zeros((9, 8, 8, 1), np.uint8), np.arange(9, dtype=np.int32) % 3
dataset = dj.Dataset(images, labels, images, labels, 3, "zeros")
config = dj.Config(agents=3, model="convnet", width=0.1, pretrain_epochs=0, rounds=0)
result = dj.simulate(config, dataset=dataset)
assert len(result.history) == 1
print("lanes", result.setup.execution.lanes, result.setup.execution.looped)
"""
    said = run_python(code)
    assert "lanes 3 True" in said
    assert said.count("UserWarning") == 1
    assert "dimat_jax.prepare_devices(3)" in said
