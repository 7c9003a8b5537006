"""One agent's training step; `dimat_jax.execution` lifts it to all agents."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dimat_jax.datasets.data import take
from dimat_jax.execution.forms import Update
from dimat_jax.training.state import AgentState, count_loss
from dimat_jax.types import Batch, Key, Prepare, Task, Variables


class Micro(NamedTuple):
    """How an agent's batch is gone through: so many examples at a time, gradients averaged.

    Attributes:
      size: examples at a time; divides the batch.
      unrolled: whether Python loops over them; else they are scanned.
    """

    size: int
    unrolled: bool


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
    micro: Micro | None = None,
) -> Update:
    """One agent's training step.

    Args:
      task: what it learns.
      optimizer: gives the direction (`dimat_jax.training.optimizers.OPTIMIZERS`).
      schedule: step → learning rate.
      prepare: ``(key, batch) -> batch``, from examples as stored: augments them, for one.
      proximal: μ of FedProx (Li et al. 2020, arXiv 1812.06127): μ (x − anchor) is added to the
        gradient of an agent that has an anchor.
      micro: how a batch is gone through; None: as a whole.

    Returns:
      An update whose carry is an `AgentState`, whose operand is the agent's `epoch_order`, and
      whose resident arrays are the examples ``[rows, ...]`` on the agent's device.
    """

    def update(state: AgentState, order: Int[Array, "steps batch"], resident: Any) -> AgentState:
        params = state.variables["params"]
        gradients, loss, statistics = batch_gradient(
            task, prepare, state.variables, state.key, state.step, order, resident, micro
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
        variables = {**statistics, "params": params}
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
    micro: Micro | None = None,
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
      micro: how the batch is gone through; None: as a whole.

    Returns:
      The gradient, the loss, and the variables that are no parameters: updated running statistics.
    """
    # `step` counts from the start of the run; each epoch has an order of its own.
    rows = order[step % order.shape[0]]
    augment_key, model_key = jax.random.split(jax.random.fold_in(key, step))
    # The whole batch, before it is divided: an example is augmented as it always is.
    batch = prepare(augment_key, take(resident, rows))

    def gradient_of(batch: Batch, key: Key) -> tuple[Any, Float[Array, ""], Variables]:
        def loss_of(params):
            at = {**variables, "params": params}
            losses, _, changed = task.loss(at, batch, key=key, train=True)
            return losses.mean(), {name: changed[name] for name in changed if name != "params"}

        found = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        (loss, statistics), gradient = found
        return gradient, loss, statistics

    if micro is None or micro.size == len(rows):
        return gradient_of(batch, model_key)
    return mean_of_parts(gradient_of, variables, batch, model_key, micro)


def mean_of_parts(
    gradient_of: Callable[[Batch, Key], tuple[Any, Float[Array, ""], Variables]],
    variables: Variables,
    batch: Batch,
    key: Key,
    micro: Micro,
) -> tuple[Any, Float[Array, ""], Variables]:
    """What a batch gives, in the mean over its parts, of whose activations one is held at a time.

    All parts are of one size, so the mean of their mean losses is the batch's, and the gradient
    likewise. Running statistics are each moved from where they were, and averaged; what is no
    float, a counter for one, is moved once.

    Args:
      gradient_of: ``(batch, key) -> (gradient, loss, statistics)``.
      variables: where the gradient is taken.
      batch: all of it.
      key: the model's: each part has one of its own, for dropout.
      micro: how it is gone through.
    """
    number = len(jax.tree.leaves(batch)[0]) // micro.size
    parts = jax.tree.map(lambda x: x.reshape(number, micro.size, *x.shape[1:]), batch)
    items = parts, jax.random.split(key, number)

    # Sums of what is narrower than float32 would round.
    def nothing(x: Array) -> Array:
        floats = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) if floats else x

    def add(total: Any, item: Any) -> tuple[Any, None]:
        def one(t: Array, x: Array) -> Array:
            return t + x.astype(t.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x

        return jax.tree.map(one, total, gradient_of(*item)), None

    params = variables["params"]
    statistics = {name: x for name, x in variables.items() if name != "params"}
    total = jax.tree.map(nothing, (params, jnp.zeros(()), statistics))
    if micro.unrolled:
        for i in range(number):
            total, _ = add(total, part_after(total[0], items, i))
    else:
        total, _ = jax.lax.scan(add, total, items)

    def mean(t: Array, x: Array) -> Array:
        return (t / number).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else t

    return jax.tree.map(mean, total, (params, jnp.zeros(()), statistics))


def part_after(gradient: Any, parts: Any, index: int) -> Any:
    """The part of a batch with this index, for which XLA waits until there is this gradient.

    Else it would compute several parts at the same time, and hold the activations of all; XLA's CPU
    backend drops `jax.lax.optimization_barrier`. Of a gradient that is not a number another part is
    taken: it stays so whatever is added to it.
    """
    some = sum(x.ravel()[:1].sum() for x in jax.tree.leaves(gradient))
    row = index + jnp.isnan(some).astype(jnp.int32)
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), parts)
