"""`shapes`: a synthetic image classification problem, drawn by this file alone.

Ten kinds of objects of various positions, sizes, tilts and colours stand in front of a coloured
gradient with stripes, among clutter, partly hidden, unevenly lit and under noise. It needs no
download and is no toy: of the test images a linear model gets about 40% right, `models.convnet`
trained centrally 81% after two epochs and 89% after five (Adam 1e-3, batch 100, flips and crops).
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dimat_jax.datasets.base import Dataset, Directory
from dimat_jax.datasets.cache import cached

TITLE = "shapes (synthetic)"
SIZE = 32
TRAIN_EXAMPLES, TEST_EXAMPLES = 20_000, 4_000
SEED = 0
CHUNK = 1_000  # images drawn at a time: what bounds the memory

Field = Float32[np.ndarray, "*images height width"]
Colour = Float32[np.ndarray, "images 3"]
Picture = Float32[np.ndarray, "images height width 3"]


def disc(u: Field, v: Field) -> Field:
    """A full circle."""
    return np.hypot(u, v) - 0.8


def ring(u: Field, v: Field) -> Field:
    """A circle with a hole."""
    return np.abs(np.hypot(u, v) - 0.7) - 0.2


def half_disc(u: Field, v: Field) -> Field:
    """The upper half of a circle."""
    v = v + 0.4
    return np.maximum(np.hypot(u, v) - 0.95, -v)


def crescent(u: Field, v: Field) -> Field:
    """A circle that another one has bitten into."""
    return np.maximum(np.hypot(u, v) - 0.9, 0.8 - np.hypot(u - 0.55, v))


def square(u: Field, v: Field) -> Field:
    """Four equal sides."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def triangle(u: Field, v: Field) -> Field:
    """Three equal sides."""
    return _wedges(-v, u, 3, outer=1.1, inner=0.55)


def star(u: Field, v: Field) -> Field:
    """Five points."""
    return _wedges(-v, u, 5, outer=1.1, inner=0.45)


def cross(u: Field, v: Field) -> Field:
    """Two bars across each other."""
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.28)


def bar(u: Field, v: Field) -> Field:
    """A long rectangle."""
    return np.maximum(np.abs(u) - 1.05, np.abs(v) - 0.38)


def angle(u: Field, v: Field) -> Field:
    """Two bars that meet at a corner, as in the letter L."""
    u, v = u + 0.25, v + 0.25
    return np.maximum(np.maximum(np.abs(u - 0.3), np.abs(v - 0.3)) - 0.9, np.minimum(u, v))


OBJECTS: tuple[Callable[[Field, Field], Field], ...] = (
    disc, ring, half_disc, crescent, square, triangle, star, cross, bar, angle,
)  # fmt: skip
"""The classes, in order of their labels. Each gives the signed distance to its outline, roughly:
negative inside, for objects of about the unit circle's size."""


def _wedges(u: Field, v: Field, points: int, outer: float, inner: float) -> Field:
    """A star: the outline runs between an outer and an inner radius, ``points`` times."""
    half = math.pi / points
    # By symmetry half a wedge is enough: the edge from the tip (outer, 0) to the notch beside it,
    # of which the distance is along the normal.
    theta = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)  # 0 at a tip, half at a notch
    radius = np.hypot(u, v)
    x, y = radius * np.cos(theta), radius * np.sin(theta)
    normal_x, normal_y = inner * math.sin(half), outer - inner * math.cos(half)
    return ((x - outer) * normal_x + y * normal_y) / math.hypot(normal_x, normal_y)


def draw(
    rng: np.random.Generator, labels: Int32[np.ndarray, " images"]
) -> UInt8[np.ndarray, "images height width channels"]:
    """Draws one image for each label.

    Args:
      rng: where all randomness comes from.
      labels: int32 ``[images]``, which of `OBJECTS`.

    Returns:
      uint8 ``[images, 32, 32, 3]``.
    """
    n = len(labels)
    x, y = _pixels(n)
    # Painted from back to front: background, clutter, the object, a strip that hides part of it.
    first = _uniform(rng, 0.0, 0.6, (n, 3))
    picture = _background(rng, x, y, first)
    for _ in range(2):
        u, v, scale = _placed(rng, x, y, reach=1.0, sizes=(0.08, 0.2), longest=2.0)
        picture = _paint(picture, disc(u, v), scale, _uniform(rng, 0.0, 1.0, (n, 3)))
    u, v, scale = _placed(rng, x, y, reach=0.25, sizes=(0.5, 0.8), longest=1.2, tilt=0.5)
    outline = np.empty_like(u)
    for label, distance in enumerate(OBJECTS):
        mine = labels == label
        outline[mine] = distance(u[mine], v[mine])
    picture = _paint(picture, outline, scale, _uniform(rng, 0.4, 1.0, (n, 3)))
    u, v, scale = _placed(rng, x, y, reach=0.8, sizes=(0.03, 0.07), longest=1.0)
    strip = np.maximum(np.abs(u) - 12, np.abs(v) - 1)
    picture = _paint(picture, strip, scale, _uniform(rng, 0.0, 1.0, (n, 3)))
    return _photograph(rng, x, y, picture)


def _uniform(
    rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]
) -> Float32[np.ndarray, "..."]:
    """Uniform float32 numbers from ``low`` to ``high``."""
    return (low + (high - low) * rng.random(shape, np.float32)).astype(np.float32)


