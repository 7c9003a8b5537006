"""What a run holds in memory on its devices, from shapes alone, and whether there is so much.

Nothing is compiled for it, so what a step computes with, its activations above all, is left out:
what does not fit by this does not fit.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimat_jax.algorithms import Algorithm, Exchange, Gossip, Merge
from dimat_jax.algorithms.stepping import gossip_start
from dimat_jax.config import Config
from dimat_jax.datasets.data import examples_of
from dimat_jax.execution.placement import Execution, stacked
from dimat_jax.merging.merger import SLOTS_AT_ONCE
from dimat_jax.simulation.setup import Setup
from dimat_jax.topology import Topology
from dimat_jax.training.state import AgentState, init_population

CGROUP = pathlib.Path("/sys/fs/cgroup")
"""Where Linux says what a container may use (cgroup v2)."""
MATRIX_BYTES = 24
"""Of an entry of a mixing matrix on the host, while it is made and checked."""


class Held(NamedTuple):
    """Bytes that a run holds on one device.

    Attributes:
      agents: variables, optimizer state and counters of the agents there.
      pretrained: the same of the pretrained agents, from whom every method begins.
      method: what the method remembers that remembers most.
      data: the agents' training examples, and all test examples.
      gradients: of the agents that are computed at once: the least that a training step needs.
    """

    agents: int
    pretrained: int
    method: int
    data: int
    gradients: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def bytes_of(tree: Any) -> int:
    """Bytes of arrays, or of shapes: of any size, for Python's integers have no end."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def one_agent(setup: Setup) -> AgentState:
    """The shapes of one agent's state."""

    def initial() -> AgentState:
        agents = setup.config.agents
        return init_population(
            setup.task, setup.optimizer, jax.random.key(0), agents, setup.abstract[1]
        )

    agent = jax.eval_shape(initial)
    agent = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), agent)
    return agent._replace(anchor=agent.variables["params"]) if setup.config.proximal else agent


def graph_shapes(graph: Topology, execution: Execution) -> Any:
    """The shapes of `dimat_jax.algorithms.exchanges` of a graph."""
    period, lanes = graph.period, execution.all_lanes
    slots = max(int(((m > 0).sum(1) + (m.diagonal() == 0)).max()) for m in graph.mixing_matrices)
    wide, floats = (period, lanes, slots), jnp.result_type(float)
    shape: Any = jax.ShapeDtypeStruct
    return Exchange(
        matrix=shape((period, lanes, lanes), floats),
        sources=shape(wide, jnp.int32),
        slot_mask=shape(wide, floats),
        reverse_slots=shape(wide, jnp.int32),
    )


def remembered(setup: Setup, name: str, agents: AgentState) -> dict[str, Any]:
    """The shapes of what the parts of a method remember, by part, and of a gossip's graph.

    Args:
      setup: what the run works with.
      name: of the method.
      agents: shapes of all agents' state, stacked ``[lanes, ...]``.
    """
    algorithm, found = setup.methods[name], {}
    for part, record in algorithm.parts().items():
        if isinstance(record, Merge):
            found[part] = jax.eval_shape(record.init, agents.variables)
    if isinstance(algorithm.gossip, Gossip):
        graph = graph_shapes(setup.graphs[name]["gossip"], setup.execution)

        def start(agents: AgentState, graph: Exchange) -> Any:
            return gossip_start(record_of(algorithm), agents, graph)[1]

        found["gossip"] = jax.eval_shape(start, agents, graph)
    return found


def record_of(algorithm: Algorithm) -> Gossip:
    """What a gossip method does within a training step."""
    assert algorithm.gossip is not None
    return algorithm.gossip


def held_by(setup: Setup) -> Held:
    """What a run holds on each of its devices."""
    execution, agent = setup.execution, one_agent(setup)
    agents = stacked(execution, agent)
    of_agents = execution.lanes * bytes_of(agent)
    devices = execution.mesh.size
    methods = [
        bytes_of(remembered(setup, name, agents)) // devices + graph_bytes(setup, name, execution)
        for name in setup.methods
    ]
    train, test = (
        bytes_of(x) // max(1, examples_of(x)) for x in (setup.data.train, setup.data.test)
    )
    # Training examples of pretraining and of the rounds lie there both, unless they are the same.
    shards = next(iter(setup.shards.values()))
    rows = sum(part.shape[1] for part in shards[not setup.config.pretrain_epochs :])
    return Held(
        agents=of_agents,
        pretrained=of_agents,
        method=max(methods),
        data=execution.lanes * rows * train + examples_of(setup.data.test) * test,
        gradients=execution.lanes_at_once * bytes_of(agent.variables["params"]),
    )


