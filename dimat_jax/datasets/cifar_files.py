"""The files of CIFAR-10 and CIFAR-100 as they were published, for Python and in binary."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

SIZE = (32, 32)

Examples = tuple[UInt8[np.ndarray, "examples height width 3"], Int32[np.ndarray, " examples"]]


class _CifarUnpickler(pickle.Unpickler):
    """Unpickles arrays, lists and dicts, and nothing that could run."""

    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not need")
        return self.ALLOWED[module, name]


def parse_pickle(content: bytes, label_key: bytes) -> Examples:
    """Reads a file of the Python form: a pickled dict of ``data`` and labels.

    Args:
      content: the file's bytes. Pickles that ask for more than arrays are refused.
      label_key: which labels to take: ``b"labels"``, ``b"fine_labels"`` or ``b"coarse_labels"``.

    Returns:
      uint8 images ``[examples, 32, 32, 3]`` and int32 labels ``[examples]``.
    """
    batch = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    return _to_images(batch[b"data"]), np.array(batch[label_key], np.int32)


def parse_binary(content: bytes, label_bytes: int) -> Examples:
    """Reads a file of the binary form: for each image its labels, then its pixels.

    Args:
      content: the file's bytes.
      label_bytes: how many labels an image has, the last of which is taken: 1 for CIFAR-10, 2 for
        CIFAR-100 (coarse, fine).

    Returns:
      As `parse_pickle`.
    """
    rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + 3 * SIZE[0] * SIZE[1])
    return _to_images(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int32)


def _to_images(
    rows: UInt8[np.ndarray, "examples values"],
) -> UInt8[np.ndarray, "examples height width 3"]:
    """Rows of all red, then all green, then all blue values as images."""
    return np.ascontiguousarray(rows.reshape(-1, 3, *SIZE).transpose(0, 2, 3, 1))


def read_folder(path: Path, names: list[str]) -> dict[str, bytes]:
    """The named files of a folder."""
    return {name: (path / name).read_bytes() for name in names}


def read_archive(path: Path, names: list[str]) -> dict[str, bytes]:
    """The named files of a ``.tar.gz``, whatever folder they are in."""
    files = {}
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content and Path(member.name).name in names:
                    files[Path(member.name).name] = content.read()
        stream.read()  # to the end, where the checksum is
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return files
