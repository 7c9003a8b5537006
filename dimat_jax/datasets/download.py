"""Downloads that are checked, whole or absent, and quick to say that there is no network."""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import threading
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from dimat_jax.datasets.base import DataNotFoundError

PATIENCE = 2.0  # seconds that looking for a network may take

_log = logging.getLogger(__name__)


def reachable(url: str, seconds: float = PATIENCE) -> bool:
    """Whether the host of a URL, or the proxy on the way to it, takes a connection.

    Looking up a name has no time limit of its own, hence a thread that is left behind if it hangs.

    Args:
      url: what is to be downloaded.
      seconds: how long to wait at most.
    """
    parts = urlsplit(url)
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(urllib.request.getproxies().get(parts.scheme, url))
    address = (parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80))
    connected = threading.Event()

    def knock() -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=seconds):
            connected.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return connected.is_set()


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
        with urllib.request.urlopen(url, timeout=30) as response, temporary.open("wb") as file:
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
