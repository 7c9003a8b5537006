"""The permuted weighted average of networks: the one arithmetic of every merge."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float

from dimat_jax.execution.exchange import Route, follow, product
from dimat_jax.registry import attempt, expect, shown
from dimat_jax.symmetries import Symmetries, check_symmetries, permute
from dimat_jax.symmetries.networks import check_leaves, dtype_of, is_averaged, like, wide
from dimat_jax.types import Permutations, Variables


def add_weighted(total: Any, weight: Float[Array, ""], variables: Any) -> Any:
    """``total + weight * variables``, or ``weight * variables`` where there is no total yet.

    The total is in float32 or complex64 at least, see `narrow`. Leaves that are neither real nor
    complex numbers stay those of the total, or of the first variables.
    """

    def multiply(v):
        if not is_averaged(v):
            return v
        dtype = canonicalize_dtype(wide(dtype_of(v)))
        return weight.astype(dtype) * jnp.asarray(v).astype(dtype)

    def add(t, v):
        return t + multiply(v) if is_averaged(v) else t

    return (
        jax.tree.map(multiply, variables) if total is None else jax.tree.map(add, total, variables)
    )


def add_neighbors(
    total: Any,
    weights: Float[Array, "lanes slots"],
    route: Route,
    variables: Any,
) -> Any:
    """``total + Σ_s weights[:, s] x[sources[:, s]]`` for the lanes of a device, slot by slot.

    All of it in one pass over memory, with the sums of `add_weighted`.

    Args:
      total: of slots before these; None: the first of the weights is that of the lanes' own.
      weights: of the route's slots, after that of the own where there is no total yet.
      route: of the device, see `dimat_jax.execution.exchange.follow`.
      variables: of its lanes, ``[lanes, ...]``.
    """
    add = jax.vmap(add_weighted)
    found = follow(route, variables)
    if total is None:
        found = [variables, *found]
    for slot, of_slot in enumerate(found):
        total = add(total, weights[:, slot], of_slot)
    return total


def average_all(devices: int, matrix: Float[Array, "all all"], variables: Any) -> Any:
    """Σ_j w_ij x_j over all agents for the lanes of a device, as matrix products.

    Args:
      devices: how many there are.
      matrix: w, of all lanes.
      variables: of the device's lanes, ``[lanes, ...]``.

    Returns:
      As `add_weighted`.
    """

    def average(v: Array) -> Array:
        if not is_averaged(v):
            return v
        dtype = canonicalize_dtype(wide(dtype_of(v)))
        return product(matrix.astype(dtype), devices, v.astype(dtype))

    return jax.tree.map(average, variables)


def narrow(total: Any, variables: Any) -> Any:
    """What `add_weighted` added up, in the variables' dtypes, as JAX has them; Python's stay."""

    def own(t, v):
        if not is_averaged(v):
            return t
        if isinstance(v, (float, complex)) and not isinstance(t, jax.core.Tracer):
            return type(v)(t)
        return t.astype(canonicalize_dtype(dtype_of(v)))

    return jax.tree.map(own, total, variables)


def merge(
    symmetries: Symmetries,
    variables_list: Sequence[Any],
    weights: Sequence[float] | Float[Array | np.ndarray, " networks"],
    permutations_list: Sequence[Mapping[str, Any]],
) -> Any:
    """The permuted weighted average Σ_k w_k P_k x_k of several networks (DIMAT, algorithm 1).

    Running statistics are averaged with the rest; a run of the simulator recomputes them for the
    merged network. It is added up in float32 or complex64 at least.

    Args:
      symmetries: the model's permutation groups.
      variables_list: the networks' variables, pytrees with the same leaves.
      weights: one per network.
      permutations_list: one dict a network, group name → integer ``[*outer, size]``; a group that
        is absent stays as it is.

    Returns:
      Variables of the first network's structure and dtypes. Leaves that are neither real nor
      complex numbers are the first network's.

    Raises:
      ValueError: if the lists are empty or not of one length, for networks of different leaves,
        and what `permute` raises.
    """
    check_symmetries(symmetries)
    for name, values in (
        ("variables_list", variables_list),
        ("permutations_list", permutations_list),
    ):
        expect(name, values, list | tuple, "a list")
    given, weights = weights, attempt("weights must be numbers", jnp.asarray, weights)
    known = not isinstance(weights, jax.core.Tracer)
    real = (
        weights.ndim == 1
        and jnp.issubdtype(weights.dtype, jnp.number)
        and not jnp.iscomplexobj(weights)
    )
    if not real or (known and not np.isfinite(np.asarray(weights)).all()):
        raise ValueError(f"weights must be a finite number for each network, not {shown(given)}.")
    lengths = len(variables_list), len(weights), len(permutations_list)
    if len(set(lengths)) != 1 or not variables_list:
        raise ValueError(
            "merge needs as many networks as weights and permutations, at least one, "
            f"not {lengths[0]}, {lengths[1]} and {lengths[2]}."
        )
    first = variables_list[0]
    check_leaves(symmetries.shapes, first, "network 0")
    alike = [
        like(first, other, ("network 0", f"network {k}")) for k, other in enumerate(variables_list)
    ]
    total = None
    for permutations, weight, variables in zip(permutations_list, weights, alike, strict=True):
        aligned = permute(symmetries, permutations, variables)
        total = add_weighted(total, jnp.asarray(weight), aligned)
    assert total is not None
    return narrow(total, first)


def permute_state(
    symmetries: Symmetries, permutations: Permutations, variables: Variables, state: Any
) -> Any:
    """Reorders all that belongs to the hidden units of a network which is reordered.

    Args:
      symmetries: the model's permutation groups.
      permutations: group name → integer ``[*outer, size]``.
      variables: of the network, before.
      state: any pytree, as an optimizer's state. Every part of it that has the structure and the
        shapes of ``variables["params"]`` (with further axes before them, or none) is reordered as
        these are; the rest stays as it is.
    """
    params = variables["params"]
    structure, shapes = jax.tree.structure(params), [x.shape for x in jax.tree.leaves(params)]

    def axes_before(part: Any) -> int | None:
        """How many axes stand before those of the parameters; None if it is nothing like them."""
        if jax.tree.structure(part) != structure:
            return None
        found = [np.shape(x) for x in jax.tree.leaves(part)]
        before = len(found[0]) - len(shapes[0]) if found else 0
        same = before >= 0 and [shape[before:] for shape in found] == shapes
        return before if same else None

    def move(part: Any) -> Any:
        before = axes_before(part)
        if before is None:
            return part

        def reorder(params: Any) -> Any:
            return permute(symmetries, permutations, {**variables, "params": params})["params"]

        # Further axes before the parameters': a relay's messages are [slots, ...] of each agent.
        for _ in range(before):
            reorder = jax.vmap(reorder)
        return reorder(part)

    return jax.tree.map(move, state, is_leaf=lambda part: axes_before(part) is not None)
