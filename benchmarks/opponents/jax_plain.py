"""Training in JAX as one would write it at first, in the forms that come to mind."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dimat_jax as dj
from benchmarks.work import IMAGE, NUM_CLASSES, Work, noise
from dimat_jax.datasets.augment import flip_and_crop
from dimat_jax.types import Key, Model


class State(NamedTuple):
    """What a training step replaces: of one agent, or stacked ``[agents, ...]``."""

    variables: Any
    optimizer: Any
    key: Key


Step = Callable[[State, Any, Any], State]
"""``(state, images uint8 [batch, ...], labels [batch]) -> state``."""


def make_step(model: Model, optimizer: optax.GradientTransformation) -> Step:
    """One agent's step: flip and crop, gradient, optimizer."""

    def step(state: State, images: Any, labels: Any) -> State:
        key, augment_key = jax.random.split(state.key)
        x = (flip_and_crop(augment_key, images).astype(jnp.float32) - 127.5) / 64

        def loss_of(params: Any) -> tuple[Any, Any]:
            logits, new = model.apply({**state.variables, "params": params}, x, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new

        params = state.variables["params"]
        gradient, variables = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return State({**variables, "params": params}, opt_state, key)

    return step


def make_initial(model: Model, optimizer: optax.GradientTransformation) -> Callable[[Key], State]:
    """Makes one agent's initial state."""

    def initial(key: Key) -> State:
        variables = model.init(key, jnp.zeros((1, *IMAGE)))
        return State(variables, optimizer.init(variables["params"]), key)

    return initial


def vmapped(step: Step) -> Step:
    """All agents at once: convolutions over their kernels become grouped ones."""
    return jax.vmap(step)


def scanned(step: Step) -> Step:
    """One agent after the other, in a loop that XLA runs."""

    def lifted(states: State, images: Any, labels: Any) -> State:
        return jax.lax.map(lambda operands: step(*operands), (states, images, labels))

    return lifted


def unrolled(step: Step) -> Step:
    """One agent after the other, written out in one program."""

    def lifted(states: State, images: Any, labels: Any) -> State:
        new = [step(*pick((states, images, labels), agent)) for agent in range(len(labels))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *new)

    return lifted


def pick(tree: Any, agent: int) -> Any:
    """One agent's part of stacked arrays."""
    return jax.tree.map(lambda x: x[agent], tree)


def multiplied(step: Step) -> Step:
    """All agents at once, each convolution a matrix product of image patches: no grouped ones."""

    def with_products(state: State, images: Any, labels: Any) -> State:
        with nn.intercept_methods(convolve_by_product):
            return step(state, images, labels)

    return jax.vmap(with_products)


def convolve_by_product(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Takes the place of a Linen convolution (`flax.linen.intercept_methods`)."""
    module = context.module
    if not isinstance(module, nn.Conv) or context.method_name != "__call__":
        return call(*args, **kwargs)
    (x,) = args
    params = module.variables["params"]
    height, width, inputs, outputs = params["kernel"].shape
    p, stride = cast(int, module.padding), cast(int, module.strides)  # as ours have them
    x = jnp.pad(x, [(0, 0), (p, p), (p, p), (0, 0)])
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    shifts = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(height)
        for j in range(width)
    ]
    kernel = params["kernel"].reshape(height * width * inputs, outputs)
    return jnp.concatenate(shifts, -1) @ kernel + params.get("bias", 0.0)


FORMS: dict[str, Callable[[Step], Step]] = {
    "vmap": vmapped,
    "scan": scanned,
    "unrolled": unrolled,
    "matmul": multiplied,
}
"""Name → how one agent's step is lifted to all in one program."""


def epochs(work: Work, form: str) -> Callable[[], None]:
    """A block that trains all agents for an epoch and waits for it.

    Args:
      work: the agents, their model and their batches.
      form: one of `FORMS`, or ``independent``: a compiled step of one agent, called for each.
    """
    model = dj.models.make(work.model, num_classes=NUM_CLASSES, width=work.width)
    optimizer = optax.sgd(work.learning_rate, momentum=0.9)
    step, initial = make_step(model, optimizer), make_initial(model, optimizer)
    keys = jax.random.split(jax.random.key(0), work.agents)
    images, labels = (
        x.reshape(work.agents, work.steps, work.batch, *x.shape[1:]) for x in noise(work.images)
    )
    if form == "independent":
        return independent(work, step, list(map(jax.jit(initial), keys)), images, labels)
    lifted = jax.jit(FORMS[form](step), donate_argnums=0)
    batches = [jax.device_put((images[:, s], labels[:, s])) for s in range(work.steps)]
    states = jax.jit(lambda keys: jax.lax.map(initial, keys))(keys)

    def block() -> None:
        nonlocal states
        for batch in batches:
            states = lifted(states, *batch)
        jax.block_until_ready(states)

    return block


def independent(
    work: Work, step: Step, states: list[State], images: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
    """A block that trains one agent after the other, each by calls of one compiled step."""
    compiled = jax.jit(step, donate_argnums=0)
    batches = [
        jax.device_put(list(zip(*pair, strict=True))) for pair in zip(images, labels, strict=True)
    ]

    def block() -> None:
        for agent, mine in enumerate(batches):
            for batch in mine:
                states[agent] = compiled(states[agent], *batch)
        jax.block_until_ready(states)

    return block
