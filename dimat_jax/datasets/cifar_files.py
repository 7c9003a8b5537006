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


MAX_BYTES = 2**28
"""What an archive, or a file, may hold: the published ones are of 0.19 GB at most."""


class _Bytes:
    """An array of bytes on its way out of a pickle: its state is checked, not believed.

    NumPy's own takes a dtype from the pickle, and with one of objects the pickle's bytes become
    pointers.
    """

    array: UInt8[np.ndarray, "..."]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Byte) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array of something else than bytes")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Byte:
    """The dtype of bytes, of which nothing can be changed."""

    def __setstate__(self, state: Any) -> None:
        pass


def _byte(name: Any, *_: Any) -> _Byte:
    if name not in ("u1", b"u1", "|u1", b"|u1"):
        raise pickle.UnpicklingError(f"it holds an array of {name!r}, not of bytes")
    return _Byte()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it encodes something as {encoding!r}")
    return text.encode("latin1")


class _CifarUnpickler(pickle._Unpickler):
    """Unpickles arrays of bytes, lists and dicts, and nothing that could run.

    Python's own, for the one in C keeps room for as many objects as a pickle asks for.
    """

    ALLOWED = {
        ("numpy", "ndarray"): _Bytes,
        ("numpy", "dtype"): _byte,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Bytes(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Bytes(),
        ("_codecs", "encode"): _encode,
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

    Raises:
      ValueError: if the images are no array of bytes, as many as they have, or the labels no list
        of numbers.
    """
    batch = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    rows = getattr(batch[b"data"], "array", None)
    if rows is None or rows.shape[1:] != (3 * SIZE[0] * SIZE[1],):
        raise ValueError("its data are no array of images' bytes")
    labels = batch[label_key]
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError("its labels are no list of whole numbers")
    return _to_images(rows), np.array(labels, np.int32)


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
    """The named files of a folder.

    Raises:
      ValueError: for one that is larger than any of CIFAR's.
    """
    for name in names:
        if (path / name).stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} is of more than {MAX_BYTES:,} bytes")
    return {name: (path / name).read_bytes() for name in names}


def read_archive(path: Path, names: list[str]) -> dict[str, bytes]:
    """The named files of a ``.tar.gz``, whatever folder they are in.

    Raises:
      ValueError: if one is missing, or the archive unpacks to more than CIFAR's.
    """
    with gzip.open(path) as stream:
        content = stream.read(MAX_BYTES + 1)  # to the end, where the checksum is
    if len(content) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            # A sparse file says more than the archive holds.
            whole = member.isreg() and member.size <= len(content)
            file = tar.extractfile(member) if whole else None
            if file and Path(member.name).name in names:
                files[Path(member.name).name] = file.read()
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return files
