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
      on_event: ``on_event(session, event, so_far)`` when an event of the plan has ended, with what
        there is of the run, see `dimat_jax.simulation.result.SoFar`. Its state is the run's own,
        whose memory the next event takes: keep copies. What it raises ends the run.
      on_diverged: ``on_diverged(method, error)`` when a method diverges for a seed; the run goes on
        without it, unless this raises.
      on_note: ``on_note(text)`` of something that is to be known and to stay on the screen.
      stop: ``stop() -> exception or None``, asked after every event by a run that leaves its
        results in a folder: it writes a checkpoint and raises the exception.
      on_stop: ``on_stop(result, reason)`` when the run ends before its end, because it was
        interrupted or has diverged: what there is, and a line that says why and where. The
        exception goes on afterwards.
    """

    on_start: Callable[[Any], object] = lambda setup: None
    on_phase: Callable[[str, float], object] = lambda label, done: None
    on_row: Callable[[Row], object] = lambda row: None
    on_event: Callable[[Any, Any, Any], object] = lambda session, event, so_far: None
    on_diverged: Callable[[str, Any], object] = lambda method, error: None
    on_note: Callable[[str], object] = lambda text: None
    stop: Callable[[], BaseException | None] = lambda: None
    on_stop: Callable[[Any, str], object] = lambda result, reason: None
