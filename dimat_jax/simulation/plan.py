"""The events of a run, in order of time."""

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.metrics import PRETRAINING, Phase


class Action(enum.Enum):
    """What happens in an event."""

    START = "a seed starts: every agent's initial state"
    BEGIN = "a method begins, from the pretrained agents"
    INITIAL = "what the method does before the first round"
    TRAIN = "an epoch of every agent"
    MERGE = "what the method does between two stretches of training"
    FINAL = "what the method does when all training has ended"
    RECOMPUTE = "normalisation statistics are recomputed"
    MEASURE = "every agent is evaluated, and a row written"


class Event(NamedTuple):
    """One transition of a run.

    Attributes:
      action: what happens.
      seed: of the run.
      method: whose event it is; `PRETRAINING` for the shared pretraining.
      round: 0 in pretraining, then counted from 1.
      epoch: of the stretch of training, counted from 1; 0 in other events.
      phase: what a row is measured after; None where there is no row.
      ends: whether the method ends with it.
    """

    action: Action
    seed: int
    method: str = PRETRAINING
    round: int = 0
    epoch: int = 0
    phase: Phase | None = None
    ends: bool = False


def plan(config: Config, methods: Mapping[str, Algorithm]) -> tuple[Event, ...]:
    """All events of a run: every seed is pretrained once, and goes on by each method.

    Args:
      config: the run.
      methods: its methods, in their order.
    """
    return tuple(event for seed in config.seeds for event in seed_events(config, methods, seed))


def seed_events(config: Config, methods: Mapping[str, Algorithm], seed: int) -> Iterator[Event]:
    """The events of one seed."""
    yield Event(Action.START, seed)
    for epoch in range(1, config.pretrain_epochs + 1):
        yield Event(Action.TRAIN, seed, epoch=epoch)
    if config.pretrain_epochs and config.recompute_statistics:
        yield Event(Action.RECOMPUTE, seed)
    yield Event(Action.MEASURE, seed, phase="pretrain")
    for method, algorithm in methods.items():
        yield Event(Action.BEGIN, seed, method)
        yield from method_events(config, algorithm, Event(Action.MEASURE, seed, method))


def method_events(config: Config, algorithm: Algorithm, event: Event) -> Iterator[Event]:
    """The events of one method, once it has begun; ``event`` names it."""
    merges_last = Action.MERGE if config.merge_at_end and algorithm.merge else None
    last = Action.FINAL if algorithm.final else merges_last
    if algorithm.initial:
        yield event._replace(action=Action.INITIAL)
    for round in range(1, config.rounds + 1):
        now = event._replace(round=round)
        measured = round in (1, config.rounds) or round % config.evaluate_every == 0
        if algorithm.merge:
            yield now._replace(action=Action.MERGE)
            if measured:
                yield now._replace(phase="merge")
        for epoch in range(1, config.epochs_per_round + 1):
            yield now._replace(action=Action.TRAIN, epoch=epoch)
        # In every round, for units are compared with these statistics, too.
        if config.recompute_statistics:
            yield now._replace(action=Action.RECOMPUTE)
        if measured:
            yield now._replace(phase="train", ends=round == config.rounds and not last)
    if last:
        now = event._replace(round=config.rounds + 1)
        yield now._replace(action=last)
        yield now._replace(phase="merge", ends=True)
    elif config.rounds == 0:
        yield event._replace(ends=True)
