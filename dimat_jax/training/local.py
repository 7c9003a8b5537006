"""One agent's training step and evaluation; `dimat_jax.execution` lifts them to all agents."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from dimat_jax.execution.population import Update
from dimat_jax.types import Key, Model, Prepare, Variables

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "adam": optax.scale_by_adam,
}
"""Directions; the step multiplies them by the learning rate of the run's own step count, so that
a schedule goes on where an optimizer starts afresh after a merge."""


class AgentState(NamedTuple):
    """All that an agent carries from step to step; stacked with a leading ``agents`` axis.

    Attributes:
      variables: the model's variables.
      optimizer: the optimizer's state.
      key: drives augmentation and dropout. shape=()
      step: steps since the start of the run, int32. shape=()
      rate_scale: multiplies the learning rate. shape=()
      loss: sum of the training losses since it was last reset. shape=()
      diverged: the first step whose loss was not finite, or -1; int32. shape=()
    """

    variables: Variables
    optimizer: Any
    key: Key
    step: Int[Array, "*agents"]
    rate_scale: Float[Array, "*agents"]
    loss: Float[Array, "*agents"]
    diverged: Int[Array, "*agents"]


def init_population(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Key,
    agents: int,
    image_shape: tuple[int, ...],
    same: bool = False,
) -> AgentState:
    """Makes every agent's initial state.

    Compute it on one device: it is then the same bit for bit wherever it is used after.

    Args:
      model: the model of all agents.
      optimizer: the local optimizer.
      key: the same key, the same population.
      agents: number of agents.
      image_shape: ``(height, width, channels)``.
      same: whether all agents start from the same weights.

    Returns:
      States stacked ``[agents, ...]``, parameters in JAX's default float type.
    """
    init_key, step_key = jax.random.split(key)
    dtype = jnp.result_type(float)
    image = jnp.zeros((1, *image_shape), dtype)

    def init_one(keys: tuple[Key, Key]) -> AgentState:
        init_key, step_key = keys
        variables = jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            model.init(init_key, image),
        )
        return AgentState(
            variables=variables,
            optimizer=optimizer.init(variables["params"]),
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
    return jax.lax.map(init_one, (init_keys, jax.random.split(step_key, agents)))


@functools.partial(jax.jit, static_argnames=("agents", "examples", "steps", "batch_size"))
def epoch_order(
    key: Key,
    epoch: int | Int[Array, ""],
    agents: int,
    examples: int,
    steps: int,
    batch_size: int,
    lanes: int | Int[Array, ""],
) -> Int[Array, "agents steps batch"]:
    """The order in which every agent goes through its shard in one epoch.

    Args:
      key: the same key and epoch, the same order, whatever the number of devices.
      epoch: counted from the start of the run.
      agents: number of agents.
      examples: number of an agent's examples.
      steps: number of batches; examples beyond them sit this epoch out.
      batch_size: images in a batch.
      lanes: agents on each device.

    Returns:
      Rows, int32, of the images that lie on the agent's device, where the shard of its lane begins
      at ``lane * examples``.
    """
    keys = jax.random.split(jax.random.fold_in(key, epoch), agents)
    rows = jnp.arange(examples, dtype=jnp.int32)
    order = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
    lane = jnp.arange(agents, dtype=jnp.int32) % lanes
    order = order[:, : steps * batch_size] + examples * lane[:, None]
    return order.reshape(agents, steps, batch_size)


def train_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    prepare: Prepare,
) -> Update:
    """One agent's training step.

    Args:
      model: its model.
      optimizer: gives the direction (`OPTIMIZERS`).
      schedule: step → learning rate.
      prepare: ``(key, images uint8) -> x``: augments and normalises.

    Returns:
      An update whose carry is an `AgentState`, whose operand is the agent's `epoch_order`, and
      whose resident arrays are the images ``[rows, height, width, channels]`` and labels
      ``[rows]`` on the agent's device.
    """

    def update(state: AgentState, order: Int[Array, "steps batch"], resident: Any) -> AgentState:
        params = state.variables["params"]
        gradients, loss, variables = batch_gradient(model, prepare, state, params, order, resident)
        direction, opt_state = optimizer.update(gradients, state.optimizer, params)
        rate = state.rate_scale * schedule(state.step)
        params = jax.tree.map(lambda p, d: p - jnp.asarray(rate, p.dtype) * d, params, direction)
        variables = {**variables, "params": params}
        state = state._replace(variables=variables, optimizer=opt_state)
        return count_loss(state, loss)._replace(step=state.step + 1)

    return update


def batch_gradient(
    model: Model,
    prepare: Prepare,
    state: AgentState,
    params: Any,
    order: Int[Array, "steps batch"],
    resident: Any,
) -> tuple[Any, Float[Array, ""], Variables]:
    """The gradient of the loss on an agent's next batch, at any parameters.

    The batch, its augmentation and its dropout depend on the agent and its step alone, so that all
    methods see the same.

    Returns:
      The gradient, the loss, and the variables with updated running statistics.
    """
    images, labels = resident
    rows = order[state.step % order.shape[0]]
    augment_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    x, y = prepare(augment_key, images[rows]), labels[rows]

    def loss_of(params):
        variables = {**state.variables, "params": params}
        logits, variables = model.apply(variables, x, train=True, key=model_key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), variables

    (loss, variables), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return gradient, loss, variables


def count_loss(state: AgentState, loss: Float[Array, ""]) -> AgentState:
    """Adds a step's loss to the sum, and notes the step if it is the first not to be finite."""
    fine = jnp.isfinite(loss) | (state.diverged >= 0)
    return state._replace(
        loss=state.loss + loss.astype(state.loss.dtype),
        diverged=jnp.where(fine, state.diverged, state.step),
    )


class Score(NamedTuple):
    """What evaluation adds up; stacked with a leading ``agents`` axis.

    Attributes:
      correct: number of test images classified correctly, int32. shape=()
      loss: sum of their losses. shape=()
      batch: the next batch, int32. shape=()
    """

    correct: Int[Array, "*agents"]
    loss: Float[Array, "*agents"]
    batch: Int[Array, "*agents"]


def zero_score(agents: int) -> Score:
    """The score of every agent before any image, in buffers of its own: it will be donated."""
    dtypes = jnp.int32, jnp.result_type(float), jnp.int32
    return Score(*(jnp.zeros(agents, dtype) for dtype in dtypes))


def test_batches(
    images: UInt8[np.ndarray, "examples height width channels"],
    labels: Int[np.ndarray, "examples"],
    batch_size: int,
) -> tuple[UInt8[np.ndarray, "batches batch ..."], Int[np.ndarray, "batches batch"]]:
    """Cuts test images into batches; the last is filled up with the label -1, "none"."""
    batches = -(-len(images) // batch_size)
    missing = batches * batch_size - len(images)
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    labels = np.concatenate([labels, np.full(missing, -1)]).astype(np.int32)
    shape = batches, batch_size
    return images.reshape(*shape, *images.shape[1:]), labels.reshape(shape)


def evaluate_update(model: Model, normalise: Prepare) -> Update:
    """Adds one batch of test images to one agent's `Score`.

    The operands are its variables; the resident arrays are those of `test_batches`.
    """

    def update(score: Score, variables: Variables, resident: Any) -> Score:
        images, labels = resident
        y = labels[score.batch]
        logits, _ = model.apply(variables, normalise(images[score.batch]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return Score(
            correct=score.correct + (logits.argmax(-1) == y).sum(dtype=jnp.int32),
            loss=score.loss + jnp.where(y >= 0, losses, 0).sum().astype(score.loss.dtype),
            batch=score.batch + 1,
        )

    return update
