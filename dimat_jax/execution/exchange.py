"""What moves between agents, and so between devices: rows of all agents, and their averages.

The one place where arrays cross devices. Who hears from whom is known on the host, and becomes a
`Route`: each device sends each other one the rows that agents there ask for, and no more. ::

    a ring of 6 agents on 3 devices, 2 lanes each; what is sent one device on, and one back

    device      0        1        2
    lanes     0   1    2   3    4   5       one on:   1 → 1,  3 → 2,  5 → 0
    received  5   2    1   4    3   0       one back: 0 → 2,  2 → 0,  4 → 1

Which rows these are is data. What a program is compiled for is how far rows go and how many at a
time: the rounds of a time-varying graph share a few programs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dimat_jax.execution.placement import AGENTS, Execution, pad, shard

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Route:
    """Where each lane finds those that it hears from: among its device's own lanes, or received.

    Attributes:
      send: int32 ``[devices * rows]``: the lanes that a device sends, those of one shift after
        those of another.
      at: int32 ``[lanes, slots]``: a lane of the device, or so many more as there are lanes for one
        of the rows that it receives.
      shifts: how rows go, the same for every device and compiled in: so many devices on, and how
        many rows.
      mesh: of the devices.
    """

    send: Int[Any, "*rounds rows"]
    at: Int[Any, "*rounds lanes slots"]
    shifts: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})


def find_route(execution: Execution, sources: Int[np.ndarray, "agents slots"]) -> Route:
    """The route by which every agent hears from its sources, on the devices.

    A few programs serve whatever is asked for later, see `choose_shifts`.

    Args:
      execution: where the agents are.
      sources: agents, known on the host.
    """
    rows = wanted(execution, sources)
    shifts = choose_shifts(rows.counts[1:], execution.lanes)
    send, at = shard(execution, arranged(execution, rows, shifts))
    return Route(send, at, shifts=shifts, mesh=execution.mesh)


def find_routes(execution: Execution, sources: Int[np.ndarray, "rounds agents slots"]) -> Route:
    """The routes of all rounds that there are: of one program, and no longer than they must be.

    Args:
      execution: where the agents are.
      sources: agents, known on the host.

    Returns:
      A route whose arrays, on the host, have a leading axis of rounds.
    """
    asked = [wanted(execution, of_round) for of_round in sources]
    most = np.max([of_round.counts for of_round in asked], axis=(0, 2)).tolist()
    shifts = tuple((by, rows) for by, rows in enumerate(most) if by and rows)
    send, at = zip(*(arranged(execution, of_round, shifts) for of_round in asked), strict=True)
    return Route(np.stack(send), np.stack(at), shifts=shifts, mesh=execution.mesh)


class Wanted(NamedTuple):
    """Which rows are asked for, in the order of shift, device and lane: each once for a device.

    Attributes:
      shift: so many devices on they are needed.
      device: by which.
      lane: of the device that has them.
      which: each lane's, an index into the others.
      counts: how many each device needs by each shift; by shift 0, of its own.
    """

    shift: Int[np.ndarray, "rows"]
    device: Int[np.ndarray, "rows"]
    lane: Int[np.ndarray, "rows"]
    which: Int[np.ndarray, "lanes slots"]
    counts: Int[np.ndarray, "devices devices"]


def wanted(execution: Execution, sources: Int[np.ndarray, "agents slots"]) -> Wanted:
    """The rows that agents ask for."""
    devices, lanes = execution.mesh.size, execution.lanes
    sources = pad(execution, sources)
    device = np.arange(execution.all_lanes)[:, None] // lanes
    shift = (device - sources // lanes) % devices
    found, which = np.unique(
        (shift * devices + device) * lanes + sources % lanes, return_inverse=True
    )
    group, lane = np.divmod(found, lanes)
    counts = np.bincount(group, minlength=devices**2).reshape(devices, devices)
    return Wanted(*np.divmod(group, devices), lane, which.reshape(sources.shape), counts)


def arranged(
    execution: Execution, rows: Wanted, shifts: tuple[tuple[int, int], ...]
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "lanes slots"]]:
    """`Route.send` and `Route.at`, where rows that are wanted go by these shifts."""
    devices, lanes = execution.mesh.size, execution.lanes
    # What comes by a shift begins there, after the device's own lanes and what came before it; all
    # lanes of a device are sent as they lie.
    begin, whole = np.zeros(devices, int), np.ones(devices, bool)
    end = lanes
    for by, count in shifts:
        begin[by], whole[by], end = end, count == lanes, end + count
    first = (np.cumsum(rows.counts) - rows.counts.ravel()).reshape(devices, devices)
    rank = np.arange(len(rows.lane)) - first[rows.shift, rows.device]
    position = begin[rows.shift] + np.where(whole[rows.shift], rows.lane, rank)
    send, away = np.zeros((devices, end - lanes), np.int32), rows.shift > 0
    sender = (rows.device - rows.shift) % devices
    send[sender[away], position[away] - lanes] = rows.lane[away]
    return send.reshape(-1), position[rows.which].astype(np.int32)


def choose_shifts(
    counts: Int[np.ndarray, "shifts devices"], lanes: int
) -> tuple[tuple[int, int], ...]:
    """The shifts of a route, and how many rows go by each, rounded up: few are compiled.

    Args:
      counts: how many rows each device needs from 1, 2, ... devices before it.
      lanes: of a device.
    """
    most = counts.max(1, initial=0).tolist()
    used = [by for by, rows in enumerate(most, 1) if rows]
    # A graph without order uses each shift for few devices, and others in the next round: less than
    # half of what the used ones would send is asked for. All shifts, then: one program for all
    # rounds.
    wasteful = 2 * counts.sum() < counts.shape[1] * sum(most)
    if len(most) > 2 and used and (wasteful or len(used) == len(most)):
        return tuple((by, rounded(max(most), lanes)) for by in range(1, 1 + len(most)))
    return tuple((by, rounded(most[by - 1], lanes)) for by in used)


def rounded(rows: int, lanes: int) -> int:
    """So many rows or more: 1, 2, 4, 16, 64, ... or all lanes."""
    size = 1
    while size < rows:
        size *= 2 if size < 4 else 4
    return min(size, lanes)


def link_bytes(route: Route, row: int) -> Int[np.ndarray, "devices devices"]:
    """Bytes that go from each device to each other one when a route is followed once.

    Args:
      route: of one round.
      row: bytes of one lane's arrays.
    """
    devices = route.mesh.size
    found = np.zeros((devices, devices), np.int64)
    for by, rows in route.shifts:
        sender = np.arange(devices)
        found[sender, (sender + by) % devices] += rows * row
    return found


def follow(route: Route, tree: PyTree) -> list[PyTree]:
    """What the lanes of a device hear, one pytree ``[lanes, ...]`` for each slot.

    Runs on every device, see `dimat_jax.execution.forms.over_devices`.

    Args:
      route: of the device.
      tree: of the device's own lanes, ``[lanes, ...]``.
    """
    devices, (lanes, slots) = route.mesh.size, route.at.shape

    def received(x: Array) -> list[Array]:
        found, start = [], 0
        for by, count in route.shifts:
            rows = x if count == lanes else x[route.send[start : start + count]]
            pairs = [(d, (d + by) % devices) for d in range(devices)]
            found.append(jax.lax.ppermute(rows, "agents", pairs))
            start += count
        return found

    leaves, structure = jax.tree.flatten(tree)
    arrived = [received(x) for x in leaves]

    # Both are read where they lie: to join them first would copy all that a device has.
    def pick(x: Array, found: list[Array], at: Int[Array, "lanes"]) -> Array:
        if not found:
            return x[at]
        away = found[0] if len(found) == 1 else jnp.concatenate(found)
        here = (at < lanes).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(here, x[jnp.minimum(at, lanes - 1)], away[jnp.maximum(at - lanes, 0)])

    return [
        jax.tree.unflatten(
            structure, [pick(x, y, at) for x, y in zip(leaves, arrived, strict=True)]
        )
        for at in (route.at[:, slot] for slot in range(slots))
    ]


def over(mesh: Mesh, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of what lies on one device, lifted to all, for use within a compiled one."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=AGENTS, out_specs=AGENTS, check_vma=False)


def product(matrix: Float[Array, "all all"], devices: int, tree: PyTree) -> PyTree:
    """Σ_j w_ij x_j where every agent hears from every other: a device gets sums, and no rows.

    Runs on every device. A sum goes round all devices, each of which adds its own lanes' share, and
    ends where it belongs: each device sends as many rows as to all others at once, and holds one
    device's at a time.

    Args:
      matrix: w, on every device, in the dtype of the sums.
      devices: how many there are.
      tree: of the device's own lanes, ``[lanes, ...]``.
    """
    if devices == 1:
        return mix(matrix, tree)
    here, lanes = jax.lax.axis_index("agents"), len(matrix) // devices
    ring = [(d, (d + 1) % devices) for d in range(devices)]

    def share(step: int | Int[Array, ""]) -> Float[Array, "to lanes"]:
        """Weights of the own lanes in the sum that lies here: at first the device before's."""
        owner = (here - 1 - step) % devices
        return jax.lax.dynamic_slice(matrix, (owner * lanes, here * lanes), (lanes, lanes))

    def add_up(x: Array) -> Array:
        total = mix(share(0), x)
        for step in range(1, devices):
            total = jax.lax.ppermute(total, "agents", ring) + mix(share(step), x)
        return total

    return jax.tree.map(add_up, tree)


def take(tree: PyTree, sources: Int[Array, "lanes"]) -> PyTree:
    """For each lane what another one has: ``x[sources]``, leaf by leaf.

    Whoever it is: compiled for several devices, it gathers everyone's.

    Args:
      tree: stacked ``[lanes, ...]``.
      sources: which.
    """
    return jax.tree.map(lambda x: x[sources], tree)


def mix(matrix: Float[Array, "lanes lanes"], tree: PyTree) -> PyTree:
    """Σ_j π_ij x_j for every lane i, leaf by leaf, whatever the graph; compiled as `take`.

    Args:
      matrix: π.
      tree: stacked ``[lanes, ...]``.
    """

    def average(x: Array) -> Array:
        return jnp.tensordot(matrix.astype(x.dtype), x, axes=1, precision="highest")

    return jax.tree.map(average, tree)
