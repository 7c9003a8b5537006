"""Processes that die just before a change of the disk, the n-th one, whichever that is.

A death is an exception that nothing catches, after which no change is made any more: what a
program would tidy up when it fails, it does not when it is killed.
"""

import builtins
import contextlib
import io
import itertools
import os
import pathlib
import shutil
import weakref
from collections.abc import Callable, Iterator

import filelock
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")


class Died(BaseException):
    """The process is no more."""


class Life:
    """How many changes of the disk a process has made, and before which of them it dies."""

    def __init__(self, ends_before: int | None):
        self.changes, self.ends_before, self.within = 0, ends_before, False

    def step(self) -> None:
        """Counts a change, or dies."""
        if self.within:  # A change that consists of others, which cannot be told apart.
            return
        self.changes += 1
        if self.ends_before is not None and self.changes >= self.ends_before:
            self.changes = self.ends_before
            raise Died

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What changes in the block counts as nothing."""
        self.within = True
        try:
            yield
        finally:
            self.within = False

    @property
    def over(self) -> bool:
        """Whether it has died."""
        return self.ends_before is not None and self.changes >= self.ends_before


def halved(path: pathlib.Path) -> None:
    """Cuts a file, or every second one of a folder's, in half."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())[::2]
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


@contextlib.contextmanager
def dying(before: int | None) -> Iterator[Life]:
    """Has the block die before so many changes of the disk; None: only counts them."""
    life, locks = Life(before), weakref.WeakSet()

    class Lock(filelock.FileLock):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            locks.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filelock, "FileLock", Lock)
        for name in CHANGES:
            patch.setattr(os, name, stepping(life, getattr(os, name)))
        for module in (io, builtins):
            patch.setattr(module, "open", opening(life, io.open))
        written = safetensors.numpy.save_file
        patch.setattr(
            safetensors.numpy,
            "save_file",
            writing(life, written, lambda *given, **_: pathlib.Path(given[1])),
        )
        saved = ocp.Checkpointer.save
        patch.setattr(ocp.Checkpointer, "save", writing(life, saved, lambda *given, **_: given[1]))
        try:
            yield life
        except Died:
            pass
    for lock in locks:  # Of those who died they are free.
        lock.release(force=True)


def stepping(life: Life, change: Callable) -> Callable:
    """The same function of `os`, which may be the last."""

    def changed(*given, **named):
        life.step()
        return change(*given, **named)

    return changed


def opening(life: Life, opened: Callable) -> Callable:
    """``open``, where to write is two changes: there is an empty file, and then what is in it."""

    def changed(file, mode="r", *given, **named):
        if not set(mode) & set("wax+"):
            return opened(file, mode, *given, **named)
        life.step()
        found = opened(file, mode, *given, **named)
        try:
            life.step()
        except Died:
            found.close()
            raise
        return found

    return changed


def writing(life: Life, written: Callable, where: Callable) -> Callable:
    """What writes in other languages: it may end before, or half way."""

    def changed(*given, **named):
        life.step()
        with life.whole():
            result = written(*given, **named)
        try:
            life.step()
        except Died:
            halved(where(*given, **named))
            raise
        return result

    return changed


def every_death(
    prepare: Callable[[pathlib.Path], object],
    action: Callable[[pathlib.Path], object],
    check: Callable[[pathlib.Path], object],
    under: pathlib.Path,
    every: int = 1,
) -> int:
    """Has an action die before each of its changes, and checks what is left.

    Args:
      prepare: makes what the action finds, in a folder that is there.
      action: dies.
      check: of the folder of one that has died.
      under: where all these folders are made.
      every: tries the first death, and every so many after it.

    Returns:
      How many deaths there were.
    """
    for tried, number in enumerate(itertools.count(1, every)):
        folder = under / f"death{number}"
        folder.mkdir()
        prepare(folder)
        with dying(number) as life:
            action(folder)
        try:
            check(folder)
        except BaseException as error:
            error.add_note(f"after the death before change {number}")
            raise
        shutil.rmtree(folder)
        if not life.over:
            return tried
    raise AssertionError("unreachable")
