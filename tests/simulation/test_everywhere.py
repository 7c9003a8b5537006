"""Nothing depends on where and in which form a run runs, nor on how many agents do so at once."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.algorithm_table import KINDS
from helpers.sessions import assert_rows_close, copied, finish, session_as
from helpers.small_runs import (
    assert_trees_close,
    assert_trees_equal,
    linear_softmax,
    noise,
    small_config,
)

import dimat_jax as dj
from dimat_jax.execution.placement import Execution, to_host
from dimat_jax.metrics import Row
from dimat_jax.models.convnet import ConvNet
from dimat_jax.training.state import AgentState

DATASET = noise(examples=320, tests=50, size=8)
MODELS = {
    "linear": linear_softmax(),
    "mlp": dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch"),
    "convnet": dj.from_linen(ConvNet(num_classes=4, channels=(3, 4), norm="batch")),
}


class Form(NamedTuple):
    """Where a run runs.

    Attributes:
      devices: so many.
      sequential: in which form.
      at_once: so many agents of a device at the same time; None: all, or one in sequence.
    """

    devices: int
    sequential: bool
    at_once: int | None = None


FORMS = {
    "mlp": [
        Form(1, False),
        Form(8, False),
        Form(2, False, at_once=2),
    ],
    "convnet": [
        Form(1, True),
        Form(8, True),
        Form(4, False),
    ],
}


class Done(NamedTuple):
    """What a run in one form gives, on the host."""

    execution: Execution
    shards: dict
    start: AgentState
    history: list[Row]
    variables: dict


@functools.cache
def run_as(name, form: Form, agents=8, methods=("dimat",)) -> Done:
    """Two rounds of some methods, five steps each, in float64."""
    with jax.enable_x64(True):
        graph = "ring" if agents == 8 else "fully_connected"
        config = small_config(
            agents=agents,
            devices=form.devices,
            agents_at_once=form.at_once,
            methods=methods,
            topology=graph,
            matching_images=32,
        )
        session = session_as(config, MODELS[name], DATASET, form.sequential)
        start = session.start().agents
        start = start._replace(key=jax.random.key_data(start.key))
        start = to_host(session.setup.execution, copied(start))
        done = finish(session)
        return Done(session.setup.execution, session.setup.shards, start, done.rows, done.variables)


@functools.cache
def five_agents(form: Form) -> Done:
    """Two rounds of every kind of method, in float64."""
    with jax.enable_x64(True):
        config = small_config(
            agents=5,
            devices=form.devices,
            methods=tuple(KINDS),
            topology="fully_connected",
            batch_size=20,
        )
        model = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")
        session = session_as(config, model, DATASET, form.sequential)
        done = finish(session)
        return Done(session.setup.execution, {}, None, done.rows, done.variables)


def assert_the_same(found: Done, expected: Done, method: str, tolerance=1e-6) -> None:
    """Asserts that a method has the same rows and variables."""
    rows, others = (
        [row for row in done.history if row["method"] == method] for done in (found, expected)
    )
    assert len(rows) >= 2
    assert_rows_close(rows, others, tolerance)
    of_agents = found.variables[method, 0], expected.variables[method, 0]
    assert_trees_close(*of_agents, tolerance)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_agents))


@pytest.mark.slow
def test_every_kind_of_method_does_the_same_in_sequence_and_scanned_with_a_masked_lane():
    """On one device, and five agents on four devices, of which they take three."""
    one, several = five_agents(Form(1, True)), five_agents(Form(4, False))
    assert (several.execution.mesh.size, several.execution.all_lanes) == (3, 6)
    for method in KINDS:  # In one test: two runs of all methods are shared.
        assert_the_same(several, one, method)


MASKED = [
    ("mlp", 3, Form(2, False), ("dimat",)),
    pytest.param("linear", 7, Form(3, True), ("sgp", "relay_sgd"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "agents", "form", "methods"), MASKED)
def test_agents_that_devices_do_not_divide_use_several(name, agents, form, methods):
    one = run_as(name, Form(1, form.sequential), agents, methods)
    several = run_as(name, form, agents, methods)
    assert several.execution.mesh.size > 1 < several.execution.lanes
    assert several.execution.all_lanes > agents
    assert_trees_equal((several.shards, several.start), (one.shards, one.start))
    for method in methods:
        assert_the_same(several, one, method)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[pytest.mark.slow] * ((name, form.devices) != ("mlp", 8)))
        for name in FORMS
        for form in FORMS[name][1:]
    ],
    ids=str,
)
def test_a_seed_gives_the_same_run_on_any_devices_in_any_form(name, form):
    first, other = run_as(name, FORMS[name][0]), run_as(name, form)
    assert other.execution.mesh.size == form.devices
    at_once = form.at_once or (1 if form.sequential else 8 // form.devices)
    assert other.execution.lanes_at_once == at_once
    of_dimat = first.variables["dimat", 0]
    assert {x.dtype for x in jax.tree.leaves(of_dimat)} == {np.dtype("float64")}
    # Partitions, keys and initial weights bit for bit; the order of the data is test_local's.
    assert_trees_equal((other.shards, other.start), (first.shards, first.start))
    assert_trees_close(other.variables["dimat", 0], of_dimat, tolerance=1e-4)
    assert_rows_close(other.history, first.history, tolerance=1e-4)


# How many agents at once, and how many examples --------------------------------------------------


def in_pieces(sequential, model, **options):
    """Two agents a device, in float64: variables by method, and rows."""
    defaults = dict(methods=("cdsgd", "wa"), rounds=1, devices=2, augmentation="flip_and_crop")
    config = small_config(agents=8, matching_images=16, statistics_images=16, **defaults | options)
    with jax.enable_x64(True):
        session = session_as(config, model, DATASET, sequential)
        done = finish(session)
    return session.setup.execution, done


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "scanned"])
def test_numbers_are_the_same_however_many_agents_train_at_once(sequential):
    """Local training, a gossip method and a merge."""
    _, whole = in_pieces(sequential, MODELS["mlp"], agents_at_once=4)
    for at_once in (1, 2):
        execution, found = in_pieces(sequential, MODELS["mlp"], agents_at_once=at_once)
        assert (execution.lanes, execution.lanes_at_once) == (4, at_once)
        assert_trees_close(found.variables, whole.variables, 1e-10)
        assert_rows_close(found.rows, whole.rows, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sequential",
    [
        pytest.param(True, id="sequential", marks=pytest.mark.slow),
        pytest.param(False, id="scanned"),
    ],
)
def test_numbers_are_the_same_however_many_examples_are_gone_through_at_once(sequential):
    """Local training, a gossip method, and one with gradients at neighbours' parameters."""
    model, methods = linear_softmax(), ("cdsgd", "cga")
    _, whole = in_pieces(sequential, model, methods=methods)
    _, found = in_pieces(sequential, model, methods=methods, micro_batch=4)
    assert_trees_close(found.variables, whole.variables, 1e-12)
    assert_rows_close(found.rows, whole.rows, 1e-12)
