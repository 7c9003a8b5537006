"""Tiny ImageNet from its folder, zip and tar: the same images, and a name that tells a part."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimat_jax import datasets
from dimat_jax.datasets import tiny_imagenet
from dimat_jax.datasets.tiny_imagenet import read

WNIDS = ["n03", "n01", "n02"]  # not in order, as in the original
COLOURS = {"n01": 40, "n02": 120, "n03": 200}


def jpeg(level, grey=False):
    """A plain image: its level tells the class, whatever JPEG does to it."""
    stream = io.BytesIO()
    Image.new("L" if grey else "RGB", (64, 64), level if grey else (level, 0, 0)).save(
        stream, "JPEG", quality=95
    )
    return stream.getvalue()


def files(images_a_class=3):
    """The original's layout: ``path → content``."""
    content = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "words.txt": b"not read"}
    for wnid, level in COLOURS.items():
        content[f"train/{wnid}/{wnid}_boxes.txt"] = b"not read"
        for i in range(images_a_class):
            content[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(level, grey=i == 0)
    lines = []
    for i, (wnid, level) in enumerate(COLOURS.items()):
        content[f"val/images/val_{i}.JPEG"] = jpeg(level)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    lines.append("val_9.JPEG\tn01\t0\t0\t63\t63\n")  # listed, but left out of this part
    content["val/val_annotations.txt"] = "".join(lines).encode()
    content["test/images/test_0.JPEG"] = b"not read: it has no label"
    return content


def write(content, directory, kind, name="tiny-imagenet-200"):
    """Writes files as a folder or an archive; returns its path."""
    folder = directory / name
    if kind == "folder":
        for path, data in content.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder
    path = directory / f"{name}.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for inner, data in content.items():
                archive.writestr(f"tiny-imagenet-200/{inner}", data)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        for inner, data in content.items():
            info = tarfile.TarInfo(f"./tiny-imagenet-200/{inner}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def load(directory):
    return datasets.load("tiny_imagenet", directory, directory / "cache")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_form_gives_the_images_with_their_classes(kind, tmp_path):
    write(files(), tmp_path, kind)
    found = load(tmp_path)
    assert found[5:] == ("Tiny ImageNet (3 images a class)", "flip_and_crop", False, None)
    assert found.train_images.shape == (9, 64, 64, 3) and found.test_images.shape == (3, 64, 64, 3)
    assert found.num_classes == 3
    levels = np.array(sorted(COLOURS.values()))  # in order of the WordNet ids
    for images, labels in (found[:2], found[2:4]):
        red, green = images[..., 0].mean((1, 2)), images[..., 1].mean((1, 2))
        np.testing.assert_allclose(red, levels[labels], atol=3)
        assert set(np.round(green[green < 20])) <= {0, 1}  # coloured, or grey: green as red
        np.testing.assert_allclose(green[green > 20], red[green > 20])
    np.testing.assert_array_equal(np.bincount(found.train_labels), 3)
    np.testing.assert_array_equal(np.sort(found.test_labels), [0, 1, 2])
    assert (found.train_images[..., 1].mean((1, 2)) > 20).sum() == 3  # one grey image a class


def test_examples_are_shuffled_always_alike(tmp_path):
    content = files(images_a_class=8)
    write(content, tmp_path, "zip")
    (tmp_path / "other").mkdir()
    write(dict(reversed(content.items())), tmp_path / "other", "tar")
    one, other = load(tmp_path), load(tmp_path / "other")
    assert (np.diff(one.train_labels) < 0).any()
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_original_comes_before_a_part_of_it(tmp_path):
    write(files(2), tmp_path, "tar", name="tiny-imagenet-200-mini")
    write(files(3), tmp_path, "zip")
    assert tiny_imagenet.find(tmp_path).name == "tiny-imagenet-200.zip"
    (tmp_path / "tiny-imagenet-200.txt").touch()
    write(files(3), tmp_path, "folder")
    assert tiny_imagenet.find(tmp_path).name == "tiny-imagenet-200"


def test_a_folder_that_is_none_does_not_hide_an_archive(tmp_path):
    (tmp_path / "tiny-imagenet-200" / "train").mkdir(parents=True)
    archive = write(files(3), tmp_path, "tar")
    assert tiny_imagenet.find(tmp_path) == archive
    assert load(tmp_path).num_classes == 3


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_files_that_are_too_large_together_are_not_unpacked(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "MAX_BYTES", 5000)
    path = write(files(3), tmp_path, kind)
    with pytest.raises(ValueError, match=f"{path} is damaged.* bytes, which is too much"):
        load(tmp_path)


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_without_end_is_not_read(type, tmp_path):
    with tarfile.open(tmp_path / "tiny-imagenet-200.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("./tiny-imagenet-200/wnids.txt")
        member.type, member.size = type, 2**30
        archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    with pytest.raises(ValueError, match="it has a header of 1,073,741,824 bytes"):
        load(tmp_path)


def test_a_folder_that_grows_is_read_again(tmp_path):
    folder = write(files(2), tmp_path, "folder")
    assert load(tmp_path).name == "Tiny ImageNet (2 images a class)"
    (folder / "train" / "n01" / "images" / "n01_7.JPEG").write_bytes(jpeg(40))
    os.utime(folder / "train" / "n01" / "images", (2, 2))
    assert load(tmp_path).name == "Tiny ImageNet (2 to 3 images a class)"


def test_only_the_complete_one_has_the_plain_name():
    assert tiny_imagenet.title(np.full(200, 500)) == "Tiny ImageNet"
    assert tiny_imagenet.title(np.full(200, 20)) == "Tiny ImageNet (20 images a class)"


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("wnids.txt", None, "wnids.txt"),
        ("val/val_annotations.txt", None, "val_annotations.txt"),
        ("train/n02/images/n02_1.JPEG", b"none", "train/n02/images/n02_1.JPEG: no whole JPEG"),
        ("train/n02/images/n02_1.JPEG", jpeg(9)[:300], "n02_1.JPEG: no whole JPEG"),
        ("train/n99/images/n99_1.JPEG", jpeg(9), "n99_1.JPEG: the class 'n99' is not in wnids.txt"),
        ("val/val_annotations.txt", b"val_0.JPEG n01", "txt, line 1, has no tab between image and"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn7\t0", "line 1: the class 'n7' is not in wnids"),
        ("val/val_annotations.txt", b"\xff", "UnicodeDecodeError"),
        ("train/n02/images/n02_1.JPEG", bytes(2**21), "n02_1.JPEG is of 2,097,152 bytes, which is"),
    ],
)
def test_damage_is_named(path, data, message, tmp_path):
    content = files()
    content.pop(path, None)
    if data is not None:
        content[path] = data
    archive = write(content, tmp_path, "zip")
    with pytest.raises(ValueError, match=f"{archive} is damaged, or not Tiny .*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_truncated_archive(kind, kept, tmp_path):
    path = write(files(), tmp_path, kind)
    data = path.read_bytes().rstrip(b"\0")  # a tar ends in zeros that nobody misses
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=f"{path} is damaged") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_another_size(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (32, 64)).save(stream, "JPEG")
    path = write(files() | {"val/images/val_1.JPEG": stream.getvalue()}, tmp_path, "zip")
    with pytest.raises(ValueError, match=rf"{path} .*val_1.JPEG.*\(64, 32\) pixels.*\(64, 64\)"):
        load(tmp_path)


def test_nowhere(tmp_path):
    with pytest.raises(datasets.DataNotFoundError, match="Tiny ImageNet is not in .*Put tiny-"):
        load(tmp_path)


def real_directory():
    """Where a real Tiny ImageNet, or a part of it, lies; or none."""
    shared = Path(__file__).parents[3] / "shared" / "data"
    candidates = [Path(os.environ["TFDS_DATA_DIR"])] if "TFDS_DATA_DIR" in os.environ else []
    return next((d for d in [*candidates, shared] if tiny_imagenet.find(d)), None)


@pytest.mark.skipif(real_directory() is None, reason="no Tiny ImageNet: set TFDS_DATA_DIR")
def test_the_real_one(tmp_path):
    found = datasets.load("tiny_imagenet", real_directory(), tmp_path)
    assert found.num_classes == 200
    assert np.ptp(np.bincount(found.train_labels)) == 0
    assert np.ptp(np.bincount(found.test_labels, minlength=200)) == 0
    complete = len(found.train_labels) == 100_000
    assert (found.name == "Tiny ImageNet") == complete
    # Photographs: neighbouring pixels are alike, and no channel is empty.
    images = found.train_images[:500].astype(float)
    assert np.abs(np.diff(images, axis=2)).mean() < 25 and images.std((0, 1, 2)).min() > 40


def test_the_cache_is_enough_until_the_folder_changes(tmp_path, monkeypatch):
    path = write(files(), tmp_path, "folder")
    load(tmp_path)
    reads = []
    monkeypatch.setattr(tiny_imagenet, "read", lambda path: reads.append(path) or read(path))
    assert load(tmp_path).num_classes == 3 and not reads
    shutil.rmtree(path / "train" / "n03" / "images")
    assert load(tmp_path).name == "Tiny ImageNet (0 to 3 images a class)" and reads == [path]
