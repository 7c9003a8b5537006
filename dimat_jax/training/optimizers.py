"""The local optimizers, and the learning rate over a run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

DECAY_PER_EPOCH = 0.981
"""What the learning rate is multiplied by in each epoch of the rounds in the published baselines
(arXiv 2404.08079)."""

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,
}
"""Directions; the step multiplies them by the learning rate of the run's own step count, so that
a schedule goes on where an optimizer starts afresh after a merge."""


def make_optimizer(
    name: str, weight_decay: float = 0.0, clip: float | None = None
) -> optax.GradientTransformation:
    """Gradient → direction in which an agent steps.

    Args:
      name: one of `OPTIMIZERS`.
      weight_decay: times the parameters, added to the gradient; of ``adamw`` to the direction.
      clip: largest norm of the gradient.
    """
    parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    direction = [OPTIMIZERS[name]()]
    parts += [*direction, *decay] if name == "adamw" else [*decay, *direction]
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def own_hyperparams(state: Any, agent: Any, agents: int) -> Any:
    """An agent's optimizer state, where `optax.inject_hyperparams` was given a number for each.

    Args:
      state: as the optimizer's ``init`` makes it: numbers of shape ``[agents]`` are all agents'.
      agent: which one.
      agents: how many there are.

    Raises:
      ValueError: for numbers of another shape.
    """

    def own(node: Any) -> Any:
        if not has_hyperparams(node):
            return node
        for name, x in node.hyperparams.items():
            if jnp.shape(x) not in ((), (agents,)):
                raise ValueError(
                    f"{name} of the optimizer has shape {jnp.shape(x)}: it must be a number, or "
                    f"one for each of {agents} agents."
                )
        numbers = {name: x[agent] if jnp.ndim(x) else x for name, x in node.hyperparams.items()}
        return node._replace(hyperparams=numbers)

    return jax.tree.map(own, state, is_leaf=has_hyperparams)


def has_hyperparams(node: Any) -> bool:
    """Whether it is a state of `optax.inject_hyperparams`."""
    return hasattr(node, "hyperparams")


def with_hyperparams(state: Any, of: Any) -> Any:
    """An optimizer's state, but with the numbers that another one has been given."""

    def own(node: Any, other: Any) -> Any:
        return node._replace(hyperparams=other.hyperparams) if has_hyperparams(node) else node

    return jax.tree.map(own, state, of, is_leaf=has_hyperparams)


def as_steps(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer with a learning rate of its own as a direction, along which steps are of rate 1.

    What Optax's optimizers give is added to the parameters; a direction is subtracted.
    """
    return optax.chain(optimizer, optax.scale(-1.0))


def make_schedule(
    name: str, rate: float, pretrain_steps: int, epoch_steps: int, epochs: int, gossip: bool = False
) -> optax.Schedule:
    """Step → learning rate, over a whole run, pretraining included.

    Args:
      name: ``constant``, ``cosine`` or ``exponential``.
      rate: the learning rate at the start.
      pretrain_steps: of the pretraining.
      epoch_steps: of an epoch of the rounds.
      epochs: of all rounds together.
      gossip: whether of a method that exchanges something in every step: of those alone the
        ``exponential`` schedule lowers the rate.
    """
    if name == "exponential" and gossip:
        return optax.exponential_decay(
            rate,
            max(1, epoch_steps),
            DECAY_PER_EPOCH,
            transition_begin=pretrain_steps,
            staircase=True,
        )
    if name == "cosine":
        return optax.cosine_decay_schedule(rate, max(1, pretrain_steps + epochs * epoch_steps))
    return optax.constant_schedule(rate)


def warmup(steps: int) -> optax.Schedule:
    """Step → what the learning rate is multiplied by: rises to 1 over the first steps."""
    return lambda step: jnp.minimum((step + 1) / max(1, steps), 1.0)


WARMUP = 0.2
"""The share of a round in which ``warmup_each`` raises the rate."""


def round_factor(name: str, first: int, round_steps: int, rounds: int) -> optax.Schedule:
    """Step → what the learning rate is multiplied by in the rounds; 1 before them.

    Args:
      name: ``constant``; ``cosine``: falls to 0 over all rounds; ``cosine_each``: in each round;
        ``warmup_each``: rises from 0 over the first `WARMUP` of each round.
      first: the step at which the rounds begin.
      round_steps: of a round.
      rounds: how many.
    """

    def factor(step):
        done = jnp.maximum(step - first, 0)
        of_round = (done % max(1, round_steps)) / max(1, round_steps)
        share = {
            "constant": 0.0,
            "cosine": jnp.minimum(done / max(1, round_steps * rounds), 1.0),
            "cosine_each": of_round,
            "warmup_each": jnp.maximum(1 - (of_round + 1 / max(1, round_steps)) / WARMUP, 0.0),
        }[name]
        shape = 1 - share if name == "warmup_each" else (1 + jnp.cos(jnp.pi * share)) / 2
        return jnp.where(step < first, 1.0, shape)

    return factor
