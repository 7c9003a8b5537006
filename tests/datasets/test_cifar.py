"""CIFAR from every form it comes in: the same images, honest names, and no harm from bad files."""

import codecs
import functools
import gzip
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.cifar_archives import (
    EXAMPLES,
    assert_arrays,
    python3_pickle,
    tar_gz,
    write,
    write_prepared,
)

from dimat_jax import datasets
from dimat_jax.datasets import cifar, download, prepared
from dimat_jax.datasets.cifar import CIFAR10, CIFAR100
from dimat_jax.datasets.cifar_files import parse_pickle, read_archive

BOTH = pytest.mark.parametrize("which", [CIFAR10, CIFAR100], ids=lambda which: which.name)
FORMS = ["python", "binary"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(download, "reachable", lambda url, seconds=0: False)


# The original archives.


@BOTH
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "folder"])
def test_originals(which, form, archive, tmp_path):
    _, expected = write(which, form, tmp_path, archive)
    found = datasets.load(which.name, tmp_path, tmp_path / "cache")
    assert_arrays(found, expected)
    assert found.num_classes == which.num_classes
    examples = len(expected[0])
    assert found.name == f"{which.title} (part: {examples} training images)"
    assert (found.augmentation, found.synthetic) == ("flip_and_crop", False)
    assert isinstance(found.train_images, np.memmap)


@BOTH
def test_pickles_of_python_3(which, tmp_path):
    _, expected = write(which, "python", tmp_path, pickled=python3_pickle)
    assert_arrays(datasets.load(which.name, tmp_path, tmp_path / "cache"), expected)


def test_complete_data_sets_have_the_plain_name(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "TRAIN_EXAMPLES", 5 * EXAMPLES)
    monkeypatch.setattr(cifar, "TEST_EXAMPLES", EXAMPLES)
    write(CIFAR10, "python", tmp_path)
    assert datasets.load("cifar10", tmp_path, tmp_path / "cache").name == "CIFAR-10"


def test_a_changed_archive_is_read_again(tmp_path):
    write(CIFAR10, "python", tmp_path)
    datasets.load("cifar10", tmp_path, tmp_path / "cache")
    path, expected = write(CIFAR10, "python", tmp_path, seed=1)
    os.utime(path, (1, 1))
    assert_arrays(datasets.load("cifar10", tmp_path, tmp_path / "cache"), expected)


