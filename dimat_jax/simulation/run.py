"""The run from its beginning to its end: a loop over `Session.advance`."""

from collections.abc import Mapping

import optax

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.datasets import Data, Dataset
from dimat_jax.execution.placement import to_host
from dimat_jax.metrics import PRETRAINING, Row
from dimat_jax.simulation.measure import Diverged
from dimat_jax.simulation.narrator import Narrator
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.plan import Action
from dimat_jax.simulation.result import Final, Result
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
    observer: Observer,
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Nothing is written: that is `dimat_jax.runs.simulate`, whose arguments these are.

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
        lambda what: observer.on_phase(what, 0.0),
    )
    observer.on_start(setup)
    narrator = Narrator(setup, observer)
    session = session_of(setup, narrator.part)
    history: list[Row] = []
    finals: dict[tuple[str, int], Final] = {}
    try:
        go_through(session, narrator, observer, history, finals)
    except (KeyboardInterrupt, Diverged) as error:
        why = "Diverged" if isinstance(error, Diverged) else "Interrupted"
        where = narrator.where()
        observer.on_stop(result_of(setup, history, finals), f"{why} in {where}.")
        raise
    return result_of(setup, history, finals)


def go_through(
    session: Session,
    narrator: Narrator,
    observer: Observer,
    history: list[Row],
    finals: dict[tuple[str, int], Final],
) -> None:
    """Goes through the plan of a session, and adds what it gives to ``history`` and ``finals``.

    Raises:
      Diverged: of a method, if the observer does not want to go on without it; of the pretraining.
    """
    stopwatch = session.parts.stopwatch
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
            # The agents' memory is spent; the pretrained ones, from whom the next begins, are not.
            observer.on_diverged(event.method, error)
            state = session.skip_method(state)
            continue
        narrator.end(stopwatch.spent_on("compile"))
        if event.action is Action.TRAIN:
            narrator.epoch(state)
        if event.ends:
            finals[event.method, event.seed] = final_of(session, state)
        if row is not None:
            history.append(row)
            observer.on_row(row)


def result_of(setup: Setup, history: list[Row], finals: dict[tuple[str, int], Final]) -> Result:
    """What a run gives, from what there is."""
    last = setup.config.seeds[-1]
    of_last = [final.variables for (_, seed), final in finals.items() if seed == last]
    return Result(history, of_last[0] if of_last else None, setup.symmetries, finals, setup)


def final_of(session: Session, state: RunState) -> Final:
    """Where a method has ended, on the host."""
    assert state.final is not None
    variables = to_host(session.setup.execution, state.agents.variables)
    return Final(variables, state.final, list(state.permutations))
