"""Folders that are there whole or not at all, and whose damage shows."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator

CHECKSUMS = "sha256.json"
"""Name of a file → its SHA-256; written last."""
UNFINISHED, GOING = ".unfinished", ".going"
"""Ends of the hidden names of a folder that is being written, and with both of one that is being
removed."""


class Damaged(ValueError):
    """A folder is not as it was written."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that Python handles, Ctrl-C among them, are handled when the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            handlers[signal.Signals(number)](number, None)


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder under another name, which gets its own when the block has ended.

    It then has checksums and is on the disk, not only on its way there; what lay at ``path`` is
    replaced. A process that is killed leaves the other name behind, see `remove_unfinished`; one
    that is interrupted finishes it first.

    Args:
      path: of the folder.
    """
    unfinished = unfinished_path(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with undisturbed():
            yield unfinished
            finish(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_path(path: pathlib.Path) -> pathlib.Path:
    """What a folder is called until it is whole."""
    return path.with_name(f".{path.name}{UNFINISHED}")


def finish(unfinished: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a folder its checksums and its name, once it is on the disk."""
    sums = {str(file.relative_to(unfinished)): digest(file) for file in files_in(unfinished)}
    (unfinished / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for file in files_in(unfinished):
        synchronize(file)
    for folder in {unfinished, *(file.parent for file in files_in(unfinished))}:
        synchronize(folder)
    remove(path)
    unfinished.rename(path)
    synchronize(path.parent)


def remove(path: pathlib.Path) -> None:
    """Removes a folder, if it is there, so that it is never there in part under its name."""
    going = path.with_name(f".{path.name}{GOING}{UNFINISHED}")
    with contextlib.suppress(OSError):
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)


def name_of(left: pathlib.Path) -> str:
    """The name of the folder of which something is left, see `remove_unfinished`."""
    return left.name[1:].removesuffix(UNFINISHED).removesuffix(GOING)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what processes that were killed have left in a folder of whole ones."""
    for left in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)


def check_whole(path: pathlib.Path) -> None:
    """Raises `Damaged`, which says where, for a folder that is not as it was written."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        there = {str(file.relative_to(path)): file for file in files_in(path)}
        there.pop(CHECKSUMS)
        for name in {*sums, *there}:
            if name not in there or name not in sums:
                raise Damaged(f"{path / name} is {'missing' if name in sums else 'too many'}")
            if digest(there[name]) != sums[name]:
                raise Damaged(f"{path / name} has changed since it was written")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{path / CHECKSUMS} cannot be read: {error}") from error


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files in a folder and below it, in their order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(file: pathlib.Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def synchronize(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk, where the system can say so."""
    flags = os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return  # Windows opens no folders.
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