def _pixels(n: int) -> tuple[Field, Field]:
    """The pixels' coordinates, from -1 to 1, once for each of ``n`` images."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    shape = (n, SIZE, SIZE)
    return np.broadcast_to(x, shape), np.broadcast_to(y, shape)


def _placed(
    rng: np.random.Generator,
    x: Field,
    y: Field,
    reach: float,
    sizes: tuple[float, float],
    longest: float,
    tilt: float = math.pi,
) -> tuple[Field, Field, Float32[np.ndarray, "images 1 1"]]:
    """Coordinates that move, turn, mirror, scale and stretch an object, an image each its own.

    Args:
      rng: where all randomness comes from.
      x: the pixels' coordinates across.
      y: the pixels' coordinates down.
      reach: how far from the image's centre the object's may lie (the image's edge is at 1).
      sizes: the smallest and the largest size (1 fills the image).
      longest: the largest stretch along one axis.
      tilt: how far the object may be turned either way, in radians.

    Returns:
      The coordinates in the object's own frame, and the length there that is one pixel wide.
    """
    column = (len(x), 1, 1)
    turn = _uniform(rng, -tilt, tilt, column)
    size = _uniform(rng, *sizes, column)
    stretch = np.sqrt(_uniform(rng, 1.0, longest, column))
    mirror = np.where(rng.random(column, np.float32) < 0.5, np.float32(-1), np.float32(1))
    # Move, turn, mirror, then scale: u by size * stretch and v by size / stretch.
    x, y = x - _uniform(rng, -reach, reach, column), y - _uniform(rng, -reach, reach, column)
    u = mirror * (np.cos(turn) * x + np.sin(turn) * y) / (size * stretch)
    v = (np.cos(turn) * y - np.sin(turn) * x) * stretch / size
    return u, v, (2 / SIZE) / size


def _along(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """The coordinate along a random direction, an image each its own."""
    turn = _uniform(rng, 0.0, 2 * math.pi, (len(x), 1, 1))
    return np.cos(turn) * x + np.sin(turn) * y


def _background(rng: np.random.Generator, x: Field, y: Field, first: Colour) -> Picture:
    """A gradient from one colour to another, with stripes of any width and direction."""
    n, column = len(x), (len(x), 1, 1)
    along = _along(rng, x, y)
    second = np.clip(first + _uniform(rng, -0.3, 0.3, (n, 3)), 0, 1)
    share = (0.5 + 0.35 * along)[..., None]  # at a corner, |along| is at most sqrt(2)
    gradient = first[:, None, None] * (1 - share) + second[:, None, None] * share
    across, width = _along(rng, x, y), _uniform(rng, 3.0, 14.0, column)
    phase, height = _uniform(rng, 0.0, 2 * math.pi, column), _uniform(rng, 0.0, 0.12, column)
    stripes = height * np.sin(width * across + phase)
    return gradient + stripes[..., None]


def _paint(
    picture: Picture, outline: Field, pixel: Float32[np.ndarray, "images 1 1"], colour: Colour
) -> Picture:
    """Paints what lies inside an outline, with edges one pixel soft."""
    cover = np.clip(0.5 - outline / pixel, 0, 1)[..., None]
    return picture + cover * (colour[:, None, None] - picture)


def _photograph(
    rng: np.random.Generator, x: Field, y: Field, picture: Picture
) -> UInt8[np.ndarray, "images height width channels"]:
    """Lights a picture from one side, adds noise, and rounds it to bytes."""
    column = (len(x), 1, 1)
    along, slope = _along(rng, x, y), _uniform(rng, 0.0, 0.5, column)
    light = _uniform(rng, 0.6, 1.1, column) + slope * along
    noise = _uniform(rng, 0.01, 0.12, column)[..., None] * rng.standard_normal(
        picture.shape, np.float32
    )
    return np.clip(np.round(255 * (picture * light[..., None] + noise)), 0, 255).astype(np.uint8)


def generate(
    seed: int, examples: int
) -> tuple[UInt8[np.ndarray, "images height width channels"], Int32[np.ndarray, " images"]]:
    """Draws a set of images, every class equally often, shuffled.

    Args:
      seed: two seeds give two sets of the same distribution.
      examples: how many images.

    Returns:
      uint8 images ``[examples, 32, 32, 3]`` and int32 labels ``[examples]``.
    """
    rng = np.random.default_rng([SEED, seed])
    labels = rng.permutation(np.arange(examples, dtype=np.int32) % len(OBJECTS))
    parts = range(0, examples, CHUNK)
    return np.concatenate([draw(rng, labels[i : i + CHUNK]) for i in parts]), labels


def load(data_dir: Directory = None, cache_dir: Directory = None) -> Dataset:
    """Draws the data set: 20,000 training and 4,000 test images of ten classes, always the same.

    Args:
      data_dir: not used; there is nothing to look for.
      cache_dir: where the images are kept once drawn.

    Returns:
      Images of shape ``[examples, 32, 32, 3]``.
    """

    def build() -> Dataset:
        train, test = generate(0, TRAIN_EXAMPLES), generate(1, TEST_EXAMPLES)
        return Dataset(*train, *test, len(OBJECTS), TITLE, "flip_and_crop", synthetic=True)

    # The drawing's own source is its identity: whoever changes it gets new images.
    return cached("shapes", [Path(__file__).read_text()], build, cache_dir)
