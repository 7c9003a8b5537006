"""A command as one of several processes. JAX is not imported where there is only one."""

import os
import sys

from dimat_jax.config import Config


def join(
    config: Config, coordinator: str | None, processes: int | None, process: int | None
) -> None:
    """Makes this process one of several, see `dimat_jax.execution.processes.connect_processes`.

    Raises:
      ValueError: if the others are not found, or options are missing.
    """
    if config.out is None:
        raise ValueError("Several processes need out: one folder, that all of them see.")
    from dimat_jax.execution.processes import connect_processes

    connect_processes(config.agents, coordinator, processes, process)


def among_several() -> bool:
    """Whether this process is one of several of a run."""
    if "jax" not in sys.modules:
        return False
    from dimat_jax.execution.processes import are_several

    return are_several()


def speaks() -> bool:
    """Whether this process is the one that says how the run goes on."""
    if not among_several():
        return True
    from dimat_jax.execution.processes import is_first

    return is_first()


def is_lost(error: BaseException) -> bool:
    """Whether an error came from the way between devices, not from the program or their memory."""
    import jax

    from_devices = isinstance(error, jax.errors.JaxRuntimeError)
    return from_devices and "RESOURCE_EXHAUSTED" not in str(error)


def about_lost(error: BaseException) -> str:
    """What to say where another process is gone, as JAX has it."""
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return (
        f"Another process of this run has ended, or cannot be reached ({reason}). Start all of "
        "them again with --resume to go on from the last checkpoint."
    )


def leave(code: int) -> int:
    """The exit code of a process that does not end well; one of several leaves at once.

    For at its exit JAX waits for the others, who may be waiting for it.
    """
    if among_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
