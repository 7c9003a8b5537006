"""Encoded images to arrays."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8


def is_jpeg(encoded: bytes) -> bool:
    """Whether these are the bytes of a JPEG file, and so of an image that lost something."""
    return encoded.startswith(b"\xff\xd8")


def decode(encoded: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "height width channels=3"]:
    """Decodes a JPEG or PNG file; grey becomes RGB.

    Args:
      encoded: the file's bytes.
      size: the (height, width) that the image must have.

    Returns:
      uint8 ``[height, width, 3]``.

    Raises:
      ValueError: if the bytes are no whole image, or one of another size.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
        if image.size[::-1] != size:  # as its header says, before anything is decoded
            raise ValueError(f"an image of {image.size[::-1]} pixels where {size} are expected")
        return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"an image of far more pixels than {size}") from error
    except (OSError, SyntaxError) as error:  # Pillow's for broken JPEG and broken PNG
        raise ValueError(f"no whole JPEG or PNG image ({error})") from error
