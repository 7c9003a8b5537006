"""Images of another size are refused before they are decoded."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dimat_jax.datasets.decode import decode


def png(width, height):
    """A PNG file that says that it is of this size; of its pixels it holds none."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [33, 4_000, 13_000, 100_000])
def test_large_images_are_refused_by_their_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="an image of") as error:
        warnings.simplefilter("error")
        decode(png(side, side), (32, 32))
    assert "\n" not in str(error.value)


def test_images_of_the_size_are_decoded():
    stream = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 6)).save(stream, "PNG")
    found = decode(stream.getvalue(), (2, 6))
    np.testing.assert_array_equal(found[..., 1], np.arange(12).reshape(2, 6))
