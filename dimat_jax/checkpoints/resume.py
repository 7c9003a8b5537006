"""When a run is checkpointed, and how it goes on from a checkpoint."""

import os
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

from dimat_jax.checkpoints import store
from dimat_jax.checkpoints.pack import pack, unpack
from dimat_jax.checkpoints.weights import folder_of, load_final, save_final
from dimat_jax.datasets.whole import (
    CHECKSUMS,
    Damaged,
    digest,
    remove,
    synchronize,
)
from dimat_jax.execution.processes import any_of, is_first, wait
from dimat_jax.metrics import Row, measure_of, read_rows, values_of
from dimat_jax.simulation.plan import Action, Event
from dimat_jax.simulation.result import Final, SoFar
from dimat_jax.simulation.session import Session
from dimat_jax.simulation.state import Position, RunState, seed_keys
from dimat_jax.symmetries import Permutations

CHECKPOINTS = "checkpoints"
SECONDS = 30.0
"""Within a round, or in pretraining, an epoch is followed by a checkpoint if the last is as old."""

Save = Callable[[Session, Event, SoFar, bool], bool]


def checkpointer(out: pathlib.Path, metrics: pathlib.Path, every: int, keep: int) -> Save:
    """What writes the checkpoints of a run, and its final networks.

    Args:
      out: the folder of the run.
      metrics: its rows, which are on the disk before a checkpoint says how many there are.
      every: rounds between two checkpoints; 0: there are none, but the final networks are written.
      keep: how many of the newest are kept, beside the best and the end of pretraining.

    Returns:
      ``(session, event, so_far, now) -> saved``, to be called after every event; ``now``: whether
      or not it is time for one.
    """
    folder, since = out / CHECKPOINTS, time.monotonic()
    written: dict[str, str] = {}  # Folder of final networks → digest of its checksums.

    def save(session: Session, event: Event, so_far: SoFar, now: bool) -> bool:
        nonlocal since
        for (method, seed), final in so_far.finals.items() if is_first() else ():
            of_final = folder_of(out, method, seed)
            if of_final.name not in written:
                if event.ends and (method, seed) == (event.method, event.seed):
                    save_final(of_final, final)
                written[of_final.name] = digest(of_final / CHECKSUMS)
        assert so_far.state is not None
        late = any_of(time.monotonic() - since >= SECONDS)
        if not every or not (now or is_due(session, event, so_far.state, every, late)):
            return False
        number = so_far.state.position.event
        pretrained = pretraining_of(session, so_far.state)
        if is_first():
            synchronize(metrics)
        more = {
            "rows": len(so_far.history),
            "score": score(so_far.history),
            "pretrained": pretrained,
            "finals": dict(written),
            "diverged": [[*key, reason] for key, reason in so_far.diverged.items()],
        }
        store.save(folder, number, pack(so_far.state, session.setup.execution.all_lanes), more)
        store.prune(folder, keep)
        since = time.monotonic()
        return True

    return save


def is_due(session: Session, event: Event, state: RunState, every: int, late: bool) -> bool:
    """Whether a checkpoint is to follow an event: pretraining has ended, or a round."""
    if event.action in (Action.START, Action.BEGIN):
        return False
    if event.phase == "pretrain" or event.ends:
        return True
    then = session.next_event(state)
    over = then is None or then[1:4] != event[1:4]
    return over and event.round % every == 0 or event.action is Action.TRAIN and late


def pretraining_of(session: Session, state: RunState) -> int | None:
    """The checkpoint that holds the agents from whom every method of this seed begins."""
    if state.pretrained is None:
        return None
    ends = (
        number + 1
        for number, event in enumerate(session.plan)
        if event.seed == state.position.seed and event.phase == "pretrain"
    )
    return next(ends)


def score(history: list[Row]) -> float | None:
    """How good the agents are by the last row; more is better. None where nothing was measured."""
    if not history or "diverged" in history[-1]:
        return None
    measure = measure_of(history[-1:])
    return measure.better * float(values_of({0: history[-1]}, measure).mean())


