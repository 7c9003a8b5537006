"""From scores to permutations, for every group of a model and any leading axes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dimat_jax.matching.joint import Chosen, Table, solve
from dimat_jax.symmetries import GroupKey, Permutations, Symmetries
from dimat_jax.symmetries.groups import shape_of

Scores = Mapping[GroupKey, Float[Array | np.ndarray, "..."]]
"""For each set of groups `[*lead, *positions, units, units]`; `units` is their sizes' product."""


class NotFinite(ValueError):
    """Units cannot be compared: a network has diverged."""


def assign(symmetries: Symmetries, scores: Scores) -> Permutations:
    """Chooses the permutation of each group that maximises the sum of scores.

    A group that stands alone on its tensors is one linear assignment. Heads x head size, and all
    that varies along one other group, is solved exactly by two levels of them; anything else by
    coordinate descent until no group improves. Units with equal scores, such as dead ones, keep
    their order.

    Given arrays, it runs between two jitted calls, which is what to prefer. Inside `jit` or
    `shard_map` it becomes a `pure_callback` that runs NumPy and SciPy only: calling JAX from a
    callback can deadlock. There each device calls back for its own part, so shard the leading axes
    with `shard_map`; under plain `jit` a sharded operand would be gathered to one device.

    Args:
      symmetries: The groups.
      scores: For each set of groups that tensors carry jointly, the score of each unit of the
        target (rows) with each one of the source: `[*lead, *positions, units, units]`. `units` is
        the product of the groups' sizes; `lead` (agents, edges) is the same for all; `positions`
        are those of `symmetries.positions` along which one of the groups varies.

    Returns:
      Group name to int32 permutation `[*lead, *outer, size]`. A group without scores keeps the
      identity.

    Raises:
      NotFinite: If a score is not finite.
    """
    # The callback gets and gives NumPy arrays: JAX called from within it could wait for the very
    # computation that waits for it.
    host = partial(_assign_on_host, symmetries)
    if any(isinstance(table, jax.core.Tracer) for table in scores.values()):
        shapes = _shapes(symmetries, scores)
        chosen = jax.pure_callback(host, shapes, dict(scores), vmap_method="broadcast_all")
    else:
        chosen = host(scores)
    return as_permutations(symmetries, chosen)


def as_permutations(symmetries: Symmetries, chosen: Mapping[str, Any]) -> Permutations:
    """The permutations as arrays, knowing along what they vary."""
    outer = {name: group.outer for name, group in symmetries.groups.items()}
    return Permutations({name: jnp.asarray(chosen[name], jnp.int32) for name in outer}, outer)


def _assign_on_host(symmetries: Symmetries, scores: Scores) -> Chosen:
    values = {key: np.asarray(table, np.float64) for key, table in scores.items()}
    for key, table in values.items():
        if not np.isfinite(table).all():
            raise NotFinite(
                f"The scores of group {' x '.join(key)} are not finite; scores must be finite "
                "numbers. Has a network diverged?"
            )
    permutations = {
        name: np.array(np.broadcast_to(np.arange(shape.shape[-1], dtype=np.int32), shape.shape))
        for name, shape in _shapes(symmetries, values).items()
    }
    for index in np.ndindex(_lead(symmetries, values)):
        one = _assign_one(symmetries, {key: table[index] for key, table in values.items()})
        for name, permutation in one.items():
            permutations[name][index] = permutation
    return permutations


def _lead(symmetries: Symmetries, scores: Scores) -> tuple[int, ...]:
    leads = {
        tuple(table.shape[: table.ndim - 2 - len(positions_of(symmetries, key))])
        for key, table in scores.items()
    }
    if len(leads) > 1:
        raise ValueError(f"All scores must have the same leading axes, not {sorted(leads)}.")
    return leads.pop() if leads else ()


def _shapes(symmetries: Symmetries, scores: Scores) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of each permutation that `assign` returns."""
    lead = _lead(symmetries, scores)
    return {
        name: jax.ShapeDtypeStruct((*lead, *shape_of(symmetries, name)), np.int32)
        for name in symmetries.groups
    }


def _components(keys: Sequence[GroupKey]) -> list[set[str]]:
    """Sets of groups that some key names together, directly or through others."""
    # Keys (q, h), (v, h) and (m): one component {q, v, h}, solved jointly, and one {m}.
    components: list[set[str]] = []
    for key in keys:
        touched = [c for c in components if c & set(key)]
        components = [c for c in components if c not in touched] + [set(key).union(*touched)]
    return components


def positions_of(symmetries: Symmetries, key: GroupKey) -> tuple[str, ...]:
    """The fixed positions along which some group of a key varies: leading axes of its scores."""
    outer = {name for group in key for name in symmetries.groups[group].outer}
    return tuple(name for name in symmetries.positions if name in outer)


def _assign_one(symmetries: Symmetries, scores: Mapping[GroupKey, np.ndarray]) -> Chosen:
    """Assigns every group from scores without leading axes."""
    # Units of heads x size: [*positions, units, units] is [*positions, heads, size, heads, size].
    outer = {name: group.outer for name, group in symmetries.groups.items()}
    order = sorted(symmetries.groups, key=lambda name: len(outer[name]))
    chosen: Chosen = {}
    for component in _components(list(scores)):
        tables = []
        for key in (key for key in scores if set(key) <= component):
            sizes = [symmetries.groups[name].size for name in key]
            values = np.asarray(scores[key], np.float64)
            values = values.reshape(*values.shape[:-2], *sizes, *sizes)
            tables.append(Table(positions_of(symmetries, key), key, values))
        chosen |= solve(tables, [name for name in order if name in component], outer)
    return chosen
