"""How long the rest of a run will take, from what its events have cost so far.

Events are of kinds, and those of a kind differ in nothing but their amount of work. The cost of a
kind that has not been seen yet is guessed from kinds that have, by work; so is its compilation.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dimat_jax.algorithms import Algorithm
from dimat_jax.datasets import examples_of
from dimat_jax.simulation.plan import Action, Event
from dimat_jax.simulation.setup import Setup

Kind = tuple[Action, str]
"""What happens, and whose it is where methods differ in it."""

PASSES = 3
"""A gradient takes about as long as so many forward passes."""

WORKLESS = (Action.START, Action.BEGIN)
"""Their work is compiling: the time that they take otherwise says nothing of other events."""


class Cost(NamedTuple):
    """What the events of a kind have cost so far.

    Attributes:
      events: how many there were.
      seconds: in all, without compilation, and without the first, in which more is made than what
        counts as compiled, if there were others.
      work: of the same events, as `work_of` counts it.
      compiling: the seconds that compilation has taken in all of them.
    """

    events: int = 0
    seconds: float = 0.0
    work: float = 0.0
    compiling: float = 0.0


Costs = Mapping[Kind, Cost]
"""What has been measured."""


class Outlook(NamedTuple):
    """The work of a run.

    Attributes:
      kinds: the kind of each event.
      work: the work of each event.
      columns: every kind, in the order of ``left``.
      left: the work of each kind in the events from one on; a last line of zeros.
    """

    kinds: tuple[Kind, ...]
    work: Float[np.ndarray, " events"]
    columns: tuple[Kind, ...]
    left: Float[np.ndarray, "events_and_end kinds"]


def outlook_of(setup: Setup, events: Iterable[Event]) -> Outlook:
    """The kinds and the work of all events of a run."""
    events = tuple(events)
    kinds = tuple(kind_of(event, setup.methods) for event in events)
    work = np.array([work_of(event, setup) for event in events], float)
    columns = tuple(dict.fromkeys(kinds))
    left = np.zeros((len(events) + 1, len(columns)))
    for number in reversed(range(len(events))):
        left[number] = left[number + 1]
        left[number, columns.index(kinds[number])] += work[number]
    return Outlook(kinds, work, columns, left)


def kind_of(event: Event, methods: Mapping[str, Algorithm]) -> Kind:
    """The kind of an event: agents that train by themselves do so alike in every method."""
    if event.action in (Action.INITIAL, Action.MERGE, Action.FINAL):
        return event.action, event.method
    if event.action is Action.MEASURE:
        return event.action, "all tests" if event.ends else ""
    if event.action in (Action.TRAIN, Action.BEGIN) and event.method in methods:
        return event.action, event.method if methods[event.method].gossip else ""
    return event.action, ""


def work_of(event: Event, setup: Setup) -> float:
    """The work of an event in forward passes of one image; at least one."""
    config, tests = setup.config, examples_of(setup.data.test)
    images = 0
    match event.action:
        case Action.TRAIN:
            examples = setup.epoch_examples[event.round > 0]
            images = PASSES * (examples // setup.batch_size) * setup.batch_size
        case Action.MERGE | Action.FINAL:
            graph = setup.graphs[event.method]["merge" if event.action is Action.MERGE else "final"]
            slots = int((graph.mixing_matrices[0] > 0).sum(1).max())
            images = slots * config.matching_images + config.statistics_images
        case Action.INITIAL:
            images = 2 * config.matching_images
        case Action.RECOMPUTE:
            images = config.statistics_images
        case Action.MEASURE:
            images = min(config.test_examples or tests, tests) + tests * event.ends
    return max(1.0, float(config.agents * images))


def add_cost(costs: Costs, kind: Kind, seconds: float, work: float, compiling: float) -> Costs:
    """What has been measured, with another event, whose ``seconds`` are those without compiling."""
    before = costs.get(kind, Cost())
    compiling += before.compiling
    if before.events > 1:
        seconds, work = seconds + before.seconds, work + before.work
    return {**costs, kind: Cost(before.events + 1, seconds, work, compiling)}


def rate(costs: Costs, kind: Kind) -> float | None:
    """Seconds for a piece of work: of the kind, else of its action, else of all that there is."""
    same = [kind] if kind in costs else [known for known in costs if known[0] is kind[0]]
    known = [costs[k] for k in same or [known for known in costs if known[0] not in WORKLESS]]
    return sum(cost.seconds for cost in known) / sum(cost.work for cost in known) if known else None


def compiling(costs: Costs, kind: Kind) -> float:
    """Seconds that compilation will take: none for a kind that was seen, else as for others."""
    if kind in costs or not costs:
        return 0.0
    same = [cost for known, cost in costs.items() if known[0] is kind[0]] or list(costs.values())
    return sum(cost.compiling for cost in same) / len(same)


def seconds_of(outlook: Outlook, costs: Costs, number: int) -> float | None:
    """The seconds that an event will take; None where nothing like it has been measured."""
    kind = outlook.kinds[number]
    found = rate(costs, kind)
    return None if found is None else found * outlook.work[number] + compiling(costs, kind)


def seconds_left(outlook: Outlook, costs: Costs, number: int) -> float | None:
    """The seconds that the events from ``number`` on will take; None where nothing is known yet."""
    total = 0.0
    for kind, work in zip(outlook.columns, outlook.left[number], strict=True):
        if work:
            found = rate(costs, kind)
            if found is None:
                return None
            total += found * work + compiling(costs, kind)
    return total
