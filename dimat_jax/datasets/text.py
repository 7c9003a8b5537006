"""Text as windows of characters: Tiny Shakespeare, and the language reference in every Python."""

import platform
from typing import NamedTuple

import numpy as np

from dimat_jax.datasets.base import DataNotFoundError, Directory, data_directory
from dimat_jax.datasets.data import Data
from dimat_jax.datasets.download import download

LENGTH = 64
"""Characters that are predicted in a window."""
PARTS = 64
"""Contiguous parts of a text, the labels of its windows: `by_class` gives each agent some of them,
so that agents differ in speakers or topics."""
STRETCH = 8
"""Windows of a stretch, so that test windows do not all lie between training windows."""
HELD_OUT = 10
"""Every such stretch is for testing, the others for training."""

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Windows(NamedTuple):
    """Windows of tokens: int32 ``[windows, length + 1]``, and the part that each lies in."""

    tokens: np.ndarray
    parts: np.ndarray


def load_tiny_shakespeare(data_dir: Directory = None, cache_dir: Directory = None) -> Data:
    """Loads Tiny Shakespeare, 1.1 million characters of 65 kinds (A. Karpathy, public domain).

    Args:
      data_dir: where ``tiny_shakespeare/input.txt`` lies, or is downloaded to; or that folder.
      cache_dir: not used.

    Raises:
      DataNotFoundError: if it is not there and cannot be downloaded.
    """
    folder = data_directory(data_dir)
    path = folder / "tiny_shakespeare" / "input.txt"
    if folder.name == "tiny_shakespeare" and (folder / "input.txt").is_file():
        path = folder / "input.txt"
    if not path.is_file():
        try:
            download(SHAKESPEARE, SHAKESPEARE_SHA256, path)
        except DataNotFoundError as error:
            raise DataNotFoundError(f"There is no {path}, and {error}") from error
    return of_text(path.read_text(encoding="utf-8"), "Tiny Shakespeare")


def load_python_docs(data_dir: Directory = None, cache_dir: Directory = None) -> Data:
    """Loads the English text of the topics that ``help()`` of the running Python knows: 0.5 MB.

    Args:
      data_dir: not used; Python brings it along.
      cache_dir: not used.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return of_text(text, f"Python {platform.python_version()}'s topics")


def of_text(text: str, name: str, length: int = LENGTH) -> Data:
    """A text as windows that do not overlap, split for training and testing.

    Args:
      text: any.
      name: what to call it.
      length: characters that are predicted in a window.

    Returns:
      Batches ``{"tokens": int32 [batch, length + 1]}``; tokens are the places of characters among
      those that occur, in order. ``labels`` are the contiguous parts of the text.

    Raises:
      ValueError: for a text that is too short to be divided.
    """
    symbols, tokens = np.unique(np.array(list(text)), return_inverse=True)
    found = windows(tokens.astype(np.int32), length)
    testing = np.arange(len(found.tokens)) // STRETCH % HELD_OUT == HELD_OUT - 1
    if not testing.any() or len(symbols) < 2:
        least = (STRETCH * (HELD_OUT - 1) + 1) * length + 1
        raise ValueError(
            f"{name} has {len(text)} characters: it needs {least} or more, of 2 kinds."
        )
    train, test = found.tokens[~testing], found.tokens[testing]
    return Data({"tokens": train}, {"tokens": test}, name, labels=found.parts[~testing])


def windows(tokens: np.ndarray, length: int) -> Windows:
    """Cuts tokens into windows, each of which begins with the last token of the one before."""
    number = (len(tokens) - 1) // length
    starts = length * np.arange(number)
    cut = tokens[starts[:, None] + np.arange(length + 1)[None]]
    return Windows(cut, (np.arange(number) * PARTS // max(1, number)).astype(np.int32))