@BOTH
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.9999])
def test_truncated_archive(which, form, kept, tmp_path):
    path, _ = write(which, form, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: min(int(kept * len(data)), len(data) - 1)])
    with pytest.raises(ValueError, match=f"{path} is damaged, or not {which.title}"):
        datasets.load(which.name, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("place", [0.1, 0.4, 0.7, 0.95])
def test_flipped_bit_in_an_archive(place, tmp_path):
    path, _ = write(CIFAR10, "binary", tmp_path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


def test_missing_file(tmp_path):
    path, _ = write(CIFAR10, "binary", tmp_path, archive=False)
    (path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=f"{path} is damaged.*data_batch_3.bin"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")
    shutil.rmtree(path)
    archive = tmp_path / CIFAR10.binary.archive
    archive.write_bytes(tar_gz({"cifar-10-batches-bin/data_batch_1.bin": b"0" * 3073}))
    with pytest.raises(ValueError, match="lacks data_batch_2.bin, .*test_batch.bin"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


def test_labels_beyond_the_classes(tmp_path):
    path, _ = write(CIFAR10, "python", tmp_path, top=200)
    with pytest.raises(ValueError, match=f"{path} is damaged.*num_classes is 10"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


class Touch:
    """Makes a file when it is unpickled, as an attacker would do worse."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_programs_in_a_pickle_do_not_run(tmp_path):
    for harm in (Touch(tmp_path / "harm"), functools.partial(print), eval):
        folder = tmp_path / CIFAR10.python.folder
        shutil.rmtree(folder, ignore_errors=True)
        write(CIFAR10, "python", tmp_path, archive=False)
        (folder / "data_batch_2").write_bytes(python3_pickle({b"data": harm}))
        with pytest.raises(ValueError, match="which CIFAR does not need"):
            datasets.load("cifar10", tmp_path, tmp_path / "cache")
    assert not (tmp_path / "harm").exists()
    pickle.loads(python3_pickle(Touch(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()  # so the pickle would have done it


class Reduced:
    """Pickles as a call, and a state that is set on what it gives."""

    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


def objects_over_bytes():
    """An array of objects whose bytes NumPy would take for pointers: it crashes the process."""
    reconstruct, *_ = np.empty(0).__reduce__()
    state = (1, (2,), np.dtype(object), False, b"\x41" * 16)
    return Reduced(reconstruct, (np.ndarray, (0,), b"b"), state)


HOSTILE = {
    "objects over bytes": (objects_over_bytes, "it holds an array of 'O8', not of bytes"),
    "objects": (lambda: np.array([{}, "x"], object), "it holds an array of 'O8', not of bytes"),
    "floats": (lambda: np.zeros((2, 3072)), "it holds an array of 'f8', not of bytes"),
    "records": (lambda: np.zeros(3, [("a", "u1")]), "it holds an array of 'V1', not of bytes"),
    "another encoding": (
        lambda: Reduced(codecs.encode, ("3" * 64, "rot13")),
        "it encodes something as 'rot13'",
    ),
    "no array": (lambda: [0] * 3072, "its data are no array of images"),
    "too few bytes": (lambda: np.zeros(3071, np.uint8), "its data are no array of images"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_nothing_but_arrays_of_bytes_is_unpickled(make, message, tmp_path):
    write(CIFAR10, "python", tmp_path, archive=False)
    folder = tmp_path / CIFAR10.python.folder
    (folder / "data_batch_2").write_bytes(python3_pickle({b"data": make(), b"labels": [0, 1]}))
    with pytest.raises(ValueError, match=f"is damaged, or not CIFAR-10 .*{message}") as error:
        datasets.load("cifar10", tmp_path, tmp_path / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [[[0] * 9] * 2, np.zeros(2, np.uint8), 3, ["0", "1"]])
def test_labels_are_a_list_of_numbers(labels, tmp_path):
    content = python3_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": labels})
    with pytest.raises(ValueError, match="its labels are no list of whole numbers"):
        parse_pickle(content, b"labels")


def test_arrays_in_fortrans_order_are_taken():
    images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    plain, transposed = (
        parse_pickle(python3_pickle({b"data": array, b"labels": [0, 1]}), b"labels")[0]
        for array in (images, np.asfortranarray(images))
    )
    np.testing.assert_array_equal(plain, transposed)


def test_a_sparse_file_is_not_unpacked(tmp_path):
    """It says that it is of more bytes than the archive holds."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("test_batch")
        member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
        block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        block[483:495] = b"%011o\0" % 1_500_000_000  # its real size
        block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
        archive.fileobj.write(bytes(block))
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getmember("test_batch").size == 1_500_000_000
    with pytest.raises(ValueError, match="it lacks test_batch"):
        read_archive(tmp_path / "a.tar.gz", ["test_batch"])


def test_what_unpacks_to_more_than_cifar_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / CIFAR10.python.archive
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match="it unpacks to more than 268,435,456 bytes"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")
    assert tracemalloc.get_traced_memory()[1] < 2**30
    tracemalloc.stop()


# Directories that TFDS has prepared.


@BOTH
def test_prepared_directory(which, tmp_path):
    _, expected = write_prepared(which, tmp_path, "PNG")
    write(which, "python", tmp_path)  # the directory comes first
    found = datasets.load(which.name, tmp_path, tmp_path / "cache")
    assert_arrays(found, expected)
    assert found.name == f"{which.title} (part: 7 training images)"


def test_jpeg_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "TRAIN_EXAMPLES", 7)
    monkeypatch.setattr(cifar, "TEST_EXAMPLES", 3)
    _, expected = write_prepared(CIFAR10, tmp_path, "JPEG")
    found = datasets.load("cifar10", tmp_path, tmp_path / "cache")
    assert (found.name, found.augmentation) == ("CIFAR-10 (JPEG)", "flip_and_crop")
    np.testing.assert_array_equal(found.train_labels, expected[1])
    np.testing.assert_allclose(found.train_images.mean((1, 2)), expected[0].mean((1, 2)), atol=3)


def test_newest_readable_version_is_found(tmp_path):
    write_prepared(CIFAR10, tmp_path, "PNG", "3.0.2")
    newest, _ = write_prepared(CIFAR10, tmp_path, "PNG", "3.0.10")
    write_prepared(CIFAR10, tmp_path, "PNG", "4.0.0", file_format="tfrecord")
    (tmp_path / "cifar10" / "incomplete.9").mkdir()
    assert prepared.find(tmp_path, "cifar10") == newest
    assert prepared.find(tmp_path, "cifar100") is None


def test_only_tfrecord_is_said(tmp_path):
    write_prepared(CIFAR10, tmp_path, "PNG", file_format="tfrecord")
    with pytest.raises(datasets.DataNotFoundError, match="without TensorFlow.*array_record"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


def damage(directory, how):
    """Has a prepared directory lack something."""
    info = directory / "dataset_info.json"
    match how:
        case "no information":
            info.unlink()
        case "broken information":
            info.write_text('{"name": ')
        case "no format":
            info.write_text("[]")
        case "no version":
            shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no information", "dataset_info.json is missing: preparing the data set did not end"),
        ("broken information", "dataset_info.json is damaged"),
        ("no format", "dataset_info.json is damaged"),
        ("no version", "has no folder of a version, as 3.0.2, in it"),
    ],
)
def test_what_is_wrong_with_a_prepared_directory_is_said(how, message, tmp_path):
    directory, _ = write_prepared(CIFAR10, tmp_path, "PNG")
    damage(directory, how)
    with pytest.raises(datasets.DataNotFoundError, match=message):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("file", ["cifar10-test.array_record-00000-of-00001", "features.json"])
def test_truncated_prepared_directory(file, tmp_path):
    directory, _ = write_prepared(CIFAR10, tmp_path, "PNG")
    path = directory / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{directory} is damaged"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


def test_nowhere(tmp_path):
    with pytest.raises(datasets.DataNotFoundError) as caught:
        datasets.load("cifar100", tmp_path, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith(f"CIFAR-100 is not in {tmp_path}, and www.cs.toronto.edu cannot")
    assert "cifar-100-python.tar.gz" in message


def real_directory():
    """A prepared CIFAR-10, or none."""
    shared = Path(__file__).parents[3] / "shared" / "data" / "tfds"
    candidates = [Path(os.environ["TFDS_DATA_DIR"])] if "TFDS_DATA_DIR" in os.environ else []
    return next((d for d in [*candidates, shared] if prepared.find(d, "cifar10")), None)


@pytest.mark.slow
@pytest.mark.skipif(real_directory() is None, reason="no prepared CIFAR-10: set TFDS_DATA_DIR")
def test_the_real_cifar10(tmp_path):
    found = datasets.load("cifar10", real_directory(), tmp_path)
    assert found.name.startswith("CIFAR-10") and "part" not in found.name
    np.testing.assert_array_equal(np.bincount(found.train_labels), 5_000)
    np.testing.assert_array_equal(np.bincount(found.test_labels), 1_000)
    mean, std = datasets.channel_statistics(found.train_images)  # as published for CIFAR-10
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=4e-3)
    # A second run maps what is there, and imports nothing heavy.
    code = (
        "import sys, time; from dimat_jax import datasets; start = time.monotonic();"
        "datasets.load('cifar10', *sys.argv[1:]); print(time.monotonic() - start < 0.5,"
        "'tensorflow_datasets' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(real_directory()), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
