"""Splitting a training set among agents.

Every function returns a list of ``n`` arrays of indices. No example is in two of them, and none is
lost; `stack` brings them to one length without trimming. What comes out depends on the labels, the
number of agents and the key only: not on devices, nor on x64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Integer

from dimat_jax import registry
from dimat_jax.registry import attempt, check_number
from dimat_jax.types import Key, check_key

Labels = Integer[Array | np.ndarray, " examples"]
Indices = Int[np.ndarray, "_"]

REDRAWS = 1_000  # how often `dirichlet` tries for a split in which no agent goes empty


def iid(labels: Labels, n: int, key: Key) -> list[Indices]:
    """Splits every class evenly: shards of one distribution, sizes that differ by 1 at most.

    Args:
      labels: int ``[examples]``, the class of each example.
      n: the number of agents.
      key: decides who gets which example, and in what order.

    Returns:
      The agents' examples; of each class two agents' numbers differ by 1 at most.

    Raises:
      ValueError: if ``n`` is less than 1 or more than there are examples.
    """
    labels = _checked(labels, n)
    rng = _generator(key)
    order = _class_by_class(labels, rng)
    # Dealt out in turn, class after class: of each class everyone gets as many, but for one.
    return [rng.permutation(order[agent::n]) for agent in range(n)]


def by_class(labels: Labels, n: int, key: Key) -> list[Indices]:
    """Gives class c whole to agent c mod n: the hardest split, as in the DIMAT paper.

    With more agents than classes, agent i gets an even share of class i mod (number of classes).

    Args:
      labels: int ``[examples]``, from 0; the number of classes is the largest plus 1.
      n: the number of agents.
      key: decides who gets which example of a shared class, and the order within a shard.

    Returns:
      The agents' examples. If classes are missing from ``labels``, or have fewer examples than
      agents that share them, shards may be empty (`stack` refuses those).

    Raises:
      ValueError: if ``n`` is less than 1 or more than there are examples, or a label negative.
    """
    labels = _checked(labels, n)
    rng = _generator(key)
    classes = int(labels.max()) + 1
    parts: list[list[np.ndarray]] = [[] for _ in range(n)]
    for label in range(classes):
        # 25 agents, 10 classes: class 3 goes to agents 3, 13 and 23. 4 agents: to agent 3 mod 4.
        agents = range(label, n, classes) if n > classes else [label % n]
        examples = rng.permutation(np.flatnonzero(labels == label))
        for position, agent in enumerate(agents):
            parts[agent].append(examples[position :: len(agents)])
    return [rng.permutation(np.concatenate(part)) for part in parts]


def dirichlet(labels: Labels, n: int, key: Key, alpha: float | int) -> list[Indices]:
    """Splits each class by proportions drawn from a symmetric Dirichlet distribution.

    Source: T.-M. H. Hsu, H. Qi and M. Brown, arXiv 1909.06335; class by class as in M. Yurochkin
    et al., arXiv 1905.12022. Drawn again, up to 1,000 times, until every agent has an example.

    Args:
      labels: int ``[examples]``, from 0.
      n: the number of agents.
      key: decides the proportions, who gets which example, and in what order.
      alpha: the concentration: towards 0 each class goes to one agent, towards infinity all agents
        get the same share of it.

    Returns:
      The agents' examples, at least one each; sizes differ.

    Raises:
      ValueError: if ``alpha`` is not a positive number, ``n`` is less than 1 or more than there are
        examples, a label is negative, or every draw left an agent without examples.
    """
    labels = _checked(labels, n)
    check_number("alpha", alpha, above=0)
    rng = _generator(key)
    order, counts = _class_by_class(labels, rng), np.bincount(labels)
    # Class c begins at order[starts[c]]; agent i gets its places cuts[i, c] to cuts[i + 1, c].
    cuts = _dirichlet_cuts(rng, counts, n, alpha)
    starts = np.cumsum(counts) - counts
    return [
        rng.permutation(
            np.concatenate(
                [order[s + a : s + b] for s, a, b in zip(starts, low, high, strict=True)]
            )
        )
        for low, high in zip(cuts[:-1], cuts[1:], strict=True)
    ]


def pretrain_iid_finetune_by_class(
    labels: Labels, n: int, key: Key
) -> tuple[list[Indices], list[Indices]]:
    """Splits half of each class by `iid`, for pretraining, and the other half by `by_class`.

    The setting called PF in the DIMAT paper.

    Args:
      labels: int ``[examples]``, from 0.
      n: the number of agents.
      key: decides everything that is random, the halves included.

    Returns:
      The agents' examples for pretraining and those for what comes after: no example is in two of
      the ``2 n`` shards, none lost. Of an odd class the second half has one more.

    Raises:
      ValueError: if ``n`` is less than 1 or more than there are examples in the first half, or a
        label is negative.
    """
    labels = _checked(labels, n)
    check_key(key)
    half_key, iid_key, class_key = jax.random.split(key, 3)
    order, counts = _class_by_class(labels, _generator(half_key)), np.bincount(labels)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(starts, counts)  # place within the class
    # ``order`` is class by class, so the first half of each class is where the rank is small.
    in_first = rank < np.repeat(counts // 2, counts)
    first, second = order[in_first], order[~in_first]
    if n > len(first):
        raise ValueError(
            f"There are {n} agents and {len(first)} examples for pretraining (half of each class): "
            "every agent needs at least one."
        )
    return (
        [first[shard] for shard in iid(labels[first], n, iid_key)],
        [second[shard] for shard in by_class(labels[second], n, class_key)],
    )


PARTITIONS: Mapping[str, Callable] = registry.PARTITIONS
"""Name → function of ``(labels, n, key)``; `dirichlet` takes ``alpha`` too, and
`pretrain_iid_finetune_by_class` returns a pair of lists."""


def stack(shards: list[Indices]) -> Int[np.ndarray, "agents examples"]:
    """Stacks shards, each filled up to the size of the largest with its own examples again.

    So none is lost, whatever the sizes; an agent with few examples sees them more often.

    Args:
      shards: arrays of indices, one for each agent.

    Raises:
      ValueError: if a shard is empty, or there is none.
    """
    sizes = [len(shard) for shard in shards]
    if not sizes or min(sizes) == 0:
        empty = sizes.index(0) if sizes else 0
        raise ValueError(
            f"Agent {empty} has no example ({sum(sizes)} examples, {len(sizes)} agents): take "
            "fewer agents, more examples or another partition."
        )
    return np.stack([np.resize(shard, max(sizes)) for shard in shards])


def _checked(labels: Labels, n: int) -> Integer[np.ndarray, " examples"]:
    """The labels on the host, if they can be split among ``n`` agents."""
    found: Any = attempt("labels must be an array", np.asarray, labels)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape [examples], not {found.dtype} of shape "
            f"{list(found.shape)}."
        )
    check_number("The number of agents", n, whole=True)
    if n < 1:
        raise ValueError(f"There are {n} agents: there must be at least 1.")
    if n > len(found):
        raise ValueError(
            f"There are {n} agents and {len(found)} examples: every agent needs at least one."
        )
    if found.min() < 0:
        raise ValueError(f"A label is {found.min()}: labels must be 0 or more.")
    return found


def _generator(key: Key) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key."""
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _class_by_class(labels: Integer[np.ndarray, " examples"], rng: np.random.Generator) -> Indices:
    """All indices, class 0 first, those of a class in random order."""
    shuffled = rng.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _dirichlet_cuts(
    rng: np.random.Generator, counts: Int[np.ndarray, " classes"], n: int, alpha: float
) -> Int[np.ndarray, "cuts classes"]:
    """Where the agents' parts of each class begin and end: row i, and row i + 1."""
    for _ in range(REDRAWS):
        # Rows of ``proportions`` are classes. Rounding the cumulated shares loses no example.
        proportions = rng.dirichlet(np.full(n, float(alpha)), size=len(counts))
        inner = np.floor(np.cumsum(proportions, axis=1)[:, :-1] * counts[:, None] + 0.5).astype(int)
        cuts = np.vstack([0 * counts, np.minimum(inner.T, counts), counts])
        if np.diff(cuts, axis=0).sum(axis=1).min() > 0:
            return cuts
    raise ValueError(
        f"alpha is {alpha}: {REDRAWS} draws each left one of {n} agents without any of the "
        f"{counts.sum()} examples. A larger alpha or fewer agents will do."
    )
