"""Loading by name, the check of own arrays, the cache, and the data sets that need no download."""

import os
import socket
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dimat_jax import datasets
from dimat_jax.datasets import Dataset, cache, cifar, download, shapes
from dimat_jax.datasets.data import of_images


def own(**changes):
    """A small data set of one's own, with some fields changed."""
    rng = np.random.default_rng(0)
    fields = {
        "train_images": rng.integers(0, 256, (6, 4, 3, 2), np.uint8),
        "train_labels": np.arange(6, dtype=np.int32) % 3,
        "test_images": rng.integers(0, 256, (3, 4, 3, 2), np.uint8),
        "test_labels": np.arange(3, dtype=np.int32),
        "num_classes": 3,
        "name": "my own",
    }
    return Dataset(**(fields | changes))


def assert_same(one, other):
    assert one._fields == other._fields
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def unreachable(url, seconds=0):
    return False


# The check of own arrays.


def test_check_returns_good_arrays_as_they_are():
    dataset = own()
    assert datasets.check(dataset).train_images is dataset.train_images
    assert_same(datasets.check(dataset), dataset)


def test_check_converts_jax_arrays_lists_and_wider_labels():
    dataset = own()
    found = datasets.check(
        own(
            train_images=jnp.asarray(dataset.train_images),
            train_labels=dataset.train_labels.tolist(),
            test_labels=dataset.test_labels.astype(np.uint64),
        )
    )
    assert_same(found, dataset)
    assert all(isinstance(array, np.ndarray) for array in found[:4])
    assert found.train_labels.dtype == found.test_labels.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 2}, "There are 3 kinds of labels, from 0 to 2, but num_classes is 2"),
        ({"num_classes": 1}, "num_classes is 1: it must be at least 2"),
        (
            {"test_labels": np.array([0, 1, -1])},
            "There are 4 kinds of labels, from -1 to 2, but num_classes is 3",
        ),
        (
            {"train_images": np.zeros((6, 4, 3, 2), int)},
            "train_images are int64: they must be uint8",
        ),
        ({"train_images": np.zeros((6, 4, 3, 2))}, "test_images are uint8 .* train_images float32"),
        (
            {"train_images": np.full((6, 4, 3, 2), np.nan)},
            "train_images: example 0, column .* nan",
        ),
        ({"train_images": np.zeros((6, 4, 3), np.uint8)}, r"train_images uint8 \(4, 3, 1\)"),
        ({"train_images": np.zeros((6, 4), np.uint8)}, r"shape \(6, 4\)"),
        ({"test_images": np.zeros((0, 4, 3, 2), np.uint8)}, "with at least one of each"),
        ({"train_labels": np.arange(5)}, r"int64 of shape \(5,\).*of shape \(6,\)"),
        ({"train_labels": np.zeros(6)}, "train_labels are float64"),
        ({"test_images": np.zeros((3, 4, 4, 2), np.uint8)}, r"\(4, 4, 2\).*\(4, 3, 2\)"),
        ({"augmentation": "flip"}, "Unknown augmentation of the data set 'flip'"),
        ({"synthetic": "yes"}, "synthetic is 'yes': it must be True or False"),
        ({"stand_in_for": 10}, "stand_in_for is 10: it must be a data set's name, or None"),
    ],
)
def test_check_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.check(own(**changes))


def test_labels_of_any_integers_are_numbered_in_order():
    given = own(train_labels=np.array([7, -1, 30, 7, -1, 30]), test_labels=np.array([30, 7, -1]))
    with pytest.warns(
        UserWarning, match="from -1 to 30: they are numbered in order, -1 as class 0"
    ):
        found = datasets.check(given)
    assert found.train_labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert found.test_labels.tolist() == [2, 1, 0]


def test_images_may_be_grey_and_floats():
    grey = {"train_images": np.ones((6, 4, 3)), "test_images": np.zeros((3, 4, 3))}
    found = datasets.check(own(**grey))
    assert found.train_images.shape == (6, 4, 3, 1) and found.test_images.dtype == np.float32


def test_float_images_are_standardised_by_channel():
    images = np.random.default_rng(0).normal(3, 5, (40, 4, 3, 2)).astype(np.float32)
    data = of_images(
        own()._replace(train_images=images, test_images=images[:3]), datasets.AUGMENTATIONS["none"]
    )
    x = np.asarray(data.prepare({"inputs": data.train["inputs"]})["inputs"])
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)


def test_what_a_data_set_is_called_decides_nothing():
    described = dict(augmentation="flip_and_crop", synthetic=True, stand_in_for="CIFAR-10")
    for name in ("CIFAR-10", "Tiny ImageNet (JPEG)", "shapes (synthetic stand-in for CIFAR-10)"):
        plain = datasets.check(own(name=name))
        assert plain[5:] == (name, "none", False, None)
        assert datasets.check(plain._replace(**described))[6:] == tuple(described.values())


# The cache.


def test_cache_keeps_what_describes_a_data_set(tmp_path):
    described = own(augmentation="flip_and_crop", synthetic=True, stand_in_for="another")
    for _ in range(2):
        assert_same(cache.cached("own", [], lambda: described, tmp_path), described)


