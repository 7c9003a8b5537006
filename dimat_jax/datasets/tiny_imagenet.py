"""Tiny ImageNet from its original folder, zip or tar.

Source: Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N (2015);
200 classes of ImageNet, 64 × 64 pixels. The labels of its test images were never published: its
validation images serve for testing.
"""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from dimat_jax.datasets.base import (
    DataNotFoundError,
    Dataset,
    Directory,
    check,
    data_directory,
)
from dimat_jax.datasets.cache import cached, fingerprint
from dimat_jax.datasets.decode import decode
from dimat_jax.registry import in_a_line

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TITLE = "Tiny ImageNet"
SIZE = (64, 64)
COMPLETE = 500  # training images a class
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

CLASSES = "wnids.txt"
TESTS = "val/val_annotations.txt"
MAX_FILE, MAX_BYTES = 2**20, 2**30
"""What a file, and all together, may hold: the original has 0.24 GB in files of up to 0.4 MB."""

Files = dict[str, bytes]
"""Path below ``tiny-imagenet-200/`` → content."""


def load(data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Loads Tiny ImageNet from ``tiny-imagenet-200*`` in the data directory.

    Classes are numbered in the order of their WordNet ids, as torchvision's ``ImageFolder`` does.
    The images are shuffled, always in the same way (the original is sorted by class).

    Args:
      data_dir: see `dimat_jax.datasets.base.data_directory`.
      cache_dir: where decoded arrays are kept; see `dimat_jax.datasets.cache`.

    Returns:
      Images of shape ``[examples, 64, 64, 3]``, grey ones as RGB. 100,000 for training and 10,000
      for testing in the original; of a part the name says so.

    Raises:
      DataNotFoundError: if it is not there; says where to put it.
      ValueError: if what was found is damaged; names it.
    """
    directory = data_directory(data_dir)
    path = find(directory)
    if path is None:
        raise DataNotFoundError(
            f"{TITLE} is not in {directory}. Put tiny-imagenet-200.zip from {URL} there, as it is "
            "or extracted, or name another data directory."
        )
    return cached("tiny_imagenet", fingerprint(_marks(path)), lambda: read(path), cache_dir)


def find(directory: Path) -> Path | None:
    """The folder, zip or tar to read; of several the one of the shortest name, a folder first.

    Last come folders without a list of classes, which are none of the data set, or a part of it.
    """
    paths = [
        path
        for path in directory.glob("tiny-imagenet-200*")
        if path.is_dir() or path.name.endswith(SUFFIXES)
    ]

    def rank(path: Path) -> tuple[bool, int, str]:
        return path.is_dir() and not (path / CLASSES).is_file(), len(path.name), path.name

    return min(paths, key=rank, default=None)


def _marks(path: Path) -> list[Path]:
    """Files and folders whose size and time change when images do; few enough to look at."""
    if not path.is_dir():
        return [path]
    return [path, *path.glob("*.txt"), *path.glob("val/*"), *path.glob("train/*/images")]


def read(path: Path) -> Dataset:
    """Reads the folder or archive at a path.

    Raises:
      ValueError: if a file is missing or damaged; names it and the folder or archive.
    """
    try:
        files = dict(_files(path))
        return _assemble(files)
    except Exception as error:  # zipfile, tarfile and zlib have many
        raise ValueError(f"{path} is damaged, or not {TITLE} ({in_a_line(error)}).") from error


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """All files needed, by their path below ``tiny-imagenet-200/``.

    Raises:
      ValueError: for files larger than the data set's, before they are unpacked.
    """
    total = 0

    def take(name: str, size: int) -> bool:
        nonlocal total
        if not _needed(name):
            return False
        total += size
        if size > MAX_FILE or total > MAX_BYTES:
            raise ValueError(f"{name} is of {size:,} bytes, which is too much")
        return True

    if path.is_dir():
        for file in path.rglob("*"):
            name = file.relative_to(path).as_posix()
            if file.is_file() and take(name, file.stat().st_size):
                yield name, file.read_bytes()
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if take(_below(member.filename), member.file_size):
                    yield _below(member.filename), archive.read(member)
    else:
        with tarfile.open(path, tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile() and take(_below(member.name), member.size):
                    content = archive.extractfile(member)
                    assert content is not None  # a file has some
                    yield _below(member.name), content.read()


class _Member(tarfile.TarInfo):
    """A member of an archive, of which names and the like are not larger than any file.

    Python's own reads them whole before anyone can ask how large they are.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        """A member's header, read from one block."""
        member = super().frombuf(buf, encoding, errors)
        if member.type not in tarfile.REGULAR_TYPES and member.size > MAX_FILE:
            raise ValueError(f"it has a header of {member.size:,} bytes, which is too much")
        return member


def _below(name: str) -> str:
    """A member's name without the archive's top folder."""
    return "/".join(PurePosixPath(name).parts[1:])


def _needed(name: str) -> bool:
    """Whether a file is read: images that have labels, and the two lists."""
    if name in (CLASSES, TESTS):
        return True
    return name.startswith(("train/", "val/")) and name.endswith(".JPEG")


def _assemble(files: Files) -> Dataset:
    """Makes the data set of the original's files.

    Raises:
      ValueError: for a list that is missing, or a line of it that is none.
    """
    missing = [name for name in (CLASSES, TESTS) if name not in files]
    if missing:
        raise ValueError(f"it lacks {missing[0]}")
    wnids = sorted(files[CLASSES].decode().split())
    number = {wnid: label for label, wnid in enumerate(wnids)}
    train = {
        name: _label(number, PurePosixPath(name).parts[1], name)
        for name in files
        if name.startswith("train/")
    }
    test = {}
    for place, line in enumerate(files[TESTS].decode().splitlines(), 1):
        row = line.split("\t")
        if line.strip() and len(row) < 2:
            raise ValueError(f"{TESTS}, line {place}, has no tab between image and class")
        if line.strip():
            test[f"val/images/{row[0]}"] = _label(number, row[1], f"{TESTS}, line {place}")
    # A part of the data set may have kept the whole list.
    test = {name: label for name, label in test.items() if name in files}
    images, labels = _decode_all(files, train)
    counts = np.bincount(labels, minlength=len(wnids))
    tests = _decode_all(files, test)
    dataset = Dataset(images, labels, *tests, len(wnids), title(counts), "flip_and_crop")
    return check(dataset)


def _label(number: dict[str, int], wnid: str, where: str) -> int:
    """The number of a class.

    Raises:
      ValueError: if it is in no list.
    """
    if wnid not in number:
        raise ValueError(f"{where}: the class {wnid!r} is not in {CLASSES}")
    return number[wnid]


def title(counts: np.ndarray) -> str:
    """The data set's name, by its number of training images in each class."""
    low, high = counts.min(), counts.max()
    if low == high == COMPLETE:
        return TITLE
    return f"{TITLE} ({low if low == high else f'{low} to {high}'} images a class)"


def _decode_all(
    files: Files, labelled: dict[str, int]
) -> tuple[UInt8[np.ndarray, "examples height width 3"], Int32[np.ndarray, " examples"]]:
    """Decodes the named images, shuffled in an order that only the names decide."""
    names = np.random.default_rng(0).permutation(sorted(labelled))
    images = np.empty((len(names), *SIZE, 3), np.uint8)
    for image, name in zip(images, names, strict=True):
        try:
            image[...] = decode(files[name], SIZE)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return images, np.array([labelled[name] for name in names], np.int32)
