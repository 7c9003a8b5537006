"""CIFAR-10 and CIFAR-100: from a TFDS directory, from the original archives, or from a download.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dimat_jax.datasets import prepared
from dimat_jax.datasets.base import (
    DataNotFoundError,
    Dataset,
    Directory,
    check,
    data_directory,
)
from dimat_jax.datasets.cache import cached, fingerprint
from dimat_jax.datasets.cifar_files import (
    SIZE,
    Examples,
    parse_binary,
    parse_pickle,
    read_archive,
    read_folder,
)
from dimat_jax.datasets.download import download
from dimat_jax.registry import in_a_line

URL = "https://www.cs.toronto.edu/~kriz/"
TRAIN_EXAMPLES, TEST_EXAMPLES = 50_000, 10_000


class Form(NamedTuple):
    """One of the forms in which the original data set is published.

    Attributes:
      archive: the archive's file name.
      folder: the folder in it.
      train: the names of the files with training images.
      test: the name of the file with test images.
      parse: reads the bytes of such a file.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    parse: Callable[[bytes], Examples]


class Cifar(NamedTuple):
    """One of the two data sets.

    Attributes:
      name: its short name, which is TFDS's.
      title: what it is called.
      num_classes: the number of classes.
      python: its form for Python.
      binary: its binary form, which is what `load` downloads: nothing in it is a program.
      sha256: the checksum of the binary form's archive.
    """

    name: str
    title: str
    num_classes: int
    python: Form
    binary: Form
    sha256: str


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    num_classes=10,
    python=Form(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        functools.partial(parse_pickle, label_key=b"labels"),
    ),
    binary=Form(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test_batch.bin",
        functools.partial(parse_binary, label_bytes=1),
    ),
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    num_classes=100,
    python=Form(
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        ("train",),
        "test",
        functools.partial(parse_pickle, label_key=b"fine_labels"),
    ),
    binary=Form(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        functools.partial(parse_binary, label_bytes=2),
    ),
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)


def load(
    cifar: Cifar,
    data_dir: Directory = None,
    cache_dir: Directory = None,
) -> Dataset:
    """Loads a CIFAR data set from wherever it can be had.

    In this order: a prepared TFDS directory (array_record), an original archive or its extracted
    folder (the Python form, then the binary one), all in the data directory; a download into it.

    Args:
      cifar: `CIFAR10` or `CIFAR100` (its 100 fine classes).
      data_dir: see `dimat_jax.datasets.base.data_directory`.
      cache_dir: where decoded arrays are kept; see `dimat_jax.datasets.cache`.

    Returns:
      Images of shape ``[examples, 32, 32, 3]``; 50,000 for training, 10,000 for testing.

    Raises:
      DataNotFoundError: if it is nowhere; says where to put it.
      ValueError: if what was found is damaged; names it.
    """
    directory = data_directory(data_dir)
    found = prepared.find(directory, cifar.name)
    if found:
        files = [*found.iterdir()]
        build = functools.partial(prepared.read, found, cifar.title, SIZE, cifar.num_classes)
    else:
        path, form = _find_original(cifar, directory) or (_download(cifar, directory), cifar.binary)
        files = [*path.iterdir()] if path.is_dir() else [path]
        build = functools.partial(read_original, path, form, cifar)
    return cached(cifar.name, fingerprint(files), lambda: _describe(build()), cache_dir)


load_cifar10 = functools.partial(load, CIFAR10)
load_cifar100 = functools.partial(load, CIFAR100)


def _describe(dataset: Dataset) -> Dataset:
    """Adds what suits the images, and to the name that some are missing, if they are."""
    dataset = dataset._replace(augmentation="flip_and_crop")
    examples = len(dataset.train_labels)
    if (examples, len(dataset.test_labels)) == (TRAIN_EXAMPLES, TEST_EXAMPLES):
        return dataset
    return dataset._replace(name=f"{dataset.name} (part: {examples} training images)")


def _find_original(cifar: Cifar, directory: Path) -> tuple[Path, Form] | None:
    """The first of the original forms that lies in a directory."""
    for form in (cifar.python, cifar.binary):
        for path in (directory / form.archive, directory / form.folder):
            if path.exists():
                return path, form
    return None


def _download(cifar: Cifar, directory: Path) -> Path:
    """Downloads the binary archive."""
    path = directory / cifar.binary.archive
    try:
        download(URL + cifar.binary.archive, cifar.sha256, path)
    except DataNotFoundError as error:
        problem = prepared.problem(directory, cifar.name)
        note = f" ({problem}.)" if problem else ""
        raise DataNotFoundError(
            f"{cifar.title} is not in {directory}, and {error} Put {cifar.python.archive} or "
            f"{cifar.binary.archive} from {URL}cifar.html there, or name another data "
            f"directory.{note}"
        ) from error
    return path


def read_original(path: Path, form: Form, cifar: Cifar) -> Dataset:
    """Reads one of the original forms.

    Args:
      path: the archive or its extracted folder.
      form: which form it is.
      cifar: which data set it is.

    Returns:
      The data set, in the order of the files.

    Raises:
      ValueError: if a file is missing or damaged; names the archive or folder.
    """
    try:
        names = [*form.train, form.test]
        files = read_folder(path, names) if path.is_dir() else read_archive(path, names)
        parts = [form.parse(files[name]) for name in names]
        images, labels = [np.concatenate(column) for column in zip(*parts[:-1], strict=True)]
        return check(Dataset(images, labels, *parts[-1], cifar.num_classes, cifar.title))
    except Exception as error:  # damaged pickles raise almost anything
        raise ValueError(
            f"{path} is damaged, or not {cifar.title} ({in_a_line(error)})."
        ) from error
