"""Downloads from a server of our own: whole or absent."""

import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest
from helpers.cifar_archives import assert_arrays, write

from dimat_jax.datasets import DataNotFoundError, cifar, download
from dimat_jax.datasets.download import download as fetch

BODY = b"the file" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `BODY`, half of it, what the server holds for a path, or nothing."""

    def do_GET(self):
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "broken" in self.path else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(no_proxy):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files = {"/good": BODY, "/broken": BODY}
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def digest(body):
    return hashlib.sha256(body).hexdigest()


def test_a_good_file_arrives_whole(server, tmp_path):
    fetch(f"{server.url}/good", digest(BODY), tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == BODY
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "sha256", "error", "message"),
    [
        ("/missing", digest(BODY), DataNotFoundError, "404"),
        ("/good", digest(b""), ValueError, f"SHA-256 {digest(BODY)}: it should be {digest(b'')}"),
        ("/broken", digest(BODY), ValueError, "SHA-256|IncompleteRead"),
    ],
    ids=["missing", "another", "broken off"],
)
def test_a_bad_one_leaves_nothing(server, tmp_path, path, sha256, error, message):
    with pytest.raises(error, match=message):
        fetch(f"{server.url}{path}", sha256, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_no_server(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file"
    assert not download.reachable(url)
    with pytest.raises(DataNotFoundError, match="127.0.0.1 cannot be reached"):
        fetch(url, digest(BODY), tmp_path / "file")


def test_a_server_that_takes_connections_and_stays_silent(no_proxy, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DataNotFoundError, match="127.0.0.1 cannot be reached"):
            fetch(f"{url}/file", digest(BODY), tmp_path / "file")
        monkeypatch.setenv("http_proxy", url)
        assert not download.reachable("http://no-such-host.invalid/file", 0.2)
        assert time.monotonic() - start < 3


def test_the_proxy_counts_as_the_network(server, monkeypatch):
    far = "http://no-such-host.invalid/file"
    monkeypatch.setenv("http_proxy", server.url)
    assert download.reachable(far)
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    assert not download.reachable(far)


def test_cifar_is_downloaded_into_the_data_directory(server, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    archive, expected = write(cifar.CIFAR100, "binary", tmp_path / "there")
    server.files[f"/{archive.name}"] = archive.read_bytes()
    monkeypatch.setattr(cifar, "URL", f"{server.url}/")
    which = cifar.CIFAR100._replace(sha256=digest(archive.read_bytes()))
    found = cifar.load(which, tmp_path / "here", tmp_path / "cache")
    assert_arrays(found, expected)
    assert (tmp_path / "here" / archive.name).read_bytes() == archive.read_bytes()
    server.files.clear()  # now it lies there
    again = cifar.load(which, tmp_path / "here", tmp_path / "cache2")
    np.testing.assert_array_equal(again.train_images, found.train_images)