def go_on(out: pathlib.Path, metrics: pathlib.Path, session: Session) -> SoFar | None:
    """What the newest usable checkpoint of a run holds; warns of each that is not usable.

    What is newer than it is removed: other checkpoints, and rows.

    Args:
      out: the folder of the run.
      metrics: its rows.
      session: of the same configuration.

    Returns:
      Where to go on from; None where no checkpoint can be used.

    Raises:
      ValueError: if it is of other networks, optimizers or methods.
    """
    folder = out / CHECKPOINTS
    rows = read_rows(metrics) if metrics.exists() else []
    for number, about in store.newest(folder):
        try:
            found = read_checkpoint(out, session, number, about, rows)
        except Damaged as error:
            warnings.warn(f"Checkpoint {number} cannot be used: {error}.", stacklevel=2)
            continue
        wait()  # All have read what there is.
        if is_first():
            for newer in store.numbers_in(folder):
                if newer > number:
                    remove(store.path_of(folder, newer))
            keep_rows(metrics, len(found.history))
        return found
    return None


def read_checkpoint(
    out: pathlib.Path, session: Session, number: int, about: dict[str, Any], rows: list[Row]
) -> SoFar:
    """What one checkpoint holds.

    Raises:
      Damaged: if something that it stands on is damaged or missing.
      ValueError: if it is of other networks, optimizers or methods.
    """
    folder, pinned = out / CHECKPOINTS, about["pretrained"]
    if len(rows) < about["rows"]:
        raise Damaged(f"it stands on {about['rows']} rows, of which {len(rows)} are there")
    finals = finals_of(out, session, about["finals"])
    pretrained = None
    if pinned is not None and pinned != number:
        of_pinned = store.load(folder, pinned)
        pretrained = unpack(session, of_pinned, store.arrays_of(folder, pinned), None)
    state = unpack(session, about, store.arrays_of(folder, number), pretrained)
    if pinned == number:
        state = state._replace(pretrained=state.agents)
    diverged = {(method, seed): reason for method, seed, reason in about["diverged"]}
    return SoFar(state, rows[: about["rows"]], finals, diverged)


def finals_of(
    out: pathlib.Path, session: Session, digests: dict[str, str] | None
) -> dict[tuple[str, int], Final]:
    """The final networks that a run has written, in the order of its plan.

    Args:
      out: the folder of the run.
      session: of the same configuration.
      digests: name of the folder → digest of its checksums, of all that are wanted; None: all that
        there are.

    Raises:
      Damaged: if one is not as it was written.
    """
    found = {}
    for event in session.plan:
        folder = folder_of(out, event.method, event.seed)
        wanted = folder.is_dir() if digests is None else folder.name in digests
        if not event.ends or not wanted:
            continue
        try:
            if digests is not None and digest(folder / CHECKSUMS) != digests[folder.name]:
                raise Damaged(f"{folder} is of another run")
        except OSError as error:
            raise Damaged(f"{folder} cannot be read: {error}") from error
        final = load_final(folder, session.setup.abstract[0])
        groups = session.setup.symmetries.groups
        outer = {name: group.outer for name, group in groups.items() if group.outer}
        permutations: list[Any] = [Permutations(of, outer) for of in final.permutations]
        found[event.method, event.seed] = final._replace(permutations=permutations)
    return found


def finished(out: pathlib.Path, metrics: pathlib.Path, session: Session) -> SoFar:
    """All of a run that has ended."""
    end = Position(len(session.plan), session.plan[-1].seed)
    state = RunState(end, seed_keys(end.seed), agents=None)  # pyrefly: ignore
    rows = read_rows(metrics)
    diverged = {(r["method"], r["seed"]): r["diverged"] for r in rows if "diverged" in r}
    return SoFar(state, rows, finals_of(out, session, None), diverged)


def keep_rows(metrics: pathlib.Path, number: int) -> None:
    """Cuts a file of rows after so many of them."""
    lines = metrics.read_text(encoding="utf-8").splitlines(True)[:number]
    shorter = metrics.with_name(f".{metrics.name}.unfinished")
    shorter.write_text("".join(lines), encoding="utf-8")
    synchronize(shorter)
    os.replace(shorter, metrics)
