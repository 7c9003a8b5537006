"""Timing of contestants in turn, their ratios with their spread, and where it was measured.

Only what was measured side by side is compared: in each repetition every contestant runs once, one
after the other, and a ratio is that of one repetition.
"""

import contextlib
import datetime
import functools
import json
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from dimat_jax.report.summary import commit, version, versions

T = TypeVar("T")


class Spread(NamedTuple):
    """A measured figure: the median of its repetitions, the least and the most of them."""

    median: float
    low: float
    high: float
    repetitions: int

    def __str__(self) -> str:
        """Two or more significant digits; the range where there is one."""
        if self.repetitions == 1:
            return f"{figure(self.median)} (once)"
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)})"


def spread(values: Sequence[float]) -> Spread:
    """The median and the range of some values.

    Raises:
      ValueError: if there are none.
    """
    if not values:
        raise ValueError("There must be at least one value to summarise, not none.")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Others' figure over ours, repetition by repetition: above 1, ours took less.

    Args:
      ours: one per repetition, in order: seconds for the same amount of work.
      others: theirs; those who were measured in fewer repetitions are compared in these alone.
    """
    return spread([other / own for own, other in zip(ours, others, strict=False)])


def figure(value: float) -> str:
    """A number with three digits, thousands separated, never in powers of ten."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interleave(
    blocks: Mapping[str, Callable[[], T]], repetitions: int, limit: float = math.inf
) -> dict[str, list[T]]:
    """Runs every block once to warm up (it compiles), then all of them in turn, again and again.

    Args:
      blocks: name → a function that waits for its own results and returns what was measured.
      repetitions: how often each is measured; every second time in the opposite order.
      limit: a block that takes longer than so many seconds is measured only once.

    Returns:
      Name → what the block returned in each repetition.

    Raises:
      ValueError: if there is not at least one repetition.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, not {repetitions}.")
    for block in blocks.values():
        block()
    results: dict[str, list[T]] = {name: [] for name in blocks}
    slow: set[str] = set()
    for repetition in range(repetitions):
        for name in list(blocks) if repetition % 2 == 0 else list(blocks)[::-1]:
            if name in slow:
                continue
            start = time.perf_counter()
            results[name].append(blocks[name]())
            if time.perf_counter() - start > limit:
                slow.add(name)
    return results


def timed(block: Callable[[], Any]) -> Callable[[], float]:
    """A block that returns the seconds that it took."""

    def run() -> float:
        start = time.perf_counter()
        block()
        return time.perf_counter() - start

    return run


class Reading(NamedTuple):
    """What a contestant's block returned, and the most memory that its process has held so far."""

    value: Any
    peak_bytes: int


@contextlib.contextmanager
def contestant(
    make: Callable[..., Callable[[], Any]], *arguments: Any
) -> Iterator[Callable[[], Reading]]:
    """A block in a process of its own, with its own threads, devices and memory.

    Idle processes take no time from the one that runs. The block is made at once, beside others;
    its first call waits for it.

    Args:
      make: of a module's top level; makes the block.
      *arguments: its arguments. They, and what the block returns, must be such as can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, make, *arguments), daemon=True)
    process.start()
    there.close()

    def call() -> Reading:
        here.send(None)
        value, peak_bytes, error = here.recv()
        if error is not None:
            raise RuntimeError(f"{getattr(make, '__name__', make)}{arguments} failed:\n{error}")
        return Reading(value, peak_bytes)

    try:
        yield call
    finally:
        here.close()
        process.join()


@contextlib.contextmanager
def contestants(
    makers: Mapping[str, Sequence[Any]],
) -> Iterator[dict[str, Callable[[], Reading]]]:
    """Several of them: name → the function that makes the block, and its arguments."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(contestant(*make)) for name, make in makers.items()}


def serve(connection: Any, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    """Runs the block each time the other end asks for it, until that end is closed."""
    block, failure = None, None
    try:
        block = make(*arguments)
    except Exception:
        failure = traceback.format_exc()
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        try:
            value = None if block is None else block()
            connection.send((value, peak_memory(), failure))
        except Exception:
            connection.send((None, peak_memory(), traceback.format_exc()))


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own, which nothing has been compiled in."""
    with contestant(functools.partial, function, *arguments) as block:
        return block().value


def peak_memory() -> int:
    """The most bytes that this process has held at once: on its accelerator, if it uses one."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    of_device = jax and jax.local_devices()[0].memory_stats()
    if of_device:
        return of_device["peak_bytes_in_use"]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


def cores() -> int:
    """Number of cores that this process may use."""
    from dimat_jax.execution.devices import usable_cores

    return usable_cores()


def select_backend(backend: str | None) -> None:
    """Has JAX use one kind of device; call it before anything else uses JAX. None: its default.

    On an accelerator, several processes share the memory: none may take it all when it starts.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    if backend is not None:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(backend, backend))


def accelerator(backend: str | None) -> str | None:
    """The name of the accelerator on which JAX runs with this backend; None where it is a CPU."""
    select_backend(backend)
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def provenance(command: Sequence[str] | None = None, backend: str | None = None) -> dict[str, Any]:
    """Where, when and with what something was measured."""
    return {
        "command": "python -m " + " ".join(command or main_command()),
        "date": datetime.date.today().isoformat(),
        "commit": commit() or "unknown",
        "cores": cores(),
        "load": os.getloadavg()[0],
        "processor": processor(),
        "accelerator": apart(accelerator, backend),
        "versions": {k: v for k, v in (versions() | {"torch": version("torch")}).items() if v},
    }


def main_command() -> list[str]:
    """The module that was started, and its arguments."""
    return [f"benchmarks.{pathlib.Path(sys.argv[0]).stem}", *sys.argv[1:]]


def processor() -> str:
    """The processor's name, as the system gives it."""
    file = pathlib.Path("/proc/cpuinfo")
    names = file.read_text().splitlines() if file.exists() else []
    found = (line.split(":", 1)[1].strip() for line in names if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, indented, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
