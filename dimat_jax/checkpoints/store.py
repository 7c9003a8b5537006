"""The checkpoints of a run: one folder for each, the newest few and the best of which are kept."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from dimat_jax.checkpoints.pack import Packed, Read
from dimat_jax.datasets.whole import (
    Damaged,
    check_whole,
    remove,
    remove_unfinished,
    unfinished_path,
    whole_folder,
)
from dimat_jax.execution.processes import are_several, is_first, wait
from dimat_jax.registry import in_a_line

ARRAYS, ABOUT = "arrays", "about.json"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Other errors may only say that a file system does not know the question."""


def save(folder: pathlib.Path, number: int, packed: Packed, more: dict[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
      folder: of all checkpoints of the run.
      number: of the next event of its plan.
      packed: the state.
      more: values of JSON that `load` gives back with ``packed.about``.
    """
    with finished_by_first(path_of(folder, number)) as path:
        write_arrays(path.absolute() / ARRAYS, packed.arrays)
        if is_first():
            text = json.dumps({**packed.about, **more}, indent=1)
            (path / ABOUT).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def finished_by_first(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder into which all processes write their part; the first makes and finishes it."""
    if not are_several():
        with whole_folder(path) as unfinished:
            yield unfinished
        return
    with contextlib.ExitStack() as finishing:
        if is_first():
            finishing.enter_context(whole_folder(path))
        wait()
        yield unfinished_path(path)
        wait()
    wait()


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Has Orbax write arrays into a new folder.

    Raises:
      OSError: if they cannot be written.
    """
    if not are_several():  # Each writes its part, of which the others do not know.
        reserve(path, sum(array.nbytes for array in arrays.values()))
    logger = logging.getLogger("absl")
    logger.disabled = True  # Its threads tell at length of what is raised here as well.
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            arguments = ocp.args.StandardSave(arrays)  # pyrefly: ignore
            checkpointer.save(path, args=arguments)
    except ValueError as error:  # TensorStore's, whatever the system has said.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise OSError(f"its arrays: {in_a_line(error)}") from error
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    finally:
        logger.disabled = False


def reserve(path: pathlib.Path, size: int) -> None:
    """Raises an `OSError` where there is no room for so many bytes, if the system can say so.

    Where a disk is full Orbax's threads end in tracebacks, one for each write that was under way.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            with path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
        finally:
            path.unlink(missing_ok=True)


def load(folder: pathlib.Path, number: int) -> dict[str, Any]:
    """What was said of a checkpoint, once all of it has been found to be as it was written.

    Raises:
      Damaged: if it is not.
    """
    path = path_of(folder, number)
    check_whole(path)
    return about(path)


def about(path: pathlib.Path) -> dict[str, Any]:
    """What was said of a checkpoint.

    Raises:
      Damaged: if it cannot be read.
    """
    try:
        return json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path / ABOUT} cannot be read: {error}") from error


def arrays_of(folder: pathlib.Path, number: int) -> Read:
    """How the arrays of a checkpoint are read, see `dimat_jax.checkpoints.pack.Read`."""
    path = path_of(folder, number).absolute() / ARRAYS

    def read(shapes: dict[str, Any]) -> dict[str, Any]:
        # Without a sharding as it was saved there may be no such devices: on the host, then.
        options = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            if shape.sharding is None
            else ocp.ArrayRestoreArgs(sharding=shape.sharding)
            for name, shape in shapes.items()
        }
        arguments = ocp.args.PyTreeRestore(item=shapes, restore_args=options)  # pyrefly: ignore
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=arguments)

    return read


def path_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    """The folder of one checkpoint."""
    return folder / f"{number:06d}"


def numbers_in(folder: pathlib.Path) -> list[int]:
    """The checkpoints of a run, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def newest(folder: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those that are whole, the newest first; warns of each that is not."""
    if is_first():
        remove_unfinished(folder)
    for number in reversed(numbers_in(folder)):
        try:
            yield number, load(folder, number)
        except Damaged as error:
            warnings.warn(f"A checkpoint is damaged, and left out: {error}.", stacklevel=2)


def prune(folder: pathlib.Path, keep: int) -> None:
    """Removes all but the newest few, the best, and the ends of pretraining that these stand on.

    Of several processes the first does it.

    Args:
      folder: of all checkpoints of the run.
      keep: how many of the newest are kept.
    """
    if not is_first():
        return
    numbers = numbers_in(folder)
    said: dict[int, dict[str, Any]] = {}
    for number in numbers:
        with contextlib.suppress(Damaged):
            said[number] = about(path_of(folder, number))
    scores = {n: found["score"] for n, found in said.items() if found.get("score") is not None}
    best = [max(scores, key=lambda number: (scores[number], -number))] if scores else []
    kept = {*numbers[-keep:], *best}
    kept |= {said[number].get("pretrained") for number in kept if number in said}
    for number in set(numbers) - kept:
        remove(path_of(folder, number))
