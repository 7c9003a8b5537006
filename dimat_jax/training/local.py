"""One agent's training step; `dimat_jax.execution` lifts it to all agents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dimat_jax.datasets.data import take
from dimat_jax.execution.forms import Update
from dimat_jax.training.state import AgentState, count_loss
from dimat_jax.types import Key, Prepare, Task, Variables


@functools.partial(
    jax.jit, static_argnames=("agents", "examples", "steps", "batch_size", "all_lanes")
)
def epoch_order(
    key: Key,
    epoch: int | Int[Array, ""],
    agents: int,
    examples: int,
    steps: int,
    batch_size: int,
    lanes: int | Int[Array, ""],
    all_lanes: int | None = None,
) -> Int[Array, "lanes steps batch"]:
    """The order in which every agent goes through its shard in one epoch.

    Args:
      key: the same key and epoch, the same order, whatever the number of devices.
      epoch: counted from the start of the run.
      agents: number of agents.
      examples: number of an agent's examples.
      steps: number of batches; examples beyond them sit this epoch out.
      batch_size: images in a batch.
      lanes: of each device.
      all_lanes: of all devices, where that is more than the agents: masked lanes repeat the last.

    Returns:
      Rows, int32, of the images that lie on the agent's device, where the shard of its lane begins
      at ``lane * examples``.
    """
    keys = jax.random.split(jax.random.fold_in(key, epoch), agents)
    rows = jnp.arange(examples, dtype=jnp.int32)
    order = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
    # Agents 0 and 1 of 40 examples on one device: rows 0 to 39 and 40 to 79 of its images.
    lane = jnp.arange(all_lanes or agents, dtype=jnp.int32)
    order = order[jnp.minimum(lane, agents - 1), : steps * batch_size]
    order = order + examples * (lane % lanes)[:, None]
    return order.reshape(-1, steps, batch_size)


def train_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    prepare: Prepare,
    proximal: float = 0.0,
) -> Update:
    """One agent's training step.

    Args:
      task: what it learns.
      optimizer: gives the direction (`dimat_jax.training.optimizers.OPTIMIZERS`).
      schedule: step → learning rate.
      prepare: ``(key, batch) -> batch``, from examples as stored: augments them, for one.
      proximal: μ of FedProx (Li et al. 2020, arXiv 1812.06127): μ (x − anchor) is added to the
        gradient of an agent that has an anchor.

    Returns:
      An update whose carry is an `AgentState`, whose operand is the agent's `epoch_order`, and
      whose resident arrays are the examples ``[rows, ...]`` on the agent's device.
    """

    def update(state: AgentState, order: Int[Array, "steps batch"], resident: Any) -> AgentState:
        params = state.variables["params"]
        gradients, loss, variables = batch_gradient(
            task, prepare, state.variables, state.key, state.step, order, resident
        )
        if state.anchor is not None:
            gradients = jax.tree.map(
                lambda g, x, a: g + proximal * (x - a), gradients, params, state.anchor
            )
        direction, opt_state = optimizer.update(gradients, state.optimizer, params)
        rate = state.rate_scale * schedule(state.step)
        params = jax.tree.map(
            lambda p, d: (p - jnp.asarray(rate, p.dtype) * d).astype(p.dtype), params, direction
        )
        variables = {**variables, "params": params}
        total, diverged = count_loss(state.loss, state.diverged, loss, state.step)
        return state._replace(
            variables=variables,
            optimizer=opt_state,
            step=state.step + 1,
            loss=total,
            diverged=diverged,
        )

    return update


def batch_gradient(
    task: Task,
    prepare: Prepare,
    variables: Variables,
    key: Key,
    step: Int[Array, ""],
    order: Int[Array, "steps batch"],
    resident: Any,
) -> tuple[Any, Float[Array, ""], Variables]:
    """The gradient of the loss on one step's batch.

    Args:
      task: gives the losses.
      prepare: ``(key, batch) -> batch``, from examples as stored.
      variables: where the gradient is taken.
      key: the agent's.
      step: since the start of the run. Batch and augmentation depend on key and step alone, so that
        all methods see the same.
      order: the agent's `epoch_order`.
      resident: examples on the agent's device.

    Returns:
      The gradient, the loss, and the variables with updated running statistics.
    """
    # `step` counts from the start of the run; each epoch has an order of its own.
    rows = order[step % order.shape[0]]
    augment_key, model_key = jax.random.split(jax.random.fold_in(key, step))
    batch = prepare(augment_key, take(resident, rows))

    def loss_of(params):
        at = {**variables, "params": params}
        losses, _, changed = task.loss(at, batch, key=model_key, train=True)
        return losses.mean(), changed

    (loss, changed), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    return gradient, loss, changed
