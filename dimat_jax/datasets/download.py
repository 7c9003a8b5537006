"""Downloads that are checked, whole or absent, and quick to say that there is no network."""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from dimat_jax.datasets.base import DataNotFoundError

PATIENCE = 2.0  # seconds that looking for a network may take

_log = logging.getLogger(__name__)


def ask(request: str | urllib.request.Request, seconds: float) -> Any:
    """The answer to a request, by way of the proxies that the environment names now."""
    return urllib.request.build_opener().open(request, timeout=seconds)


def reachable(url: str, seconds: float = PATIENCE) -> bool:
    """Whether the host of a URL, or the proxy on the way to it, answers a request, be it by a no.

    A connection alone says nothing: some proxies take any, and stay silent. Looking up a name has
    no time limit of its own, hence a thread that is left behind if it hangs.

    Args:
      url: what is to be downloaded.
      seconds: how long to wait at most.
    """
    answered = threading.Event()

    def knock() -> None:
        head = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, HTTPException):
            try:
                ask(head, seconds).close()
            except HTTPError as error:
                error.close()
            answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def download(url: str, sha256: str, path: Path) -> None:
    """Downloads a file to ``path``, which then holds all of it or does not exist.

    Args:
      url: where it lies.
      sha256: its hexadecimal checksum.
      path: where to put it; missing folders are made.

    Raises:
      DataNotFoundError: if there is no way to the host, the way breaks off, or ``path`` cannot be
        written.
      ValueError: if what came is not the file of that checksum.
    """
    if not reachable(url):
        raise DataNotFoundError(f"{urlsplit(url).hostname} cannot be reached from here.")
    _log.warning("Downloading %s to %s", url, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # one for each process
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ask(url, 30.0) as response, temporary.open("wb") as file:
            shutil.copyfileobj(response, file, 2**20)
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{url} gave a file of SHA-256 {found}: it should be {sha256}.")
        temporary.replace(path)
    except (OSError, HTTPException) as error:
        raise DataNotFoundError(f"downloading {url} to {path} failed: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
