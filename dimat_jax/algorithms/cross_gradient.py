"""Cross-gradient aggregation: no agent steps against its neighbours (Esfandiari et al. 2021).

Every agent sends its model to its neighbours and gets back their gradients at it; it then takes the
step nearest to its own gradient that, to first order, raises no neighbour's loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dimat_jax.algorithms.base import (
    Algorithm,
    Exchange,
    Gossip,
    Message,
    Params,
    descend,
    doubly_stochastic,
    mix,
    neighbors,
)
from dimat_jax.algorithms.gossip import MomentumState, at_rest
from dimat_jax.topology import Topology


def mutual(topology: Topology) -> Topology:
    """The given graph.

    Raises:
      ValueError: unless it is doubly stochastic, and agents hear from those who hear from them.
    """
    doubly_stochastic(topology)
    for round, matrix in enumerate(topology.mixing_matrices):
        one_way = np.argwhere((matrix != 0) & (matrix.T == 0))
        if len(one_way):
            i, j = one_way[0]
            raise ValueError(
                f"Cross-gradients travel both ways, but in {topology.name!r} agent {i} hears from "
                f"agent {j} in round {round}, and {j} not from {i}."
            )
    return topology


def cross_gradient_aggregation(momentum: float = 0.9) -> Gossip:
    """v_i ← β v_i + g̃_i; x_i ← Σ_j π_ij x_j − α v_i.

    g̃_i is the point nearest to g_i with ⟨g̃_i, g_ij⟩ ≥ 0 for the gradients g_ij = ∇f_j(x_i) of all
    neighbours j; each gets two messages: a model, and a gradient back. CGA (Esfandiari et al. 2021,
    arXiv 2103.02051, algorithm 1).

    Args:
      momentum: β.
    """

    def points(params, state, exchange):
        return tuple(neighbors(exchange, params))

    def update(params, gradients, state, exchange, rate):
        agreed = jax.vmap(agree)(returned(gradients, exchange), exchange.slot_mask)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, state.velocity, agreed)
        params = descend(mix(exchange, params), rate, velocity)
        return params, MomentumState(velocity)

    return Gossip(update, mutual, Message(messages=2), at_rest, points, momentum)


def returned(gradients: tuple[Params, ...], exchange: Exchange) -> Params:
    """The gradients at each agent's own parameters, ``[agents, slots, ...]``.

    Args:
      gradients: slot by slot, agents' gradients at the parameters of their neighbour there.
      exchange: who hears from whom.

    Returns:
      In slot 0 the agent's own gradient, in the others that of the neighbour there.
    """

    # leaves[s][j] is agent j's gradient at the parameters of its neighbour in slot s. Agent i is in
    # slot reverse_slots[i, t] of the neighbour that it has in slot t itself.
    def send_back(*leaves: Array) -> Array:
        return jnp.stack(leaves)[exchange.reverse_slots, exchange.sources]

    return jax.tree.map(send_back, *gradients)


def agree(gradients: Params, slot_mask: Float[Array, "slots"]) -> Params:
    """The point nearest to an agent's gradient whose inner product with no neighbour's is negative.

    It is g_0 + Σ_s u_s g_s for the u ≥ 0 that make it shortest. Constraints of gradients that are 0
    are void. (Of its own gradient the constraint always holds.)

    Args:
      gradients: one agent's, ``[slots, ...]``: slot 0 its own, the others its neighbours'.
      slot_mask: whether a slot holds a neighbour; not so for slot 0.

    Returns:
      The point, without the axis ``slots``.
    """
    # Minimise ½‖g_0 + Σ u_s g_s‖²: a quadratic in as many unknowns as slots, whose matrix is that
    # of inner products. Divided by the lengths its diagonal is 1, whatever the gradients' scales.
    gram = inner_products(gradients)
    lengths = jnp.sqrt(jnp.diagonal(gram))
    per_length = jnp.where(lengths > 0, 1 / lengths, 0)
    cosines = gram * per_length[:, None] * per_length[None]
    shares = nonnegative_minimum(cosines, cosines[0], (slot_mask > 0) & (lengths > 0))
    weights = (shares * per_length * lengths[0]).at[0].set(1)
    return jax.tree.map(
        lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1, precision="highest"), gradients
    )


def inner_products(tree: Params) -> Float[Array, "slots slots"]:
    """All inner products of pytrees stacked ``[slots, ...]``, in float32 at least."""

    def of_leaf(x: Array) -> Array:
        flat = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.matmul(flat, flat.T, precision="highest")

    return jax.tree.reduce(jnp.add, jax.tree.map(of_leaf, tree))


class ActiveSet(NamedTuple):
    """Where the method of Lawson and Hanson stands."""

    solution: Float[Array, "unknowns"]
    free: Bool[Array, "unknowns"]  # that may be above 0
    eligible: Bool[Array, "unknowns"]  # that may become free


def nonnegative_minimum(
    matrix: Float[Array, "unknowns unknowns"],
    slope: Float[Array, "unknowns"],
    eligible: Bool[Array, "unknowns"],
) -> Float[Array, "unknowns"]:
    """The u ≥ 0 that makes ½ uᵀ K u + uᵀ b smallest, by the active-set method for few unknowns.

    Lawson & Hanson 1974, "Solving least squares problems", algorithm 23.10, on the normal
    equations: one linear system a step, one or two steps for each unknown above 0, and exact at
    the end. Three steps for each unknown are taken.

    Args:
      matrix: K, positive semidefinite with diagonal 1.
      slope: b.
      eligible: which unknowns may be above 0.
    """
    size, tolerance = len(slope), 100 * float(jnp.finfo(matrix.dtype).eps)
    # Rounding can leave K indefinite where gradients are alike.
    matrix = matrix + tolerance * jnp.eye(size, dtype=matrix.dtype)

    def step(state: ActiveSet) -> ActiveSet:
        u, free = state.solution, state.free
        # The minimum over the free unknowns alone may lie outside u ≥ 0: go towards it as far as
        # the first unknown that reaches 0, which is dropped.
        target = solve_free(matrix, slope, free)
        blocked = free & (target <= 0)
        shares = jnp.where(blocked, u / jnp.where(u > target, u - target, 1), 1)
        share = jnp.minimum(shares.min(), 1)
        dropped = blocked & (shares <= share)
        new = jnp.where(free & ~dropped, u + share * (target - u), 0)
        # Where the minimum was reached, the unknown along which the function falls fastest enters.
        descent = jnp.where(state.eligible & ~free, -(matrix @ new + slope), 0)
        best, reached = descent.argmax(), ~blocked.any()
        entering = (jnp.arange(size) == best) & reached & (descent[best] > tolerance)
        # One that leaves as soon as it has entered, by rounding only, would enter again for ever.
        eligible = state.eligible & ~(dropped & (u <= 0))
        return ActiveSet(new, (free & ~dropped) | entering, eligible)

    begin = ActiveSet(jnp.zeros_like(slope), jnp.zeros(size, bool), eligible)
    # As many steps for every agent: at the end they change nothing, and devices stay together.
    return jax.lax.fori_loop(0, 3 * size, lambda _, state: step(state), begin).solution


def solve_free(
    matrix: Float[Array, "unknowns unknowns"],
    slope: Float[Array, "unknowns"],
    free: Bool[Array, "unknowns"],
) -> Float[Array, "unknowns"]:
    """The u with K u = −b among the free unknowns, and 0 elsewhere."""
    block = jnp.where(free[:, None] & free[None], matrix, jnp.eye(len(slope), dtype=matrix.dtype))
    return jax.scipy.linalg.solve(block, jnp.where(free, -slope, 0), assume_a="pos")


cga = Algorithm(
    label="CGA",
    update="v_i ← β v_i + g̃_i; x_i ← Σ_j π_ij x_j − α v_i; "
    "g̃_i: nearest to g_i with ⟨g̃_i, ∇f_j(x_i)⟩ ≥ 0 for all neighbours j",
    source="arXiv 2103.02051, algorithm 1",
    gossip=cross_gradient_aggregation(),
)
