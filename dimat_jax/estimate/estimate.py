"""What a run needs before it starts, on a device that need not be here."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from dimat_jax.algorithms import Algorithm
from dimat_jax.algorithms.merging import SLOTS_AT_ONCE
from dimat_jax.config import EXAMPLES_PER_AGENT, Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.estimate import parts
from dimat_jax.estimate.accelerators import (
    ACCELERATORS,
    Accelerator,
    NotInstalled,
    accelerator,
    compiler_options,
    described_devices,
)
from dimat_jax.estimate.parts import Dry
from dimat_jax.estimate.programs import Memory, Program, memory_of, seconds_at_least, total_work
from dimat_jax.execution.devices import prepare_devices
from dimat_jax.merging.merger import average_link_bytes
from dimat_jax.registry import expect
from dimat_jax.simulation.checks import all_methods, check_config, check_options
from dimat_jax.simulation.memory import Held, bytes_of, check_graph, held_by, what_to_reduce
from dimat_jax.simulation.plan import Action, Event, plan
from dimat_jax.simulation.setup import Setup, lay_out, prepare
from dimat_jax.topology import Topology, neighbor_slots
from dimat_jax.types import Model, Task

STAND_INS = {
    "auto": ("CIFAR-10", 32, 10, 50_000),
    "cifar10": ("CIFAR-10", 32, 10, 50_000),
    "cifar100": ("CIFAR-100", 32, 100, 50_000),
    "tiny_imagenet": ("Tiny ImageNet", 64, 200, 100_000),
}
"""Data sets of which nothing but the shapes is needed, and so no download: label, height and width,
classes, training images. Each has 10,000 test images."""
TESTS = 10_000


class Part(NamedTuple):
    """A part of a run, called once.

    Attributes:
      name: what it is.
      operations: floating-point operations of its matrix products, of all agents.
      moved: bytes that these read and write, of all agents.
      seconds: that it takes at least: a roofline, the more of computing and of moving.
      memory: bytes of its largest program on a device; None: not known, for want of a compiler.
    """

    name: str
    operations: float
    moved: float
    seconds: float
    memory: Memory | None


class Estimate(NamedTuple):
    """What a run needs.

    Attributes:
      device: what it runs on.
      devices: how many of them.
      held: bytes that lie on one device from beginning to end.
      merging: bytes of the networks of neighbours that a merge holds on one device.
      temporaries: bytes that the largest program computes with; None: not known.
      total: bytes on one device; without temporaries, at least.
      memory: bytes that there are for a run on one device.
      fits: whether that is enough; if temporaries are not known, None unless it is not.
      reduce: options, and to what, so that it fits; empty if it does.
      parts: what the run is made of.
      epoch_seconds: at least, of local training.
      merge_seconds: at least, of a merge of the method whose merges take longest.
      run_seconds: at least, of the whole run, evaluations included and compilation left out.
      why_not_compiled: why temporaries are not known; None where they are.
      link: bytes that the busiest link, from one device to another, carries in a merge's average.
    """

    device: Accelerator
    devices: int
    held: Held
    merging: int
    temporaries: int | None
    total: int
    memory: float
    fits: bool | None
    reduce: tuple[str, ...]
    parts: tuple[Part, ...]
    epoch_seconds: float
    merge_seconds: float
    run_seconds: float
    why_not_compiled: str | None = None
    link: int = 0


def estimate(
    config: Config = Config(),
    device: str = "cpu",
    *,
    model: Model | None = None,
    dataset: Dataset | Data | None = None,
    topology: Topology | None = None,
    methods: Mapping[str, Algorithm] | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    compiles: bool = True,
) -> Estimate:
    """What a run needs before it starts: bytes, and the time that it takes at least.

    Nothing runs, and no images are read of the data sets in `STAND_INS`. The run's own parts are
    compiled for the device where the packages that do it are installed, ``'.[tpu]'`` or
    ``'.[cuda12]'``; elsewhere what they compute with stays unknown. ``config.devices`` says on how
    many; by default one GPU, or the smallest group of TPUs.

    Args:
      config: the run.
      device: ``h100``, ``a100``, ``v5e``, ``v4``, or ``cpu`` for this machine.
      model: as of `dimat_jax.runs.simulate`, and so the other ones.
      dataset: likewise.
      topology: likewise.
      methods: likewise.
      task: likewise.
      optimizer: likewise.
      compiles: whether anything is compiled at all; it takes seconds to minutes.

    Raises:
      ValueError: for a configuration that cannot be run, or a device that there is not.
    """
    check_config(config)
    expect("compiles", compiles, bool, "True or False")
    about = accelerator(device)
    check_options(config, all_methods(methods))
    if topology is None:
        check_graph(config)
    prepare_devices(config.agents, config.devices if device == "cpu" else None)
    anywhere = dataclasses.replace(config, devices=config.devices if device == "cpu" else None)
    given = stand_in(config) if dataset is None else dataset
    if given is not dataset and config.examples_per_agent == "auto":  # Of named sets, 500.
        anywhere = dataclasses.replace(anywhere, examples_per_agent=EXAMPLES_PER_AGENT)
    setup = prepare(anywhere, model, given, topology, methods, task, optimizer)
    setup, missing = on_device(setup, device, config.devices)
    if not compiles:
        missing = "nothing was to be compiled"
    dry = parts.dry_run(setup, missing is None, compiler_options(device))
    return estimate_of(dry, about, missing)


def stand_in(config: Config) -> Dataset | None:
    """Images of the shapes of a named data set, all black; None of others, which are small."""
    if config.dataset not in STAND_INS:
        return None
    name, side, classes, number = STAND_INS[config.dataset]

    def images(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(number, dtype=np.int32) % classes
        return np.zeros((number, side, side, 3), np.uint8), labels

    return Dataset(*images(number), *images(TESTS), classes, name, "flip_and_crop")


def on_device(setup: Setup, device: str, devices: int | None) -> tuple[Setup, str | None]:
    """The setup, laid out on devices that are described; and why they cannot be, if they cannot.

    Then it is laid out as on one such device, of which nothing but shapes is asked.
    """
    missing = None
    if device == "cpu":
        described = jax.devices()
    else:
        try:
            described = described_devices(device, devices)
        except NotInstalled as error:
            described, missing = jax.devices()[:1], str(error)
    number = min(devices or len(described), len(described), setup.config.agents)
    about = (setup.config, setup.task, setup.abstract, setup.batch_size)
    found = None if device == "cpu" else ACCELERATORS[device]
    there_is = None if found is None else found.memory * found.usable
    execution = lay_out(*about, number, described, there_is)
    if missing is not None:  # In the form that an accelerator has, on one device.
        at_once = min(execution.lanes, setup.config.agents_at_once or execution.lanes)
        at_once = max(d for d in range(1, at_once + 1) if execution.lanes % d == 0)
        execution = execution._replace(
            sequential=False, lanes_at_once=at_once, products=at_once > 1
        )
    return setup._replace(execution=execution), missing


def estimate_of(dry: Dry, about: Accelerator, missing: str | None) -> Estimate:
    """What a run on shapes needs.

    Args:
      dry: the run.
      about: the device.
      missing: why nothing is compiled; None where it is.
    """
    setup, execution = dry.setup, dry.setup.execution
    part = functools.cache(functools.partial(part_of, dry, about))
    for name in first_parts(setup):
        part(name)
    merges = merge_seconds(dry, part)
    seconds = sum(
        seconds_of(event, setup, part, merges) for event in plan(setup.config, setup.methods)
    )
    found = {name: part(name) for name in all_parts(setup, merges)}
    held = held_by(setup)
    merging = execution.lanes * networks_in_a_merge(setup) * bytes_of(setup.abstract[0])
    known = [p.memory.temporaries + p.memory.results for p in found.values() if p.memory]
    temporaries = max(known) if known and missing is None else None
    least = held.gradients if temporaries is None else temporaries
    total = held.total - held.gradients + merging + least
    # The devices of a CPU share the machine's memory.
    memory = about.memory * about.usable / (execution.mesh.size if not about.topology else 1)
    fits = None if temporaries is None and total <= memory else total <= memory
    return Estimate(
        device=about,
        devices=execution.mesh.size,
        held=held,
        merging=merging,
        temporaries=temporaries,
        total=total,
        memory=memory,
        fits=fits,
        reduce=() if total <= memory else advice(setup, held, total, temporaries, memory),
        parts=tuple(found.values()),
        epoch_seconds=part(parts.EPOCH).seconds,
        merge_seconds=max((t for t, _ in merges.values()), default=0.0),
        run_seconds=seconds,
        why_not_compiled=missing,
        link=busiest_link(setup),
    )


def first_parts(setup: Setup) -> list[str]:
    """The parts that every run has, by name."""
    some = [parts.STATISTICS] if parts.recomputes(setup) else []
    return [parts.EPOCH, *some, parts.EVALUATION]


Merges = dict[tuple[str, str], tuple[float, Counter[str]]]
"""Method, and which of its merges → seconds at least; the parts that it calls, and how often."""


def all_parts(setup: Setup, merges: Merges) -> list[str]:
    """The parts of a run that need memory, by name."""
    gossips = [f"{name}'s epoch" for name, a in setup.methods.items() if a.gossip]
    called = sorted({name for _, counts in merges.values() for name in counts})
    matching = [name for name in called if name.startswith(parts.MATCHING)]
    mixing = [parts.MIXING] if merges else []
    return [*first_parts(setup)[:1], *gossips, *matching, *mixing, *first_parts(setup)[1:]]


def function_of(name: str) -> Callable[[Dry], None]:
    """What calls the programs of a part, by its name."""
    if name.endswith("'s epoch"):
        return parts.gossip(name.removesuffix("'s epoch"))
    if name.startswith(parts.MATCHING):
        return parts.match(int(name.split()[-1]))
    return {
        parts.EPOCH: parts.train,
        parts.STATISTICS: parts.statistics,
        parts.MIXING: parts.mix,
        parts.EVALUATION: parts.evaluate,
        "gather": parts.gather,
        "add": parts.add,
        "permute": parts.reorder,
    }[name]


def part_of(dry: Dry, about: Accelerator, name: str) -> Part:
    """A part, traced and where it can be compiled."""
    calls = parts.called(dry, function_of(name))
    work = total_work(calls)
    if name == parts.EPOCH or name.endswith("'s epoch"):
        number = parts.steps_of(dry)[1]
        work = type(work)(*(number * x for x in work))
    seconds = seconds_at_least(work, dry.setup.execution, about.operations, about.bandwidth)
    return Part(name, work.operations, work.moved, seconds, largest(calls))


def largest(calls: list[Program]) -> Memory | None:
    """The memory of the program that needs most besides its arguments."""
    known = [found for found in map(memory_of, calls) if found is not None]
    return max(known, key=lambda m: m.results + m.temporaries, default=None)


def merge_seconds(dry: Dry, part: Callable[[str], Part]) -> Merges:
    """How long each merge of each method takes at least."""
    found: Merges = {}
    for method, algorithm in dry.setup.methods.items():
        for name in algorithm.parts():
            if name != "gossip":
                counts = parts.merge_counts(dry, method, name)
                seconds = sum(n * part(called).seconds for called, n in counts.items())
                found[method, name] = seconds, counts
    return found


def seconds_of(event: Event, setup: Setup, part: Callable[[str], Part], merges: Merges) -> float:
    """How long an event takes at least. A merge counts as one in which units are compared."""
    match event.action:
        case Action.TRAIN:
            algorithm = setup.methods.get(event.method)
            gossips = algorithm is not None and algorithm.gossip is not None
            share = setup.epoch_examples[event.round > 0] / max(1, setup.epoch_examples[1])
            return share * part(f"{event.method}'s epoch" if gossips else parts.EPOCH).seconds
        case Action.INITIAL | Action.MERGE | Action.FINAL:
            return merges[event.method, event.action.name.lower()][0]
        case Action.RECOMPUTE if parts.recomputes(setup):
            return part(parts.STATISTICS).seconds
        case Action.MEASURE:
            return part(parts.EVALUATION).seconds
    return 0.0


def networks_in_a_merge(setup: Setup) -> int:
    """How many networks an agent holds in a merge besides its own.

    As many as of its neighbours are fetched at once, these again in another order, and their sum.
    """
    graphs = [
        graph
        for found in setup.graphs.values()
        for name, graph in found.items()
        if name != "gossip"
    ]
    slots = max((neighbor_slots(graph)[0].shape[1] - 1 for graph in graphs), default=0)
    return 1 + 2 * min(slots, SLOTS_AT_ONCE) if graphs else 0


def busiest_link(setup: Setup) -> int:
    """The most bytes that one device sends to another in one average of a merge."""
    row = bytes_of(setup.abstract[0])
    graphs = [g for found in setup.graphs.values() for name, g in found.items() if name != "gossip"]
    links = [
        average_link_bytes(setup.execution, neighbor_slots(graph, turn)[0], row).max()
        for graph in graphs
        for turn in range(graph.period)
    ]
    return int(max(links, default=0))


def advice(
    setup: Setup, held: Held, total: int, temporaries: int | None, memory: int | float
) -> tuple[str, ...]:
    """Which options to reduce, and to what, so that a run fits."""
    execution, config = setup.execution, setup.config
    rest = total - (temporaries or 0)
    if temporaries is None or rest >= memory:
        return tuple(what_to_reduce(setup, held, memory / total))
    # What is computed with grows with the agents that train at once, and with the examples that
    # each of them goes through at a time.
    share, found = (memory - rest) / temporaries, []
    lanes = [d for d in range(1, execution.lanes) if execution.lanes % d == 0]
    fewer = [d for d in lanes if d <= execution.lanes_at_once * share]
    if fewer:
        found.append(f"agents_at_once to {max(fewer)}")
    size = config.micro_batch or setup.batch_size
    parts_of_batch = [d for d in range(1, size) if setup.batch_size % d == 0 and d <= size * share]
    if parts_of_batch:
        found.append(f"micro_batch to {max(parts_of_batch)}")
    return tuple(found or what_to_reduce(setup, held, memory / total)) or (
        f"agents to {max(1, int(config.agents * memory / total))}",
    )
