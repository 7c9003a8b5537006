"""What an agent carries from step to step, and what it starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dimat_jax.training.optimizers import own_hyperparams
from dimat_jax.types import Batch, Key, Task, Variables

STANDARD = (jnp.float32, jnp.float64)
"""Floats that become JAX's default type; bfloat16 and others stay what they are."""


class AgentState(NamedTuple):
    """All that an agent carries from step to step; stacked with a leading ``agents`` axis.

    Attributes:
      variables: the model's variables; nothing else holds its parameters.
      optimizer: the local optimizer's state.
      key: drives augmentation and dropout. shape=()
      step: steps since the start of the run, int32. shape=()
      rate_scale: multiplies the learning rate. shape=()
      loss: sum of the training losses since it was last reset. shape=()
      diverged: the first step whose loss was not finite, or -1; int32. shape=()
      anchor: parameters to which training is pulled back; None: to none.
    """

    variables: Variables
    optimizer: Any
    key: Key
    step: Int[Array, "*agents"]
    rate_scale: Float[Array, "*agents"]
    loss: Float[Array, "*agents"]
    diverged: Int[Array, "*agents"]
    anchor: Any = None


def init_population(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Key,
    agents: int,
    batch: Batch,
    same: bool = False,
) -> AgentState:
    """Makes every agent's initial state.

    Compute it on one device: it is then the same bit for bit wherever it is used after.

    Args:
      task: what all agents learn.
      optimizer: the local optimizer.
      key: the same key, the same population.
      agents: number of agents.
      batch: shapes and dtypes of a batch as the task takes it.
      same: whether all agents start from the same weights.

    Returns:
      States stacked ``[agents, ...]``, parameters in JAX's default float type.
    """
    init_key, step_key = jax.random.split(key)
    dtype = jnp.result_type(float)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)

    def init_one(of_agent: tuple[Key, Key, Int[Array, ""]]) -> AgentState:
        init_key, step_key, agent = of_agent
        variables = jax.tree.map(
            lambda x: x.astype(dtype) if x.dtype in STANDARD else x,
            task.init(init_key, example),
        )
        return AgentState(
            variables=variables,
            optimizer=own_hyperparams(optimizer.init(variables["params"]), agent, agents),
            key=step_key,
            step=jnp.zeros((), jnp.int32),
            rate_scale=jnp.ones((), dtype),
            loss=jnp.zeros((), dtype),
            diverged=jnp.full((), -1, jnp.int32),
        )

    init_keys = jax.random.split(init_key, agents)
    if same:
        init_keys = jnp.broadcast_to(init_keys[0], (agents,))
    # A loop over agents compiles in half the time of a vmap.
    return jax.lax.map(
        init_one, (init_keys, jax.random.split(step_key, agents), jnp.arange(agents))
    )


def count_loss(
    total: Float[Array, ""], diverged: Int[Array, ""], loss: Float[Array, ""], step: Int[Array, ""]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Adds a step's loss to the sum, and notes the step if it is the first not to be finite."""
    fine = jnp.isfinite(loss) | (diverged >= 0)
    return total + loss.astype(total.dtype), jnp.where(fine, diverged, step)
