"""Several processes that are one run: how they find each other, and what they agree on.

All of them run the same program, and each holds the agents of its own devices. What one of them
decides, or one alone has seen, is told to all by these functions, so that all go the same way. A
single process agrees with itself: then none of this does anything.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from dimat_jax.execution.devices import prepare_devices
from dimat_jax.registry import check_number, shown

HEARTBEAT = 30
"""Seconds after which a process that does not answer any more is given up."""


def connect_processes(
    agents: int,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Makes this process one of several of a run; call it before anything else uses JAX.

    On TPU pods, under Slurm and under Open MPI nothing has to be said: JAX finds the others.

    Args:
      agents: of the run; on CPU a process gets virtual devices for its part of them.
      coordinator: ``host:port`` on which process 0 can be reached by all.
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      ValueError: if only some of the three are given, or if the others are not found.
    """
    check_number("agents", agents, least=1, whole=True)
    given = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"coordinator, num_processes and process_id go together: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    if coordinator is not None:
        check_number("num_processes", processes, least=1, most=agents, whole=True)
        check_number("process_id", process, least=0, most=processes - 1, whole=True)  # pyrefly: ignore
        if not re.fullmatch(r"[^\s]+:\d{1,5}", str(coordinator)):
            raise ValueError(f"coordinator must be host:port, not {shown(coordinator)}.")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"The processes of the run do not find each other: {reason}. Outside of TPU pods, "
            "Slurm and Open MPI say coordinator, num_processes and process_id."
        ) from error
    # JAX says how many there are only once it has started, with a number of devices.
    prepare_devices(-(-agents // distributed.global_state.num_processes))


def are_several() -> bool:
    """Whether this process is one of several."""
    # Asked in this order, for the second starts JAX.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return not are_several() or jax.process_index() == 0


def told(text: str) -> list[str]:
    """What every process says, in their order."""
    if not are_several():
        return [text]
    letters = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(letters))))
    if not sizes.any():
        return [""] * len(sizes)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(letters)] = letters
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def any_of(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    return any(told("1" if flag else ""))


def together(action: Callable[[], Any], kind: type[ValueError] = ValueError) -> Any:
    """What a process does of its own; an error of that kind in one is raised by all."""
    if not are_several():
        return action()
    try:
        found, error = action(), None
    except kind as raised:
        found, error = None, raised
    reasons = list(filter(None, told("" if error is None else str(error) or kind.__name__)))
    if reasons:
        raise error or kind(reasons[0])
    return found


def decided(action: Callable[[], Any]) -> Any:
    """What the first process does for all of them, and what comes of it, a value of JSON.

    Raises:
      ValueError: that it raises there.
    """
    if not are_several():
        return action()
    found: list[Any] = []

    def once() -> None:
        if is_first():
            found.append(action())

    together(once)
    return json.loads(told(json.dumps(found[0]) if found else "")[0])


def wait() -> None:
    """Waits until all processes have come so far."""
    if are_several():
        multihost_utils.sync_global_devices("dimat_jax")
