"""Decoded arrays kept as ``.npy`` files and memory-mapped, so that a second run starts at once."""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import filelock
import numpy as np

from dimat_jax.datasets.base import Dataset, Directory
from dimat_jax.datasets.whole import UNFINISHED, check_whole, name_of, whole_folder

FORMAT = 3  # goes up when a decoder's output changes, so that no older decoding is taken for it

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def default_directory() -> Path:
    """``$XDG_CACHE_HOME/dimat_jax``, or ``~/.cache/dimat_jax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dimat_jax"


def fingerprint(paths: Iterable[Path]) -> list[list]:
    """What tells whether files or folders have changed: path, size and time of each."""
    stats = [(str(path.resolve()), path.stat()) for path in sorted(paths)]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def cached(
    name: str,
    identity: Sequence,
    build: Callable[[], Dataset],
    cache_dir: Directory = None,
) -> Dataset:
    """Reads a data set from the cache, or builds it and keeps it there.

    Args:
      name: the data set's short name; the entry's folder starts with it.
      identity: all that the outcome depends on (see `fingerprint`); JSON values.
      build: makes the data set if the cache does not hold it.
      cache_dir: the cache, by default `default_directory()`.

    Returns:
      The data set, its images memory-mapped (read-only) if they could be kept.
    """
    directory = Path(cache_dir) if cache_dir else default_directory()
    digest = hashlib.sha256(json.dumps([FORMAT, name, identity]).encode()).hexdigest()
    entry = directory / f"{name}-{digest[:16]}"
    found = _read(entry)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        kept = True
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            # Whoever comes second waits, and finds it made.
            stack.enter_context(lock_of(entry))
            found = _read(entry)
        except OSError:
            kept = False
        if found is not None:
            return found
        dataset = build()
        try:
            if not kept:
                raise OSError("it cannot be written to")
            remove_unfinished(directory)
            _write(entry, dataset)
        except OSError as error:
            warnings.warn(f"{dataset.name} could not be kept in {directory}: {error}", stacklevel=2)
            return dataset
    return _read(entry) or dataset


def lock_of(entry: Path) -> filelock.FileLock:
    """Held by the process that makes an entry; released when it ends, however it ends."""
    return filelock.FileLock(entry.with_name(f".{entry.name}.lock"))


def remove_unfinished(directory: Path) -> None:
    """Removes what processes that were killed have left of entries."""
    for left in directory.glob(f".*{UNFINISHED}"):
        lock = lock_of(left.with_name(name_of(left)))
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def _read(entry: Path) -> Dataset | None:
    """The data set of an entry; none if it is absent, or damaged: then it is made again."""
    if not entry.exists():
        return None
    try:
        check_whole(entry)
        images_or_labels = [np.load(entry / f"{array}.npy", mmap_mode="r") for array in ARRAYS]
        return Dataset(*images_or_labels, **json.loads((entry / "about.json").read_text()))
    except (OSError, EOFError, ValueError, TypeError) as error:
        warnings.warn(f"The cache is damaged, and made again: {error}.", stacklevel=3)
        return None


def _write(entry: Path, dataset: Dataset) -> None:
    """Writes an entry so that it is there whole or not at all."""
    about = {k: v for k, v in dataset._asdict().items() if k not in ARRAYS}
    with whole_folder(entry) as folder:
        for array in ARRAYS:
            np.save(folder / f"{array}.npy", getattr(dataset, array))
        (folder / "about.json").write_text(json.dumps(about))
