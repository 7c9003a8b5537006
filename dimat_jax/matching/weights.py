"""Weight matching: Git Re-Basin's coordinate descent over any model's permutation groups.

Source: Ainsworth, Hayase, Srinivasa 2023, "Git Re-Basin" (arXiv 2209.04836), algorithm 1. It
permutes the source so that its weights are as near to the target's as can be: since permuting keeps
norms, the largest inner product is the smallest Euclidean distance.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Inexact

from dimat_jax import registry
from dimat_jax.matching.assignment import as_permutations
from dimat_jax.matching.blocks import Occurrence, layouts
from dimat_jax.matching.costs import CONSTANT_TOLERANCE, COSTS
from dimat_jax.matching.joint import Chosen, Outer, Table, choose_in_turn, group_scores, improve
from dimat_jax.symmetries import Permutations, Symmetries, check_symmetries, permute
from dimat_jax.symmetries.groups import shape_of
from dimat_jax.symmetries.networks import check_leaves, leaves_by_path, like, wide
from dimat_jax.types import Key, check_key

MAX_JOINT_ENTRIES = 2**24
"""Largest number of entries of a table over several groups; beyond it their best is bounded."""


class Block(NamedTuple):
    """The same part of a leaf of both networks, with an axis for each group on it.

    Complex weights have one more axis: real and imaginary parts, whose products are added up.
    """

    target: Float[np.ndarray, "..."]
    source: Float[np.ndarray, "..."]
    occurrences: tuple[Occurrence, ...]


def match_weights(
    symmetries: Symmetries,
    target: Any,
    source: Any,
    key: Key,
    cost: str = "inner_product",
    max_iterations: int = 100,
) -> Permutations:
    """Aligns the source's units with the target's by their weights alone.

    Coordinate descent on `matching_objective`: groups are visited in random order, each time solved
    by linear assignment given all others, until none improves. It starts from the better of the
    identity and one pass through the network from its inputs, in which groups further on count with
    the best that they could reach. The objective never decreases, so the result is at least as good
    as the identity; in general it is a local maximum.

    Runs on the host with NumPy and SciPy; nothing is compiled.

    Args:
      symmetries: The groups, as `find_symmetries` returns them.
      target: Variables of the network to align with.
      source: Variables of the network to align.
      key: A PRNG key for the order of visits.
      cost: What is maximised; see `matching_objective`.
      max_iterations: Largest number of rounds of visits to all groups.

    Returns:
      Group name to int32 permutation of the source. Groups whose leaves cannot be taken apart keep
      the identity; a warning names them.

    Raises:
      ValueError: For an unknown cost, networks of different leaves, or weights that are not finite.
    """
    registry.choose("cost", cost, COSTS)
    check_key(key)
    registry.check_number("max_iterations", max_iterations, least=0, whole=True)
    blocks, left = _blocks(symmetries, *_checked(symmetries, target, source), cost)
    if left:
        warnings.warn(
            f"Weight matching leaves these groups as they are: {', '.join(left)}. A leaf of theirs "
            "cannot be taken apart.",
            stacklevel=2,
        )
    outer = {name: group.outer for name, group in symmetries.groups.items() if name not in left}
    # The host's generator, seeded by the key: nothing of JAX runs within the loop.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    chosen = _start(symmetries, blocks, outer)
    for _ in range(max_iterations):
        before = chosen
        for index in generator.permutation(len(outer)):
            chosen = _improve(list(outer)[index], chosen, blocks, outer)
        if chosen is before:
            break
    return as_permutations(symmetries, {**_identity(symmetries), **chosen})


def matching_objective(
    symmetries: Symmetries,
    permutations: Mapping[str, Any],
    target: Any,
    source: Any,
    cost: str = "inner_product",
) -> Float[Array, ""]:
    """What `match_weights` maximises: how alike the target and the permuted source are.

    The sum, over all leaves that carry a group, of the inner product of the target's leaf with the
    permuted source's. Where variables are a dict with `params`, only leaves below it count: running
    statistics are no weights. Of a group that has no leaf there, all leaves count. With
    `covariance` each leaf has its mean subtracted and the product is divided by its size; with
    `correlation` it is divided by both leaves' norms, so that every leaf counts alike whatever its
    scale.

    Pure; it can be jitted and vmapped.

    Args:
      symmetries: The groups.
      permutations: Group name to permutation of the source; an absent group stays as it is.
      target: Variables of the network to align with.
      source: Variables of the network to align.
      cost: `inner_product`, `covariance` or `correlation`.

    Returns:
      The objective, a scalar.

    Raises:
      ValueError: For an unknown cost, group or shape, or networks of different leaves.
    """
    registry.choose("cost", cost, COSTS)
    target, source = _checked(symmetries, target, source)
    sides = (
        _weights(symmetries, target),
        _weights(symmetries, permute(symmetries, permutations, source)),
    )
    products = [
        jnp.vdot(*(_prepared(jnp.asarray(x), cost) for x in pair)).real
        for pair in zip(sides[0].values(), sides[1].values(), strict=True)
    ]
    return reduce(jnp.add, products, jnp.zeros(()))


def _checked(symmetries: Symmetries, target: Any, source: Any) -> tuple[Any, Any]:
    """Both networks, in one structure."""
    check_symmetries(symmetries)
    check_leaves(symmetries.shapes, target, "the target")
    return target, like(target, source, ("the target", "the source"))


def _weights(symmetries: Symmetries, variables: Any) -> dict[str, Any]:
    """Path to leaf, of the leaves below `params` that carry a group; all of it if none is there."""
    found = leaves_by_path(variables)
    below = "params/" if any(path.startswith("params/") for path in found) else ""
    # BatchNorm's statistics carry groups, but a network is not its statistics. A group may stand on
    # nothing else, though (a normalisation without a scale), and must be matched by something.
    counted: set[str] = set()
    for group in symmetries.groups.values():
        paths = {site.path for site in group.sites}
        counted |= {path for path in paths if path.startswith(below)} or paths
    return {path: x for path, x in found.items() if path in counted}


def _prepared(leaf: Any, cost: str) -> Any:
    """The leaf such that an inner product of two is the cost's, in float32 or wider."""
    dtype = wide(leaf.dtype)
    leaf = leaf.astype(canonicalize_dtype(dtype) if isinstance(leaf, jax.Array) else dtype)
    if cost == "inner_product":
        return leaf
    centred = leaf - leaf.mean()
    if cost == "covariance":
        return centred / leaf.size**0.5
    # A leaf of equal values, as biases are before training, has no direction: its product is 0.
    square, mean = (abs(centred) ** 2).sum(), abs(leaf.mean())
    constant = square <= leaf.size * (CONSTANT_TOLERANCE * mean) ** 2
    return centred * (1 - constant) / (square + constant) ** 0.5


