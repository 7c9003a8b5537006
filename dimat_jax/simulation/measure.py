"""What is measured of all agents: distance from consensus, divergence."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dimat_jax.types import Variables


class Diverged(ValueError):
    """The training loss, or a parameter, is no longer finite."""


def consensus_distance(variables: Variables, agents: int | None = None) -> Float[Array, ""]:
    """How far agents are from their mean: √(1/n Σ_i ‖x_i − x̄‖²), over the parameters.

    It depends on the order of each agent's hidden units, as the parameters do.

    Args:
      variables: stacked ``[agents, ...]``, masked lanes after them.
      agents: how many there are; None: all.
    """

    def squares(x):
        x = x[:agents]
        return jnp.sum((x - x.mean(0, keepdims=True)) ** 2) / len(x)

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(variables["params"]))))


def is_finite(variables: Variables) -> Bool[Array, ""]:
    """Whether one agent's parameters, and the sum of their squares, are finite numbers."""
    return jnp.isfinite(sum(jnp.sum(x**2) for x in jax.tree.leaves(variables["params"])))


def units_moved(permutations: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of hidden units that permutations move from their place; None if there are none.

    Args:
      permutations: of several slots, on the host, ``[agents, *outer, units]`` each. Slots that are
        filled up with the agent itself count as not moved.
    """
    arrays = [np.asarray(p) for of_slot in permutations for p in of_slot.values()]
    if not arrays:
        return None
    moved = sum(int((p != np.arange(p.shape[-1])).sum()) for p in arrays)
    return moved / sum(p.size for p in arrays)


def check_finite(
    diverged: Int[np.ndarray, "agents"], finite: Bool[np.ndarray, "agents"], rate: float
) -> None:
    """Raises `Diverged`, which names the first agent, and its step, whose loss went astray.

    The last step of an epoch has no loss after it: it shows in the parameters alone.

    Args:
      diverged: the first step, counted from 0, whose loss was not finite, of each agent; or -1.
      finite: whether its parameters are.
      rate: the learning rate, before schedules.
    """
    smaller = f"the learning rate, {rate:g} before schedules, may be too large"
    if (diverged >= 0).any():
        agent = int(np.argmin(np.where(diverged >= 0, diverged, np.iinfo(np.int32).max)))
        step = int(diverged[agent]) + 1
        first = "the model, its loss or the data give this before any step"
        raise Diverged(
            f"The training loss of agent {agent} was not finite at step {step}: "
            f"{first if step == 1 else smaller} (steps count from 1)."
        )
    if not finite.all():
        raise Diverged(
            f"The parameters of agent {int(finite.argmin())} are not finite after the last step of "
            f"an epoch: {smaller}."
        )
