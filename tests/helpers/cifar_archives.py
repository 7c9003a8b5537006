"""Small CIFAR archives and TFDS directories, laid out as the published ones are."""

import io
import json
import pickle
import struct
import tarfile

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dimat_jax.datasets.cifar import CIFAR10

EXAMPLES = 4  # in each file


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did, whose strings are bytes: the originals were written with it."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_string


def python2_pickle(obj):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(obj)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3_pickle(obj):
    return pickle.dumps(obj, protocol=2)


def content(which, rows, labels, form, pickled=python2_pickle):
    """One file of a published form, as the data set's page describes them."""
    if form == "binary":
        columns = (
            [labels[:, None], rows]
            if which is CIFAR10
            else [labels[:, None] // 5] * 1
            + [
                labels[:, None],
                rows,
            ]
        )
        return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()
    if which is CIFAR10:
        return pickled({b"data": rows, b"labels": labels.tolist(), b"batch_label": b"batch"})
    coarse = (labels // 5).tolist()
    return pickled({b"data": rows, b"fine_labels": labels.tolist(), b"coarse_labels": coarse})


def write(which, form, directory, archive=True, seed=0, pickled=python2_pickle, top=None):
    """Writes a small archive (or folder) of a published form; returns it and what is in it."""
    rng = np.random.default_rng(seed)
    spec = getattr(which, form)
    images, labels, files = [], [], {}
    for name in (*spec.train, spec.test):
        images.append(rng.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8))
        labels.append(rng.integers(0, top or which.num_classes, EXAMPLES))
        rows = np.stack([image.transpose(2, 0, 1).ravel() for image in images[-1]])
        files[name] = content(which, rows, labels[-1], form, pickled)
    files["readme.html"] = b"not read"
    path = directory / (spec.archive if archive else spec.folder)
    if archive:
        path.write_bytes(tar_gz({f"{spec.folder}/{name}": data for name, data in files.items()}))
    else:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
    expected = np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]
    return path, expected


def tar_gz(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def assert_arrays(dataset, expected):
    for found, array in zip(dataset[:4], expected, strict=True):
        np.testing.assert_array_equal(found, array)
    assert dataset.train_labels.dtype == np.int32 and dataset.train_images.dtype == np.uint8


def write_prepared(which, data_dir, encoding, version="3.0.2", file_format="array_record"):
    """Writes what TFDS writes, without TensorFlow; returns the directory and its arrays."""
    directory = data_dir / which.name / version
    directory.mkdir(parents=True)
    rng, arrays, splits = np.random.default_rng(0), [], []
    for split, examples in (("train", 7), ("test", 3)):
        low = rng.integers(0, 256, (examples, 4, 4, 3), np.uint8)
        images = np.repeat(np.repeat(low, 8, axis=1), 8, axis=2)
        labels = rng.integers(0, which.num_classes, examples)
        path = directory / f"{which.name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, encoding)
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(stream.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
        arrays += [images, labels]
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "shardLengths": [str(examples)], "numBytes": "9",
             "filepathTemplate": template}
        )  # fmt: skip
    info = {"name": which.name, "version": version, "fileFormat": file_format, "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    core = "tensorflow_datasets.core.features."
    image = {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}}
    features = {
        "image": {"pythonClassName": f"{core}image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{core}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(which.num_classes)},
        },
    }
    (directory / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{core}features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    return directory, arrays