def graph_bytes(setup: Setup, name: str, execution: Execution) -> int:
    """Of the graph of a gossip method, which lies on every device."""
    graph = setup.graphs[name].get("gossip")
    if graph is None:
        return 0
    shapes = graph_shapes(graph, execution)
    # With few neighbours also their shares, and where they are found among what is received; what
    # is sent to whom, a few numbers, is left out.
    period, lanes, slots = shapes.sources.shape
    few = slots <= 1 + SLOTS_AT_ONCE
    found = period * lanes * (slots - 1) * shapes.sources.dtype.itemsize
    return bytes_of(shapes) + few * (bytes_of(shapes.slot_mask) + found)


def check_memory(setup: Setup) -> None:
    """Raises a `ValueError` for a run that cannot fit on its devices, unless it is forced."""
    if setup.config.force:
        return
    execution, held = setup.execution, held_by(setup)
    devices = execution.mesh.local_devices
    device = devices[0]
    if device.platform == "cpu":  # Its devices share the host's memory.
        memory, needed, where = host_memory(), len(devices) * held.total, "this machine has"
    else:
        stats = device.memory_stats() or {}
        memory, needed, where = stats.get("bytes_limit"), held.total, f"a {device.device_kind} has"
    if memory is None or needed <= memory:
        return
    options = what_to_reduce(setup, held, memory / needed)
    raise ValueError(
        f"The run needs at least {shown_bytes(needed)} for its agents and their data, and {where} "
        f"{shown_bytes(memory)}: reduce {', or '.join(options)}; or try it all the same (force)."
    )


def what_to_reduce(setup: Setup, held: Held, share: int | float) -> list[str]:
    """Which options to reduce, and to what, so that a run fits.

    Args:
      setup: what the run works with.
      held: what it holds.
      share: of what it needs, that there is.
    """
    config, found = setup.config, []
    agents = int(config.agents * share)
    if agents >= 1:
        found.append(f"agents to {agents}")
    examples = max(part.shape[1] for shards in setup.shards.values() for part in shards)
    if held.data <= held.total / 2:
        # Most parameters of a wide network stand between two layers, both of which narrow.
        found.append(f"width to {config.width * math.sqrt(share):.2g}")
    elif examples * share >= 1:
        found.append(f"examples_per_agent to {int(examples * share)}")
    return found


def check_graph(config: Config) -> None:
    """Raises a `ValueError` for so many agents that their mixing matrix alone does not fit.

    It is made on the host before anything else is known of a run.
    """
    needed, memory = MATRIX_BYTES * config.agents**2, host_memory()
    if config.force or memory is None or needed <= memory:
        return
    raise ValueError(
        f"The mixing matrix of {config.agents} agents takes {shown_bytes(needed)} to make, and "
        f"this machine has {shown_bytes(memory)}: reduce agents to "
        f"{int(math.sqrt(memory / MATRIX_BYTES))} at most; or try it all the same (force)."
    )


def host_memory() -> int | None:
    """Bytes that this process can still have of the host's memory; None where nobody says."""
    found = [memory_of_system(), memory_of_group()]
    return min((x for x in found if x is not None), default=None)


def memory_of_system() -> int | None:
    """Bytes that the system can still give away, as Linux has it; all there are elsewhere."""
    about = pathlib.Path("/proc/meminfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def memory_of_group() -> int | None:
    """What a container may still use; None outside of one."""
    try:
        most, used = ((CGROUP / f"memory.{x}").read_text().strip() for x in ("max", "current"))
        about = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    # Files that were read once are given up before anything is refused.
    free = int(about.get("inactive_file", 0)) - int(used)
    return None if most == "max" else max(0, int(most) + free)


def shown_bytes(count: int | float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (
        ("ZB", 1e21),
        ("PB", 1e15),
        ("TB", 1e12),
        ("GB", 1e9),
        ("MB", 1e6),
        ("kB", 1e3),
    ):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
