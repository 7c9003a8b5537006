"""Where agents lie: which devices, how many lanes on each, and what masked lanes hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fresh_python import run_python
from helpers.small_runs import assert_trees_equal, execution_of

from dimat_jax.execution import placement
from dimat_jax.execution.placement import (
    choose_execution,
    has_convolutions,
    pad,
    place,
    replicate,
    shard,
    to_host,
    zeros,
)

PLACES = [(size, devices) for size in (1, 3, 5, 6, 16, 17, 97) for devices in (1, 2, 4, 8)]


@pytest.mark.parametrize(("size", "devices"), PLACES)
def test_a_population_lies_in_order_over_the_devices(size, devices):
    execution = choose_execution(size, False, min(devices, size))
    lanes = np.asarray(place(execution, {"x": np.arange(size)})["x"])
    np.testing.assert_array_equal(lanes, np.minimum(np.arange(execution.all_lanes), size - 1))
    np.testing.assert_array_equal(lanes, execution.agent_of_lane)
    placed = place(execution, np.arange(size))
    for part in placed.addressable_shards:
        lane = part.device.id * execution.lanes + np.arange(execution.lanes)
        np.testing.assert_array_equal(part.data, np.minimum(lane, size - 1))
    assert len(placed.addressable_shards) == execution.mesh.size
    np.testing.assert_array_equal(to_host(execution, placed), np.arange(size))


@pytest.mark.parametrize(("size", "devices"), PLACES)
def test_every_device_has_an_agent_and_no_lane_more_is_masked_than_must_be(size, devices):
    execution = choose_execution(size, False, min(devices, size))
    assert 0 <= execution.all_lanes - size < execution.lanes
    assert execution.lanes == -(-size // min(devices, size))


def test_five_agents_on_four_devices_lie_on_three():
    execution = choose_execution(5, False, 4)
    assert (execution.mesh.size, execution.lanes, execution.all_lanes) == (3, 2, 6)
    assert execution.agent_of_lane.tolist() == [0, 1, 2, 3, 4, 4]


def test_what_has_no_masked_lanes_is_not_copied():
    tree = {"x": np.arange(8)}
    assert pad(execution_of(8, 4), tree) is tree


def test_copies_lie_on_every_device():
    copied = replicate(execution_of(8, 4), np.arange(3))
    assert [part.data.tolist() for part in copied.addressable_shards] == [[0, 1, 2]] * 4


def test_rows_are_sharded_as_they_are():
    sharded = shard(execution_of(5, 3), np.arange(12))
    assert [part.data.tolist() for part in sharded.addressable_shards] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]


def test_zeros_lie_with_their_lanes():
    execution = execution_of(5, 3)
    shapes = {
        "x": jax.ShapeDtypeStruct((2,), jnp.int32),
        "y": jax.ShapeDtypeStruct((), jnp.float32),
    }
    found = zeros(execution, shapes)
    expected = {"x": jnp.zeros((6, 2), jnp.int32), "y": jnp.zeros(6)}
    assert_trees_equal(found, expected)
    assert [x.dtype for x in jax.tree.leaves(found)] == [jnp.int32, jnp.float32]
    assert [part.data.shape for part in found["x"].addressable_shards] == [(2, 2)] * 3


class FakeDevice:
    """What `choose_execution` asks of a device."""

    platform = "gpu"


@pytest.mark.parametrize(
    ("agents", "devices", "lanes"),
    [(16, 8, 2), (6, 6, 1), (7, 7, 1), (9, 5, 2), (11, 6, 2), (1, 1, 1), (67, 8, 9)],
)
def test_all_devices_are_taken_that_the_lanes_fill(agents, devices, lanes):
    execution = choose_execution(agents, convolutions=True)
    assert (execution.mesh.size, execution.lanes) == (devices, lanes)
    assert list(execution.mesh.devices) == jax.devices()[:devices]


def test_agents_run_in_sequence_on_cpu_with_convolutions_only(monkeypatch):
    found = choose_execution(8, convolutions=True, devices=2)
    assert found.sequential and found.lanes_at_once == 1
    scanned = choose_execution(8, convolutions=False, devices=2)
    assert not scanned.sequential and scanned.lanes_at_once == 4
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice()])
    monkeypatch.setattr(placement, "Mesh", lambda devices, axes, axis_types: np.array(devices))
    on_gpu = choose_execution(8, convolutions=True)
    assert not on_gpu.sequential and on_gpu.lanes_at_once == 8


@pytest.mark.parametrize(
    ("asked", "at_once"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 6), (100, 6)]
)
def test_so_many_agents_at_once_as_asked_for_and_divide_the_lanes(asked, at_once):
    for convolutions in (True, False):
        found = choose_execution(12, convolutions, devices=2, agents_at_once=asked)
        assert (found.lanes, found.lanes_at_once) == (6, at_once)


@pytest.mark.parametrize("devices", [0, 9, -1])
def test_devices_that_cannot_be_are_refused(devices):
    with pytest.raises(ValueError, match=rf"1 to 8 \(8 there are.*, not {devices}\."):
        choose_execution(8, convolutions=False, devices=devices)


def test_more_devices_than_agents_are_refused():
    with pytest.raises(ValueError, match=r"1 to 3 \(8 there are, for 3 agents\), not 4"):
        choose_execution(3, convolutions=False, devices=4)


def test_convolutions_are_found_wherever_they_are():
    image = jnp.zeros((1, 16, 16, 3))
    kernel = jnp.zeros((3, 3, 3, 3))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def in_a_scan(x):
        return jax.lax.scan(lambda x, _: (jax.jit(convolve)(x), None), x, length=2)[0]

    assert has_convolutions(convolve, image)
    assert has_convolutions(in_a_scan, image)
    assert not has_convolutions(lambda x: x @ x.mT, image)


def test_one_cpu_device_gives_the_best_form_left_and_one_warning():
    code = """
import os
os.sched_getaffinity = lambda _: {0, 1}
import jax, numpy as np
assert len(jax.devices()) == 1
import dimat_jax as dj
images, labels = np.zeros((9, 8, 8, 1), np.uint8), np.arange(9, dtype=np.int32) % 3
dataset = dj.Dataset(images, labels, images, labels, 3, "zeros")
sizes = dict(agents=3, model="convnet", width=0.1, pretrain_epochs=0, rounds=0)
config = dj.Config(**sizes, merge_at_end=False)
result = dj.simulate(config, dataset=dataset)
assert len(result.history) == 1
print("lanes", result.setup.execution.lanes, result.setup.execution.sequential)
"""
    said = run_python(code)
    assert "lanes 3 True" in said
    assert said.count("UserWarning") == 1
    assert "dimat_jax.prepare_devices(3)" in said
