"""The parts of a run compile for devices that are not here, and as they should.

``-m accelerators``, with the packages installed that compile for them: ``libtpu``, and
``jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 nvidia-cudnn-cu12``.
"""

import math
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import noise, small_config

import dimat_jax as dj
from dimat_jax.algorithms import Message
from dimat_jax.algorithms.communication import traffic
from dimat_jax.estimate import parts
from dimat_jax.estimate.accelerators import NotInstalled, compiler_options, described_devices
from dimat_jax.estimate.programs import memory_of
from dimat_jax.execution.placement import choose_execution
from dimat_jax.merging.merger import average_link_bytes
from dimat_jax.simulation import memory
from dimat_jax.simulation.setup import prepare
from dimat_jax.topology import neighbor_slots

pytestmark = pytest.mark.accelerators
DATASET = noise(examples=640, tests=64, size=8)
WHERE = [("v5e", None), ("v4", None), ("h100", 1), ("h100", 8)]
LEAVES = ["callback", "infeed", "outfeed", " send(", " recv(", "host-transfer",
          "is_host_transfer=true", "S(5)"]  # fmt: skip
"""What stands in a compiled program that asks the host for something, or moves something there."""


class Small(nn.Module):
    """A convolution, BatchNorm and hidden units: all that a merge has to do with."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))


def dry_on(device, devices, agents=8, model=None):
    """A run on shapes, on devices that are not here; skips where nothing compiles for them."""
    try:
        described = described_devices(device, devices)
    except NotInstalled as error:
        pytest.skip(f"nothing here compiles for a {device}: {error}")
    config = small_config(agents=agents, methods=("dimat", "cdsgd"))
    setup = prepare(config, model or dj.from_linen(Small()), DATASET)
    execution = choose_execution(agents, True, described=described)
    return parts.dry_run(setup._replace(execution=execution), True, compiler_options(device))


def compiled_of(calls):
    return [program.compiled for program in calls if program.compiled is not None]


@pytest.mark.parametrize(("device", "devices"), WHERE)
@pytest.mark.parametrize(
    "part", [parts.match(2), parts.statistics, parts.mix], ids=["matching", "statistics", "mixing"]
)
def test_the_parts_of_a_merge_compile(device, devices, part):
    programs = parts.called(dry_on(device, devices), part)
    assert programs and all(program.compiled is not None for program in programs)
    assert all(memory_of(program).arguments > 0 for program in programs)


@pytest.mark.parametrize(("device", "devices"), WHERE)
@pytest.mark.parametrize("part", [parts.train, parts.gossip("cdsgd")], ids=["alone", "gossip"])
def test_an_epoch_is_one_program_that_never_leaves_the_device(device, devices, part):
    dry = dry_on(device, devices)
    (epoch,) = compiled_of(parts.called(dry, part))
    text = epoch.as_text()
    assert "while" in text  # The steps are scanned.
    assert [word for word in LEAVES if word in text] == []
    # What it is given is written over.
    assert epoch.memory_analysis().alias_size_in_bytes > 0


@pytest.mark.parametrize(("device", "devices"), [("v5e", None), ("h100", 1)])
def test_temporaries_do_not_grow_faster_than_agents(device, devices):
    sizes = []
    for agents in (8, 16):
        (epoch,) = compiled_of(parts.called(dry_on(device, devices, agents), parts.train))
        sizes.append(epoch.memory_analysis().temp_size_in_bytes)
    assert sizes[1] <= 2.1 * sizes[0]


@pytest.mark.parametrize(("device", "devices"), [("v5e", None), ("h100", 8)])
def test_on_a_ring_what_is_mixed_goes_by_collective_permutes_and_its_bytes_are_counted(
    device, devices
):
    dry = dry_on(device, devices)
    execution, params = dry.setup.execution, {"params": dry.agents.variables["params"]}
    graph = dj.topology.ring(8)
    sources, weights = neighbor_slots(graph)

    def average(dry):
        dry.parts.merger.average(params, sources, weights)

    (program,) = compiled_of(parts.called(dry, average))
    text = program.as_text()
    assert not {"all-gather", "all-reduce", "all-to-all"} & set(re.findall(r"[\w-]+(?=\()", text))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
    counted = traffic(Message(), graph, 0, 1, one).total
    home = np.arange(8) // execution.lanes
    between = (home[:, None] != home[sources[:, 1:]]).sum() / sources[:, 1:].size
    assert execution.mesh.size * permuted_bytes(text) == counted * between
    links = average_link_bytes(execution, sources, memory.bytes_of(one))
    assert links.sum() == counted * between


def permuted_bytes(text):
    """Bytes that a device sends by the collective permutes of a program's text, sync or async."""
    total = 0
    for shapes, start in re.findall(r"= (\(.*\)|\S+) collective-permute(-start)?\(", text):
        sizes = [
            4 * math.prod(int(n) for n in dims.split(",") if n)
            for dims in re.findall(r"f32\[([\d,]*)\]", shapes)
        ]
        total += sum(sizes) // (2 if start else 1)  # What is sent, and where it arrives.
    return total


@pytest.mark.parametrize("device", ["v5e", "h100", "a100"])
def test_an_estimate_knows_what_programs_compute_with(device):
    dry_on(device, None)  # Skips.
    config = small_config(methods=("dimat", "wa"))
    found = dj.estimate(config, device, model=dj.from_linen(Small()), dataset=DATASET)
    assert found.why_not_compiled is None and found.fits
    assert found.temporaries > 0
    assert found.total == sum(found.held) - found.held.gradients + found.merging + found.temporaries
