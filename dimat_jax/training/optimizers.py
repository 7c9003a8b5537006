"""The local optimizers, and the learning rate over a run."""

from collections.abc import Callable

import optax

DECAY_PER_EPOCH = 0.981
"""What the learning rate is multiplied by in each epoch of the rounds in the published baselines
(arXiv 2404.08079)."""

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "adam": optax.scale_by_adam,
}
"""Directions; the step multiplies them by the learning rate of the run's own step count, so that
a schedule goes on where an optimizer starts afresh after a merge."""


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