def test_cache_builds_once_and_maps_what_it_kept(tmp_path):
    builds = []

    def build():
        builds.append(1)
        return own()

    first = cache.cached("own", ["a"], build, tmp_path / "new" / "folder")
    second = cache.cached("own", ["a"], build, tmp_path / "new" / "folder")
    assert len(builds) == 1
    for found in (first, second):
        assert_same(found, own())
        assert isinstance(found.train_images, np.memmap) and not found.train_images.flags.writeable
    cache.cached("own", ["b"], build, tmp_path / "new" / "folder")
    assert len(builds) == 2
    assert not list((tmp_path / "new" / "folder").glob(".*.unfinished"))


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "one bit": flipped,
    "another header": lambda content: content.replace(b"|u1", b"|i1").replace(b"<i4", b"<f4"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [f"{array}.npy" for array in cache.ARRAYS] + ["about.json"])
def test_cache_builds_a_damaged_entry_again(tmp_path, file, damage):
    cache.cached("own", [], own, tmp_path)
    (path,) = tmp_path.glob(f"own-*/{file}")
    damaged = DAMAGE[damage](path.read_bytes())
    if damaged == path.read_bytes():
        pytest.skip("This file has no such header.")
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="The cache is damaged, and made again"):
        assert_same(cache.cached("own", [], own, tmp_path), own())
    assert_same(cache.cached("own", [], pytest.fail, tmp_path), own())


def test_what_a_killed_process_leaves_is_removed_but_not_what_is_under_construction(tmp_path):
    left, made = tmp_path / ".other-1.unfinished", tmp_path / ".other-2.unfinished"
    for folder in (left, made):
        folder.mkdir()
    with cache.lock_of(tmp_path / "other-2"):
        cache.cached("own", [], own, tmp_path)
    assert not left.exists() and made.exists()


def test_cache_asked_by_several_at_once_is_built_once(tmp_path):
    barrier, found, builds = threading.Barrier(4), [], []

    def build():
        builds.append(1)
        return own()

    def run():
        barrier.wait(timeout=30)
        found.append(cache.cached("own", [], build, tmp_path))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(builds) == 1
    for dataset in found:
        assert_same(dataset, own())
    assert not list(tmp_path.glob(".*.unfinished"))


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="my own could not be kept in"):
        found = cache.cached("own", [], own, tmp_path / "file")
    assert_same(found, own())


def test_fingerprint_sees_a_change(tmp_path):
    path = tmp_path / "data"
    path.write_text("one")
    before = cache.fingerprint([path])
    assert cache.fingerprint([path]) == before
    os.utime(path, (1, 1))
    assert cache.fingerprint([path]) != before


def test_cache_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / "dimat_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / ".cache" / "dimat_jax"


# Loading by name.


def test_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="'cifar-10'.*Did you mean 'cifar10'"):
        datasets.load("cifar-10")


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = "{'tensorflow_datasets', 'sklearn', 'PIL', 'tensorflow'}"
    code = f"import sys, dimat_jax.datasets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_EXAMPLES", 40)
    monkeypatch.setattr(shapes, "TEST_EXAMPLES", 20)


def test_auto_falls_back_on_shapes_and_says_so(tmp_path, monkeypatch, few_shapes, caplog):
    monkeypatch.setattr(download, "reachable", unreachable)
    found = datasets.load("auto", tmp_path / "data", tmp_path / "cache")
    assert found.name == "shapes (synthetic stand-in for CIFAR-10)"
    assert found.stand_in_for == "CIFAR-10" and found.synthetic
    assert str(tmp_path / "data") in caplog.text and "cifar-10-python.tar.gz" in caplog.text
    shapes_by_name = datasets.load("shapes", None, tmp_path)
    assert shapes_by_name[6:] == ("flip_and_crop", True, None)
    assert_same(found._replace(name=shapes_by_name.name, stand_in_for=None), shapes_by_name)


def test_auto_does_not_hide_a_corrupt_archive(tmp_path):
    path = tmp_path / cifar.CIFAR10.python.archive
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=f"{path} is damaged") as caught:
        datasets.load("auto", tmp_path, tmp_path)
    assert not isinstance(caught.value, datasets.DataNotFoundError)


def test_auto_waits_3_s_at_most_for_a_network_that_hangs(tmp_path, monkeypatch, few_shapes):
    def hang(*_, **__):
        time.sleep(4)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    datasets.load("auto", tmp_path / "data", tmp_path / "cache")
    assert time.monotonic() - start < 3


def test_data_directory_by_argument_then_environment_then_home(monkeypatch, tmp_path):
    from dimat_jax.datasets.base import data_directory

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data_directory("~/x") == data_directory(os.path.expanduser("~/x"))
    assert data_directory() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_directory() == tmp_path / "tensorflow_datasets"


# The digits.


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    found = datasets.load("digits", cache_dir=tmp_path)
    assert_same(datasets.check(found), found)
    assert found.train_images.shape == (1437, 8, 8, 1) and found.test_images.shape[0] == 360
    images = np.concatenate([found.train_images, found.test_images])
    labels = np.concatenate([found.train_labels, found.test_labels])
    digits = load_digits()
    together = zip(digits.images.round().astype(int), digits.target, strict=True)
    # 16 of 0 .. 16 becomes 255 of 0 .. 255, so a sixteenth of the byte and rounding gives it back.
    back = np.round(images[..., 0] / 255 * 16).astype(int)
    assert sorted((i.tobytes(), int(t)) for i, t in together) == sorted(
        (i.tobytes(), int(t)) for i, t in zip(back, labels, strict=True)
    )
    assert found[5:] == ("digits", "none", False, None)  # a mirrored digit is no digit
    share = np.bincount(found.test_labels) / np.bincount(labels)
    np.testing.assert_allclose(share, 360 / 1797, atol=0.005)
