"""The synthetic shapes: always the same, balanced, and too hard for a linear model."""

import itertools
import math

import numpy as np
import pytest

from dimat_jax.datasets import shapes


@pytest.fixture(scope="module")
def training():
    return shapes.generate(0, 6_000)


@pytest.fixture(scope="module")
def testing():
    return shapes.generate(1, 1_000)


def test_images_are_varied_bytes_and_classes_balanced(training):
    images, labels = training
    assert images.shape == (6_000, 32, 32, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), 600)
    np.testing.assert_array_equal(np.unique(images), np.arange(256))
    assert len({image.tobytes() for image in images}) == len(images)
    first = np.bincount(labels[:500], minlength=10)  # any stretch is a fair sample
    assert first.min() > 25


def test_always_the_same_and_another_seed_differs(testing):
    images, labels = shapes.generate(1, 1_000)
    np.testing.assert_array_equal(images, testing[0])
    np.testing.assert_array_equal(labels, testing[1])
    assert (shapes.generate(2, 1_000)[0] != images).any(axis=(1, 2, 3)).all()


def test_pixels_know_nothing_of_each_other_beyond_the_label():
    # Two images of one class drawn in one call share no parameter.
    images = shapes.draw(np.random.default_rng(0), np.zeros(200, np.int32))
    corners = images[:, 0, 0].astype(float)
    assert np.abs(np.corrcoef(corners[::2].T, corners[1::2].T)[:3, 3:]).max() < 0.4


@pytest.mark.parametrize("outline", shapes.OBJECTS, ids=lambda outline: outline.__name__)
def test_objects_are_filled_outlines_of_the_unit_circles_size(outline):
    axis = np.linspace(-2, 2, 201, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    distance = outline(u, v)
    inside, radius = distance < 0, np.hypot(u, v)
    assert not inside[radius > 1.5].any()
    assert 0.6 < inside.sum() * 0.02**2 < 2.1  # its area; the unit circle has 3.14
    # A distance to the outline changes by no more than the way that is gone.
    assert np.abs(np.diff(distance, axis=0)).max() < 0.021
    assert np.abs(np.diff(distance, axis=1)).max() < 0.021


def test_objects_differ_from_each_other_under_every_turn():
    axis = np.linspace(-1.5, 1.5, 61, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    turned = np.array(
        [
            [math.cos(t) * u + math.sin(t) * v for t in turns],
            [math.cos(t) * v - math.sin(t) * u for t in turns],
        ]
    )
    for one, other in itertools.combinations(shapes.OBJECTS, 2):
        still, moved = one(u, v) < 0, other(*turned) < 0
        overlap = (still & moved).sum(axis=(1, 2)) / (still | moved).sum(axis=(1, 2))
        assert overlap.max() < 0.9, (one.__name__, other.__name__)


def test_a_linear_model_stays_under_half(training, testing):
    (images, labels), (test_images, test_labels) = training, testing

    def features(pixels):
        return np.c_[pixels.reshape(len(pixels), -1) / 255, np.ones(len(pixels))]

    x, y = features(images), np.eye(10)[labels]
    gram, moments = x.T @ x, x.T @ y
    penalties = (1e2, 1e4)  # ridge regression in closed form; the best one counts
    weights = [np.linalg.solve(gram + p * np.eye(len(gram)), moments) for p in penalties]
    predicted = [(features(test_images) @ w).argmax(axis=1) for w in weights]
    best = max((p == test_labels).mean() for p in predicted)
    assert 0.2 < best < 0.5
