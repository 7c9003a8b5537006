"""What is said of a run while it goes on: what it is at, and how far it is."""

import time

from dimat_jax.datasets import examples_of
from dimat_jax.metrics import PRETRAINING
from dimat_jax.simulation.forecast import (
    Costs,
    add_cost,
    outlook_of,
    seconds_left,
    seconds_of,
)
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.plan import Action, Event, plan
from dimat_jax.simulation.setup import Setup
from dimat_jax.simulation.state import RunState

QUIET = 3.0
"""An event that is known to take fewer seconds than this is not announced."""

PARTS = {
    "compile": "compiling",
    "match": "comparing units",
    "assign": "assigning units",
    "mix": "averaging",
    "statistics": "recomputing statistics",
}
"""Parts of an event as `Stopwatch` names them, in words; others are the event itself."""


class Narrator:
    """Tells an observer of the events of a run and of their parts, and times them as they happen.

    Args:
      setup: of the run.
      observer: whom to tell.
    """

    def __init__(self, setup: Setup, observer: Observer):
        events = plan(setup.config, setup.methods)
        self._setup, self._events, self._observer = setup, events, observer
        self._outlook = outlook_of(setup, events)
        self._costs: Costs = {}
        self._start = self._since = time.monotonic()
        self._number, self._compiled, self._loud = 0, 0.0, True
        self._expected: float | None = None
        self._after: float | None = None

    def begin(self, number: int, compiled: float) -> None:
        """An event begins.

        Args:
          number: its place in the plan.
          compiled: the seconds that compilation has taken so far.
        """
        self._number, self._compiled, self._since = number, compiled, time.monotonic()
        self._expected = seconds_of(self._outlook, self._costs, number)
        self._after = seconds_left(self._outlook, self._costs, number + 1)
        known = self._outlook.kinds[number] in self._costs
        self._loud = not known or self._expected is None or self._expected > QUIET
        if self._loud:
            self._say(self.where())

    def part(self, part: str) -> None:
        """A part of the event begins, or goes on."""
        self._loud |= part == "compile"  # Who compiles has not done it before.
        if self._loud:
            words = PARTS.get(part)
            self._say(self.where() + (f", {words}" if words else ""))

    def end(self, compiled: float) -> None:
        """The event has ended; arguments as of `begin`."""
        compiling = compiled - self._compiled
        seconds = max(0.0, time.monotonic() - self._since - compiling)
        work = float(self._outlook.work[self._number])
        kind = self._outlook.kinds[self._number]
        self._costs = add_cost(self._costs, kind, seconds, work, compiling)
        self._expected = 0.0
        self._after = seconds_left(self._outlook, self._costs, self._number + 1)

    def epoch(self, state: RunState) -> None:
        """The event that has ended was an epoch, which has left this state."""
        loss, speed = state.train_loss, state.images_per_second
        self._say(f"{self.where()}, loss {loss:.3f}, {speed:,.0f} examples/s")

    def where(self) -> str:
        """The event, in words."""
        return describe(self._setup, self._events[self._number])

    def done(self) -> float:
        """The share of the expected time that has passed; 0 while nothing is known of it."""
        if self._expected is None or self._after is None:
            return 0.0
        now = time.monotonic()
        left = self._after + max(0.0, self._expected - (now - self._since))
        spent = now - self._start
        return spent / (spent + left) if spent + left > 0 else 0.0

    def _say(self, label: str) -> None:
        self._observer.on_phase(label, self.done())


def describe(setup: Setup, event: Event) -> str:
    """An event in words: whose it is, when, and what happens."""
    config, tests = setup.config, examples_of(setup.data.test)
    parts = [f"seed {event.seed}"]
    if event.action is not Action.START:
        method = event.method
        parts.append("pretraining" if method == PRETRAINING else setup.methods[method].label)
    if event.round:
        parts.append(f"round {event.round}")
    match event.action:
        case Action.START:
            what = "initial weights"
        case Action.BEGIN:
            what = "starting"
        case Action.INITIAL:
            what = "aligning"
        case Action.TRAIN:
            epochs = config.epochs_per_round if event.round else config.pretrain_epochs
            what = f"epoch {event.epoch} of {epochs}"
        case Action.MERGE | Action.FINAL:
            what = "merging"
        case Action.RECOMPUTE:
            what = "recomputing statistics"
        case Action.MEASURE:
            some = min(config.test_examples or tests, tests)
            what = f"evaluating on {f'all {tests:,}' if event.ends else f'{some:,}'} test examples"
    return f"{', '.join(parts)}: {what}"
