"""Flips and crops give what they should, anywhere; normalisation agrees with NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dimat_jax.datasets import augment

SHAPE = (6, 5, 2)  # height, width and channels all different
PADDING = 2
flip_and_crop = jax.jit(functools.partial(augment.flip_and_crop, padding=PADDING))


def images(number, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (number, *SHAPE), np.uint8)


def flips_and_crops(image):
    """All that may become of an image, cut out of a frame by hand."""
    height, width, channels = image.shape
    outcomes = {}
    for flip in (False, True):
        frame = np.zeros((height + 2 * PADDING, width + 2 * PADDING, channels), np.uint8)
        frame[PADDING:-PADDING, PADDING:-PADDING] = image[:, ::-1] if flip else image
        for top in range(2 * PADDING + 1):
            for left in range(2 * PADDING + 1):
                cut = frame[top : top + height, left : left + width]
                outcomes[cut.tobytes()] = (flip, top, left)
    return outcomes


def test_every_flip_and_crop_happens_equally_often():
    one, number = images(1)[0], 5_000
    outcomes = flips_and_crops(one)
    batch = np.broadcast_to(one, (number, *SHAPE))
    found = np.asarray(flip_and_crop(jax.random.key(0), batch))
    assert found.dtype == np.uint8
    chosen = [outcomes[image.tobytes()] for image in found]  # a KeyError if it is none of them
    counts = np.array([chosen.count(outcome) for outcome in outcomes.values()])
    expected = number / len(counts)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 50 and chi_squared < 85.4  # 49 degrees of freedom: exceeded once in 1,000


def test_each_image_gets_its_own_and_stays_in_place():
    batch = images(64)
    found = np.asarray(flip_and_crop(jax.random.key(1), batch))
    chosen = [flips_and_crops(a)[b.tobytes()] for a, b in zip(batch, found, strict=True)]
    assert len(set(chosen)) > 25


AGENTS = 8


def agents_keys_and_images():
    keys = jax.random.split(jax.random.key(2), AGENTS)
    return keys, images(AGENTS * 4).reshape(AGENTS, 4, *SHAPE)


@pytest.fixture(scope="module")
def one_by_one():
    """What each agent gets alone."""
    single = jax.jit(augment.flip_and_crop)
    return np.stack([single(k, b) for k, b in zip(*agents_keys_and_images(), strict=True)])


def test_same_images_without_jit(one_by_one):
    keys, batches = agents_keys_and_images()
    found = augment.flip_and_crop(keys[0], batches[0])
    np.testing.assert_array_equal(found, one_by_one[0])


@pytest.mark.parametrize("x64", [False, True])
def test_same_images_with_vmap_and_x64(x64, one_by_one):
    with jax.enable_x64(x64):
        found = jax.jit(jax.vmap(augment.flip_and_crop))(*agents_keys_and_images())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, one_by_one)


def test_same_images_with_shard_map(one_by_one):
    mesh = jax.sharding.Mesh(jax.devices()[:AGENTS], "agents")
    split = P("agents")
    each = jax.shard_map(
        jax.vmap(augment.flip_and_crop), mesh=mesh, in_specs=split, out_specs=split
    )
    found = jax.jit(each)(*agents_keys_and_images())
    assert len(found.sharding.device_set) == AGENTS
    np.testing.assert_array_equal(found, one_by_one)


def test_none_changes_nothing():
    batch = images(3)
    np.testing.assert_array_equal(augment.none(jax.random.key(0), batch), batch)


@pytest.mark.parametrize("number", [1, 512, 1300])  # less than a piece, one, several
def test_channel_statistics_agree_with_numpy(number, tmp_path):
    values = images(number) // np.array([1, 3], np.uint8)  # channels that differ
    np.save(tmp_path / "images.npy", values)
    mean, std = augment.channel_statistics(np.load(tmp_path / "images.npy", mmap_mode="r"))
    scaled = values.astype(np.float64) / 255
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_has_std_1():
    values = images(700)
    values[..., 1] = 77
    mean, std = augment.channel_statistics(values)
    assert std[1] == 1 and std[0] < 1
    np.testing.assert_allclose(mean[1], 77 / 255, rtol=1e-6)


def test_normalized_training_images_have_mean_0_and_std_1():
    values = images(100)
    mean, std = augment.channel_statistics(values)
    found = jax.jit(augment.normalize)(values, mean, std)
    assert found.dtype == jnp.float32 and found.shape == values.shape
    np.testing.assert_allclose(np.mean(found, axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(found, axis=(0, 1, 2)), 1, atol=1e-5)


def test_normalize_takes_the_dtype_of_the_mean(x64):
    values = images(4)
    mean, std = augment.channel_statistics(values)
    assert augment.normalize(values, mean, std).dtype == jnp.float32
    found = augment.normalize(values, mean.astype(float), std.astype(float))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, (values / 255 - mean.astype(float)) / std, rtol=1e-12)
