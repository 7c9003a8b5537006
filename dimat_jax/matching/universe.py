"""Cycle-consistent alignment of many networks: each of them to one universe.

Source: Ainsworth, Hayase, Srinivasa 2023, "Git Re-Basin" (arXiv 2209.04836), algorithm 3
(MergeMany). Aligning in pairs gives no guarantee that P_ij P_jk = P_ik; permutations Q_i of every
network into one frame do, for then P_ij = Q_i⁻¹ Q_j (Crisostomi et al. 2024, C2M3, arXiv
2405.17897, whose objective over all pairs is this one).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from dimat_jax.matching.assignment import as_permutations
from dimat_jax.matching.weights import match_weights, matching_objective
from dimat_jax.registry import expect
from dimat_jax.symmetries import Permutations, Symmetries, check_symmetries, compose, permute
from dimat_jax.symmetries.groups import shape_of
from dimat_jax.symmetries.networks import check_leaves, leaves_by_path, like, wide
from dimat_jax.types import Key


def match_universe(
    symmetries: Symmetries, networks: Sequence[Any], key: Key, max_sweeps: int = 100
) -> list[Permutations]:
    """Aligns all networks with one universe by their weights alone.

    Coordinate ascent on `universe_objective`: each network in turn is aligned by `match_weights`
    with the sum of all others as they are aligned by then, so that the objective never decreases.
    In the first sweep a network counts from its own turn on (the first one keeps its order), as the
    sum of networks that are not aligned at all would lead nowhere.

    Runs on the host.

    Args:
      symmetries: The groups, as `find_symmetries` returns them.
      networks: Variables of each network.
      key: A PRNG key for the order in which networks and groups are visited.
      max_sweeps: Largest number of sweeps over all networks.

    Returns:
      For each network, group name to int32 permutation into the universe.

    Raises:
      ValueError: As `match_weights`; if there is no network.
    """
    aligned = [_carrying(symmetries, network) for network in _checked(symmetries, networks)]
    chosen = [identity(symmetries) for _ in networks]
    total = jax.tree.map(np.zeros_like, aligned[0])
    for sweep in range(max_sweeps):
        sweep_key = jax.random.fold_in(key, sweep)
        moved = False
        for agent in map(int, jax.random.permutation(sweep_key, len(networks))):
            # From the second sweep on the network is in the sum, and is matched with the others.
            if sweep:
                total = jax.tree.map(np.subtract, total, aligned[agent])
            visit = jax.random.fold_in(sweep_key, agent)
            step = match_weights(symmetries, total, aligned[agent], visit)
            # A step from where it stands by now: composed with those before.
            if not is_identity(step):
                chosen[agent] = compose(chosen[agent], step)
                aligned[agent] = jax.device_get(permute(symmetries, step, aligned[agent]))
                moved = True
            total = jax.tree.map(np.add, total, aligned[agent])
        if sweep and not moved:
            break
    return chosen


def _checked(symmetries: Symmetries, networks: Sequence[Any]) -> list[Any]:
    """The networks, all in the structure of the first one.

    Raises:
      ValueError: if there is none, or they are not alike.
    """
    check_symmetries(symmetries)
    expect("networks", networks, list | tuple, "a list")
    if not networks:
        raise ValueError("There must be at least one network to align, not 0.")
    check_leaves(symmetries.shapes, networks[0], "network 0")
    return [like(networks[0], x, ("network 0", f"network {k}")) for k, x in enumerate(networks)]


def _carrying(symmetries: Symmetries, network: Any) -> dict[str, np.ndarray]:
    """Path to leaf, of those that carry groups, in the dtypes in which they are added up."""
    paths = {site.path for group in symmetries.groups.values() for site in group.sites}
    leaves = {p: np.asarray(x) for p, x in leaves_by_path(network).items() if p in paths}
    return {path: leaf.astype(wide(leaf.dtype)) for path, leaf in leaves.items()}


def universe_objective(
    symmetries: Symmetries, permutations: Sequence[Permutations], networks: Sequence[Any]
) -> Float[Array, ""] | float:
    """What `match_universe` maximises: how alike all pairs of networks are in the universe.

    Args:
      symmetries: The groups.
      permutations: For each network, those into the universe.
      networks: Variables of each network.

    Returns:
      Σ_{i<j} ⟨Q_i x_i, Q_j x_j⟩ over the weights that carry a group, see `matching_objective`.

    Raises:
      ValueError: for networks that are not alike, or lists that are not of one length.
    """
    checked = _checked(symmetries, networks)
    expect("permutations", permutations, list | tuple, "a list")
    if len(permutations) != len(networks):
        raise ValueError(
            f"There must be permutations for each network, not {len(permutations)} for "
            f"{len(networks)}."
        )
    moved = [permute(symmetries, p, x) for p, x in zip(permutations, checked, strict=True)]
    return sum(
        matching_objective(symmetries, {}, first, second)
        for first, second in itertools.combinations(moved, 2)
    )


def identity(symmetries: Symmetries) -> Permutations:
    """The permutations that leave every unit where it is."""
    shapes = {name: shape_of(symmetries, name) for name in symmetries.groups}
    rows = {name: np.broadcast_to(np.arange(shape[-1]), shape) for name, shape in shapes.items()}
    return as_permutations(symmetries, rows)


def is_identity(permutations: Permutations) -> bool:
    """Whether every unit stays where it is."""
    return all(
        np.array_equal(p, np.broadcast_to(np.arange(p.shape[-1]), p.shape))
        for p in permutations.values()
    )
