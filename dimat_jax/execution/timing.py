"""Where the time of a run goes, by part."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Timer:
    """The seconds of one measured block, once it has ended."""

    seconds: float = 0.0


Compile = Callable[[jax.stages.Wrapped, tuple[Any, ...]], Callable[..., Any]]
"""``(function, arguments)`` → the same function, of arguments of those shapes."""


def compile_now(function: jax.stages.Wrapped, args: tuple[Any, ...]) -> Callable[..., Any]:
    """A jitted function, compiled for arguments of these shapes where they lie."""
    return function.lower(*args).compile()


class Stopwatch:
    """Adds up seconds by part; a part measured inside another is taken out of the outer one.

    Args:
      tell: is told of each part when it begins, and when it goes on after one inside it.
      compile: how the jitted functions of the parts are compiled.
    """

    def __init__(
        self, tell: Callable[[str], object] = lambda part: None, compile: Compile = compile_now
    ):
        self.compile = compile
        self._tell = tell
        self._seconds: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._inner: list[float] = []
        self._running: list[str] = []

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[Timer]:
        """Adds the time that the block takes to ``part``. The block must wait for its results."""
        timer = Timer()
        self._inner.append(0.0)
        self._running.append(part)
        self._tell(part)
        start = time.perf_counter()
        try:
            yield timer
        finally:
            elapsed = time.perf_counter() - start
            timer.seconds = elapsed - self._inner.pop()
            self._running.pop()
            if self._inner:
                self._inner[-1] += elapsed
            self._seconds[part] = self._seconds.get(part, 0.0) + timer.seconds
        if self._running:
            self._tell(self._running[-1])

    def take(self) -> dict[str, float]:
        """Returns the seconds by part since the last call, and starts from zero."""
        seconds, self._seconds = self._seconds, {}
        for part, spent in seconds.items():
            self._before[part] = self._before.get(part, 0.0) + spent
        return seconds

    def spent_on(self, part: str) -> float:
        """The seconds of a part since the beginning, whatever has been taken."""
        return self._before.get(part, 0.0) + self._seconds.get(part, 0.0)


def compiled(function: jax.stages.Wrapped, stopwatch: Stopwatch) -> Callable[..., Any]:
    """A jitted function whose compilations are counted as the part ``compile``.

    Args:
      function: made by `jax.jit`.
      stopwatch: gets the time of each compilation.

    Returns:
      A function of the same positional arguments, compiled once for each set of shapes.
    """
    find = executables(function, stopwatch)
    return lambda *args: find(*args)(*args)


def executables(
    function: jax.stages.Wrapped, stopwatch: Stopwatch
) -> Callable[..., Callable[..., Any]]:
    """As `compiled`, for calls so many that looking the arguments through each time would count.

    Returns:
      A function that gives, for arguments, what has been compiled for such arguments.
    """
    found: dict[Any, Callable[..., Any]] = {}

    def find(*args: Any) -> Callable[..., Any]:
        if jax.config.jax_disable_jit:  # pyrefly: ignore[missing-attribute]
            return function  # There is nothing to compile.
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple((x.shape, x.dtype) for x in leaves)
        if key not in found:
            with stopwatch.measure("compile"):
                found[key] = stopwatch.compile(function, args)
        return found[key]

    return find
