"""The run from its beginning to its end: a loop over `Session.advance`."""

from collections.abc import Mapping

from dimat_jax.algorithms import Algorithm
from dimat_jax.config import Config
from dimat_jax.datasets import Dataset
from dimat_jax.execution.placement import to_host
from dimat_jax.metrics import PRETRAINING, Row
from dimat_jax.simulation.measure import Diverged
from dimat_jax.simulation.plan import Action, Event, share_done
from dimat_jax.simulation.result import Final, Observer, Result
from dimat_jax.simulation.session import Session, prepare_run, session_of
from dimat_jax.simulation.state import RunState
from dimat_jax.topology import Topology
from dimat_jax.types import Model


def run(
    config: Config,
    model: Model | None,
    dataset: Dataset | None,
    topology: Topology | None,
    methods: Mapping[str, Algorithm] | None,
    observer: Observer,
) -> Result:
    """Runs every method of a configuration, for every seed, from the same pretrained agents.

    Nothing is written: that is `dimat_jax.runs.simulate`, whose arguments these are.

    Raises:
      ValueError: for a configuration that cannot be run, before anything compiles; if a loss is
        no longer finite, with the agent and the step.
    """
    setup = prepare_run(config, model, dataset, topology, methods)
    observer.on_start(setup)
    observer.on_phase("compiling the first steps", 0.0)
    session = session_of(setup)
    history: list[Row] = []
    finals: dict[tuple[str, int], Final] = {}
    state = session.start()
    while event := session.next_event(state):
        announce(session, state, event, observer)
        try:
            state, row = session.advance(state)
        except Diverged as error:
            if event.method == PRETRAINING:
                raise  # There is nobody from whom a method could begin.
            # The agents' memory is spent; the pretrained ones, from whom the next begins, are not.
            observer.on_diverged(event.method, error)
            state = session.skip_method(state)
            continue
        if event.action is Action.TRAIN:
            say_epoch(session, state, event, observer)
        if event.ends:
            finals[event.method, event.seed] = final_of(session, state)
        if row is not None:
            history.append(row)
            observer.on_row(row)
    last = setup.config.seeds[-1]
    of_last = [final.variables for (_, seed), final in finals.items() if seed == last]
    return Result(history, of_last[0] if of_last else None, setup.symmetries, finals, setup)


def final_of(session: Session, state: RunState) -> Final:
    """Where a method has ended, on the host."""
    assert state.final_accuracy is not None
    variables = to_host(session.setup.execution, state.agents.variables)
    return Final(variables, state.final_accuracy, list(state.permutations))


def announce(session: Session, state: RunState, event: Event, observer: Observer) -> None:
    """Tells of what begins, if it takes a while."""
    who = f"seed {event.seed}, {event.method}"
    tests = len(session.setup.dataset.test_labels)
    if event.action is Action.BEGIN and session.setup.methods[event.method].gossip:
        label = f"{who}: starting"
    elif event.action in (Action.MERGE, Action.FINAL):
        label = f"{who}, round {event.round}: merging"
    elif event.ends:
        label = f"{who}: evaluating on all {tests:,} test images"
    else:
        return
    observer.on_phase(label, share_done(session.plan, state.position.event))


def say_epoch(session: Session, state: RunState, event: Event, observer: Observer) -> None:
    """Tells of an epoch that has ended; ``event`` was it."""
    config = session.setup.config
    epochs = config.epochs_per_round if event.round else config.pretrain_epochs
    observer.on_phase(
        f"seed {event.seed}, {event.method}, round {event.round}, epoch {event.epoch} of {epochs}: "
        f"loss {state.train_loss:.3f}, {state.images_per_second:,.0f} images/s",
        share_done(session.plan, state.position.event),
    )
