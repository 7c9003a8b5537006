"""Ctrl-C and SIGTERM: a run that is asked to stop finishes what it is at, and can go on later."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple


class Stopped(KeyboardInterrupt):
    """A signal has ended a run; ``code`` is what shells call that: 128 and its number."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.code = 128 + number


class Stopping(NamedTuple):
    """How a run hears of signals.

    Attributes:
      begin: to be called when the run has begun: from then on a first signal waits.
      asked: what to raise, once a signal has come; None before.
    """

    begin: Callable[[], None]
    asked: Callable[[], Stopped | None]


@contextlib.contextmanager
def stopping(say: Callable[[str], object]) -> Iterator[Stopping]:
    """Has SIGINT and SIGTERM wait for a good moment while the block runs; a second one does not.

    Args:
      say: is told that a signal has come.
    """
    state = {"begun": False, "number": 0}

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not state["begun"] or state["number"]:
            raise Stopped(f"Ended by {name}.", number)
        state["number"] = number
        say(f"{name}: finishing what is under way, then a checkpoint; once more ends it at once.")

    def asked() -> Stopped | None:
        number = state["number"]
        return Stopped(f"Ended by {signal.Signals(number).name}.", number) if number else None

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield Stopping(lambda: state.update(begun=True), asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
