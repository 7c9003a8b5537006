"""Partitions lose nothing, share nothing, and keep their promises about classes."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat_jax import partition

keys = st.integers(0, 2**31 - 1).map(jax.random.key)


@st.composite
def problems(draw, share: int = 1):
    """Labels of up to seven classes in random order, and a number of agents they suffice for."""
    counts = draw(st.lists(st.integers(share, 30), min_size=1, max_size=7))
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    return labels, draw(st.integers(1, sum(count // share for count in counts)))


properties = settings(deadline=None, max_examples=40)


def assert_divides(shards, examples):
    """Every example is in exactly one shard."""
    assert all(np.issubdtype(shard.dtype, np.integer) for shard in shards)
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(examples))


@properties
@given(problems(), keys)
def test_iid_splits_every_class_evenly(problem, key):
    labels, n = problem
    shards = partition.iid(labels, n, key)
    assert len(shards) == n
    assert_divides(shards, len(labels))
    assert np.ptp([len(shard) for shard in shards]) <= 1
    counts = np.array([np.bincount(labels[shard], minlength=labels.max() + 1) for shard in shards])
    assert (np.ptp(counts, axis=0) <= 1).all()


@properties
@given(problems(), keys)
def test_by_class_gives_class_c_to_agent_c_mod_n(problem, key):
    labels, n = problem
    classes = labels.max() + 1
    shards = partition.by_class(labels, n, key)
    assert len(shards) == n
    assert_divides(shards, len(labels))
    for agent, shard in enumerate(shards):
        if n <= classes:
            assert set(labels[shard] % n) == {agent}
        else:
            assert set(labels[shard]) <= {agent % classes}
    for label in range(classes if n > classes else 0):  # shared evenly
        assert np.ptp([len(shard) for shard in shards[label::classes]]) <= 1


@properties
@given(problems(), keys, st.sampled_from([0.3, 1.0, 100.0]))
def test_dirichlet_leaves_nobody_empty_or_says_so(problem, key, alpha):
    labels, n = problem
    try:
        shards = partition.dirichlet(labels, n, key, alpha)
    except ValueError as error:
        assert "alpha" in str(error) and str(n) in str(error)
        return
    assert len(shards) == n
    assert_divides(shards, len(labels))
    assert min(len(shard) for shard in shards) >= 1


def test_dirichlet_proportions_have_the_moments_of_the_distribution():
    labels, n, alpha = np.repeat(np.arange(400), 1000), 4, 0.7
    shards = partition.dirichlet(labels, n, jax.random.key(0), alpha)
    shares = np.array([np.bincount(labels[shard], minlength=400) for shard in shards]) / 1000
    # Closed form: mean 1/n, variance (1/n)(1 - 1/n) / (n alpha + 1); 400 draws of each.
    np.testing.assert_allclose(shares.mean(axis=1), 1 / n, atol=0.06)
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=1), variance, rtol=0.3)


def test_dirichlet_tends_to_iid_and_to_one_agent_a_class():
    labels = np.repeat(np.arange(50), 40)

    def largest_share(alpha):
        shards = partition.dirichlet(labels, 4, jax.random.key(1), alpha)
        return np.array([np.bincount(labels[s], minlength=50) for s in shards]).max(axis=0) / 40

    assert (largest_share(1e6) <= 0.275).all()
    assert np.median(largest_share(1e-3)) == 1


@properties
@given(problems(share=2), keys)
def test_pretrain_iid_finetune_by_class_halves_every_class(problem, key):
    labels, n = problem
    pretrain, finetune = partition.pretrain_iid_finetune_by_class(labels, n, key)
    assert len(pretrain) == len(finetune) == n
    assert_divides(pretrain + finetune, len(labels))
    classes = labels.max() + 1
    first = np.bincount(labels[np.concatenate(pretrain)], minlength=classes)
    np.testing.assert_array_equal(first, np.bincount(labels) // 2)
    counts = np.array([np.bincount(labels[shard], minlength=classes) for shard in pretrain])
    assert (np.ptp(counts, axis=0) <= 1).all()
    for agent, shard in enumerate(finetune):
        owner = labels[shard] % n if n <= classes else labels[shard]
        assert set(owner) <= {agent if n <= classes else agent % classes}


MAKERS = [
    partition.iid,
    partition.by_class,
    functools.partial(partition.dirichlet, alpha=0.5),
    partition.pretrain_iid_finetune_by_class,
]


@pytest.mark.parametrize("make", MAKERS)
def test_order_within_a_shard_is_random_and_the_key_decides(make):
    labels = np.repeat(np.arange(5), 40)  # sorted, as some files are
    one, again, other = (jax.tree.leaves(make(labels, 3, jax.random.key(k))) for k in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one, other, strict=True))
    assert all((np.diff(shard) < 0).any() for shard in one)


@pytest.mark.parametrize("make", MAKERS)
def test_same_with_x64_and_on_another_device_and_from_jax_labels(make):
    labels = np.random.default_rng(0).integers(0, 5, 100)
    expected = jax.tree.leaves(make(labels, 4, jax.random.key(3)))
    with jax.enable_x64(True), jax.default_device(jax.devices()[-1]):
        found = jax.tree.leaves(make(jax.numpy.asarray(labels), 4, jax.random.key(3)))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("labels", "n", "message"),
    [
        (np.arange(5), 0, "There are 0 agents"),
        (np.arange(5), -1, "There are -1 agents"),
        (np.arange(5), 6, "There are 6 agents and 5 examples"),
        (np.arange(5) - 1, 2, "A label is -1"),
    ],
)
def test_bad_input(make, labels, n, message):
    with pytest.raises(ValueError, match=message):
        make(labels, n, jax.random.key(0))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be .*, not {alpha}"):
        partition.dirichlet(np.arange(9), 2, jax.random.key(0), alpha)


def test_dirichlet_gives_up_in_one_sentence():
    with pytest.raises(ValueError, match="alpha is 0.001: 1000 draws .* 16 agents"):
        partition.dirichlet(np.arange(20) % 2, 16, jax.random.key(0), 0.001)


def test_too_few_examples_for_pretraining():
    with pytest.raises(ValueError, match="There are 3 agents and 2 examples for pretraining"):
        partition.pretrain_iid_finetune_by_class(np.arange(4) % 2, 3, jax.random.key(0))


@properties
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_stack_repeats_evenly(sizes):
    starts = np.cumsum(sizes) - sizes
    shards = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    stacked = partition.stack(shards)
    assert stacked.shape == (len(sizes), max(sizes))
    for row, shard in zip(stacked, shards, strict=True):
        values, counts = np.unique(row, return_counts=True)
        np.testing.assert_array_equal(values, shard)
        assert np.ptp(counts) <= 1


def test_stack_refuses_empty_shards():
    with pytest.raises(ValueError, match="Agent 1 has no example .3 examples, 2 agents."):
        partition.stack([np.arange(3), np.arange(0)])
    with pytest.raises(ValueError, match="0 agents"):
        partition.stack([])


def test_all_partitions_have_a_name():
    assert list(partition.PARTITIONS) == [
        "iid", "by_class", "dirichlet", "pretrain_iid_finetune_by_class",
    ]  # fmt: skip
