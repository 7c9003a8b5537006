"""The run from its beginning to its end: a loop over `Session.advance`."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import optax

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.execution.placement import to_host
from dimat_jax.metrics import PRETRAINING, Row
from dimat_jax.simulation.faults import Schedule
from dimat_jax.simulation.measure import Diverged
from dimat_jax.simulation.narrator import Narrator
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.plan import Action, Event
from dimat_jax.simulation.result import Final, Result, SoFar
from dimat_jax.simulation.session import Session, prepare_run, session_of
from dimat_jax.simulation.setup import Setup
from dimat_jax.simulation.state import RunState
from dimat_jax.topology import Topology
from dimat_jax.types import Model, Task


def run(
    config: Config,
    model: Model | None,
    dataset: Dataset | Data | None,
    topology: Topology | None,
    methods: Mapping[str, Algorithm] | None,
    task: Task | None,
    optimizer: optax.GradientTransformation | None,
    schedule: Schedule,
    observer: Observer,
    begin: Callable[[Session], SoFar | None] = lambda session: None,
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Nothing is written: that is `dimat_jax.runs.simulate`, whose arguments these are, but for
    ``begin``: where to go on from; by default, and where it gives None, from the beginning.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles; if a loss is
        no longer finite, with the agent and the step.
      KeyboardInterrupt: if it is interrupted. The observer is given what there is.
    """
    setup = prepare_run(
        config,
        model,
        dataset,
        topology,
        methods,
        task,
        optimizer,
        schedule,
        lambda what: observer.on_phase(what, 0.0),
    )
    observer.on_start(setup)
    narrator = Narrator(setup, observer)
    session = session_of(setup, narrator.part)
    so_far = begin(session) or SoFar(None, [], {}, {})
    try:
        go_through(session, narrator, observer, so_far)
    except (KeyboardInterrupt, Diverged) as error:
        why = "Diverged" if isinstance(error, Diverged) else "Interrupted"
        where = narrator.where()
        observer.on_stop(result_of(setup, so_far), f"{why} in {where}.")
        raise
    return result_of(setup, so_far)


def go_through(session: Session, narrator: Narrator, observer: Observer, so_far: SoFar) -> None:
    """Goes through the plan of a session, and adds what it gives to what there is.

    Raises:
      Diverged: of the pretraining, or of the last method that was left.
    """
    stopwatch, state = session.parts.stopwatch, so_far.state
    if state is None:
        narrator.begin(0, 0.0)
        state = session.start()
        narrator.end(stopwatch.spent_on("compile"))
    while event := session.next_event(state):
        narrator.begin(state.position.event, stopwatch.spent_on("compile"))
        try:
            state, row = session.advance(state)
        except Diverged as error:
            if event.method == PRETRAINING:
                raise  # There is nobody from whom a method could begin.
            reason = f"{narrator.where()}: {error}"
            so_far.diverged[event.method, event.seed] = reason
            row = diverged_row(session, event, state.position.epoch, reason)
            so_far.history.append(row)
            observer.on_row(row)
            observer.on_diverged(event.method, error)
            # The agents' memory is spent; the pretrained ones, from whom the next begins, are not.
            state = session.skip_method(state)
            continue
        narrator.end(stopwatch.spent_on("compile"))
        if event.action is Action.TRAIN:
            narrator.epoch(state)
        if event.ends:
            so_far.finals[event.method, event.seed] = final_of(session, state)
        if row is not None:
            so_far.history.append(row)
            observer.on_row(row)
        observer.on_event(session, event, so_far._replace(state=state))
    if so_far.diverged and not so_far.finals:
        raise Diverged(list(so_far.diverged.values())[-1])


def diverged_row(session: Session, event: Event, epoch: int, reason: str) -> Row:
    """The row of a method that has diverged, of which nothing is measured any more."""
    phase = "train" if event.action is Action.TRAIN else "merge"
    row: dict[str, Any] = dict(
        method=event.method, seed=event.seed, round=event.round, epoch=epoch, phase=phase
    )
    for name in session.setup.metrics:
        row |= {f"test_{name}{of}": None for of in ("", "_std", "_agents")}
        row[f"merged_{name}"] = None
    return cast(Row, row | {"diverged": reason})


def result_of(setup: Setup, so_far: SoFar) -> Result:
    """What a run gives, from what there is."""
    last, finals = setup.config.seeds[-1], so_far.finals
    of_last = [final.variables for (_, seed), final in finals.items() if seed == last]
    variables = of_last[0] if of_last else None
    return Result(so_far.history, variables, setup.symmetries, finals, setup, so_far.diverged)


def final_of(session: Session, state: RunState) -> Final:
    """Where a method has ended, on the host."""
    assert state.final is not None
    variables = to_host(session.setup.execution, state.agents.variables)
    return Final(variables, state.final, list(state.permutations))
