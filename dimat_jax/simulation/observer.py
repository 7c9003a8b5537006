"""Who is told of a run while it goes on. Imports nothing heavy, so that progress shows at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dimat_jax.metrics import Row


class Observer(NamedTuple):
    """Who is told of a run while it goes on.

    Attributes:
      on_start: ``on_start(setup)``, before anything compiles.
      on_phase: ``on_phase(label, done)`` when something begins that may take a while, or an epoch
        has ended: what it is, and how much of the time that the run is expected to take, counted
        from its start, has passed, 0 to 1; 0 as long as nothing is known of that.
      on_row: ``on_row(row)`` for every row of the history.
      on_diverged: ``on_diverged(method, error)`` when a method diverges, which by default ends the
        run; where it returns, the run goes on without that method.
      on_stop: ``on_stop(result, reason)`` when the run ends before its end, because it was
        interrupted or has diverged: what there is, and a line that says why and where. The
        exception goes on afterwards.
    """

    on_start: Callable[[Any], object] = lambda setup: None
    on_phase: Callable[[str, float], object] = lambda label, done: None
    on_row: Callable[[Row], object] = lambda row: None
    on_diverged: Callable[[str, Any], object] = lambda method, error: end(error)
    on_stop: Callable[[Any, str], object] = lambda result, reason: None


def end(error: Exception) -> None:
    """Raises the error."""
    raise error