def _blocks(
    symmetries: Symmetries, target: Any, source: Any, cost: str
) -> tuple[list[Block], list[str]]:
    """The blocks of all weights, and the groups for which there are none."""
    sides = _weights(symmetries, target), _weights(symmetries, source)
    failed: set[str] = set()
    blocks = []
    for path in sides[0]:
        leaves = [_prepared(np.asarray(side[path]), cost) for side in sides]
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise ValueError(f"The weights {path!r} are not finite; has a network diverged?")
        found, not_apart = layouts(symmetries, path, leaves[0].shape)
        failed |= not_apart
        for layout in found:
            cut = [_real(layout.cut(leaf)) for leaf in leaves]
            blocks.append(Block(cut[0], cut[1], layout.occurrences))
    # What varies along a group that stays as it is would have no axis to vary along.
    groups = symmetries.groups.items()
    left = [name for name, group in groups if failed & {name, *group.outer}]
    return [block._replace(occurrences=_without(left, block)) for block in blocks], left


def _without(left: Sequence[str], block: Block) -> tuple[Occurrence, ...]:
    return tuple(o for o in block.occurrences if o.group not in left)


def _real(x: Inexact[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Complex numbers as two real ones, on an axis of their own."""
    return np.stack([x.real, x.imag], -1) if np.iscomplexobj(x) else x


def _identity(symmetries: Symmetries) -> Chosen:
    shapes = {name: shape_of(symmetries, name) for name in symmetries.groups}
    return {
        name: np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
        for name, shape in shapes.items()
    }


def _start(symmetries: Symmetries, blocks: Sequence[Block], outer: Outer) -> Chosen:
    """The better of the identity and one pass through the network in the order of reading."""
    identity = {name: p for name, p in _identity(symmetries).items() if name in outer}
    # In the order in which the model reads groups, but each after those that it varies along.
    rank = {name: i for i, name in enumerate(outer)}
    after = {name: max(rank.get(o, 0) for o in (name, *outer[name])) for name in outer}
    order = sorted(outer, key=lambda name: (after[name], len(outer[name])))
    passed = choose_in_turn(
        order, {}, lambda group, chosen: _scores(group, chosen, {}, blocks, outer)
    )
    return max(identity, passed, key=lambda chosen: _total(chosen, blocks, outer))


def _improve(group: str, chosen: Chosen, blocks: Sequence[Block], outer: Outer) -> Chosen:
    # The total over other blocks does not change: they need not be looked at.
    again = {name for name in outer if name == group or group in outer[name]}
    touched = [b for b in blocks if again & {o.group for o in b.occurrences}]
    return improve(
        group,
        chosen,
        outer,
        lambda name, others: _scores(name, others, chosen, touched, outer),
        lambda proposal: _total(proposal, touched, outer),
    )


def _total(chosen: Chosen, blocks: Sequence[Block], outer: Outer) -> float:
    return sum(
        float(np.vdot(block.target, _permuted(block.source, block.occurrences, chosen)))
        for block in blocks
    )


def _permuted(
    source: Float[np.ndarray, "..."], occurrences: Sequence[Occurrence], chosen: Chosen
) -> Float[np.ndarray, "..."]:
    """The block with the groups at these occurrences permuted, outer ones first."""
    for group, axis, outer in sorted(occurrences, key=lambda o: len(o.outer)):
        if not outer:
            source = source.take(chosen[group], axis)
            continue
        # [heads, units] onto the block's axes where heads and units stand, in their order there.
        varying = (*outer, axis)
        index = chosen[group].transpose(np.argsort(varying))
        index = np.expand_dims(index, [d for d in range(source.ndim) if d not in varying])
        source = np.take_along_axis(source, index, axis)
    return source


def _scores(
    group: str, chosen: Chosen, previous: Chosen, blocks: Sequence[Block], outer: Outer
) -> Float[np.ndarray, "*outer units units"]:
    """Scores `[*outer, units, units]` of one group, given others.

    Args:
      group: The group to choose.
      chosen: Permutations of the groups that are chosen already.
      previous: Permutations from before, for the other places of a group that stands twice on a
        leaf (a recurrent kernel): there the objective is made linear.
      blocks: The weights.
      outer: Along what each group varies.
    """
    tables = [
        _table(block, here, chosen, previous, outer)
        for block in blocks
        for here in block.occurrences
        if here.group == group
    ]
    return reduce(np.add, [group_scores(table, group, outer) for table in tables])


def _table(block: Block, here: Occurrence, chosen: Chosen, previous: Chosen, outer: Outer) -> Table:
    """The scores at one occurrence of a group, jointly with undecided groups that vary along it."""
    known, joint, undecided = _roles(block, here, chosen, previous, outer)
    source = _permuted(block.source, known, {**previous, **chosen})
    # The group's axis and those of groups chosen with it are units; axes along which they vary stay
    # apart, one matrix for each index; everything else is summed over, as weights that must agree.
    free = [here.axis, *(other.axis for other in joint)]
    names = {
        axis: name
        for o in (here, *joint)
        for axis, name in zip(o.outer, outer[o.group], strict=True)
    }
    fixed = [axis for axis in names if axis not in free]
    target, source = (_matrices(side, fixed, free, undecided) for side in (block.target, source))
    sizes = [[block.target.shape[axis] for axis in axes] for axes in (fixed, free)]
    return Table(
        tuple(names[axis] for axis in fixed),
        tuple(o.group for o in (here, *joint)),
        (target @ source.swapaxes(-1, -2)).reshape(*sizes[0], *sizes[1], *sizes[1]),
    )


def _roles(
    block: Block, here: Occurrence, chosen: Chosen, previous: Chosen, outer: Outer
) -> tuple[list[Occurrence], list[Occurrence], list[int]]:
    """Which other occurrences of a block have a known permutation, are matched jointly, or neither.

    Neither: their axes, along which weights are sorted, and what cannot be matched jointly.
    """
    known, joint, undecided = [], [], []
    for other in sorted(block.occurrences, key=lambda o: len(o.outer)):
        # Nested: the other varies along this group. Elsewhere: this group again on another axis of
        # the same leaf (a recurrent kernel), or something that varies along that one.
        nested = here.axis in other.outer
        elsewhere = here.group in (other.group, *outer[other.group]) and not nested
        if other == here:
            continue
        if other.group in chosen or (elsewhere and other.group in previous):
            known.append(other)
        elif nested and not {other.group, *other.outer} & {*undecided, *(o.group for o in joint)}:
            joint.append(other)
        else:
            undecided.append(other.axis)
    # Up to 64 heads of 64 units, a table of 4096 x 4096; beyond, a bound on the best does instead.
    units = math.prod(block.target.shape[o.axis] for o in (here, *joint))
    if units**2 > MAX_JOINT_ENTRIES:
        return known, [], undecided + [o.axis for o in joint]
    return known, joint, undecided


def _matrices(
    x: Float[np.ndarray, "..."], fixed: Sequence[int], free: Sequence[int], undecided: Sequence[int]
) -> Float[np.ndarray, "fixed units weights"]:
    """A matrix `[units, weights]` for each index of the fixed axes.

    Weights on undecided axes are sorted: the inner product of two sorted vectors is the largest
    that any permutation reaches (the rearrangement inequality), so they count with an upper bound.
    """
    others = [d for d in range(x.ndim) if d not in {*fixed, *free, *undecided}]
    sizes = [math.prod(x.shape[d] for d in axes) for axes in (fixed, free, others, undecided)]
    x = x.transpose(*fixed, *free, *others, *undecided).reshape(sizes)
    return (np.sort(x) if undecided else x).reshape(*sizes[:2], -1)
