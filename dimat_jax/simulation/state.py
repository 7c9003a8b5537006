"""All that a run is, as one pytree."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from dimat_jax.algorithms.stepping import GossipState
from dimat_jax.training.state import AgentState
from dimat_jax.types import Key, Permutations, Variables


class Keys(NamedTuple):
    """Independent keys for all that is random in one seed's run."""

    partition: Key
    init: Key
    order: Key
    merge: Key


def seed_keys(seed: int) -> Keys:
    """The keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), 4))


class RoundKeys(NamedTuple):
    """Independent keys for all that is drawn in one round."""

    matching: Key
    statistics: Key
    statistics_after_training: Key
    alignment: Key


def round_keys(keys: Keys, round: int) -> RoundKeys:
    """The keys of a round, counted from 1."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(keys.merge, round), 4))


class Position(NamedTuple):
    """Where a run stands; whole numbers.

    Attributes:
      event: the next entry of `Session.plan`.
      seed: the seed.
      method: which of the run's methods, counted from 0; -1 in the shared pretraining.
      round: 0 in pretraining, then that of the last merge, or of the training under way.
      epoch: epochs trained since the start, pretraining included.
      first_epoch: what `epoch` was when the method began.
    """

    event: int
    seed: int
    method: int = -1
    round: int = 0
    epoch: int = 0
    first_epoch: int = 0


class MethodState(NamedTuple):
    """What the parts of a method remember; stacked ``[lanes, ...]``, None for parts it has not."""

    gossip: GossipState | None = None
    initial: Any = None
    merge: Any = None
    final: Any = None


class RunState(NamedTuple):
    """All that a run is. Arrays are stacked ``[lanes, ...]`` and stay on the devices.

    Attributes:
      position: where it stands.
      keys: of its seed.
      agents: variables, optimizer state and counters of every agent.
      method: what the method remembers.
      pretrained: the agents as they were when pretraining ended, from whom every method starts;
        None before.
      bytes_sent: by an agent since the start, in the mean.
      permutations: those of the last merge, see `dimat_jax.algorithms.Merged`.
      frame: those that bring every agent into agent 0's frame, as merges have found them so far,
        group name → ``[lanes, *outer, units]``; empty where all are in one frame, None where no
        merge has aligned them.
      units_moved: the share of hidden units that the last merge's permutations move; None where
        nothing was aligned.
      train_loss: mean over agents and steps of the last epoch; None if a merge came after it.
      images_per_second: of the last epoch, all agents together; likewise.
      lost: messages that did not arrive, of all agents since the method began.
      left_out: those of merges that arrived, and were not finite numbers.
      sent: the networks that were sent in the last merge, where messages may come late.
      final: metric → its value for each agent on all test examples, once the method has ended.
    """

    position: Position
    keys: Keys
    agents: AgentState
    method: MethodState = MethodState()
    pretrained: AgentState | None = None
    bytes_sent: float = 0.0
    permutations: tuple[Permutations, ...] = ()
    frame: Permutations | None = None
    units_moved: float | None = None
    train_loss: float | None = None
    images_per_second: float | None = None
    lost: int = 0
    left_out: int = 0
    sent: Variables | None = None
    final: dict[str, Float[np.ndarray, "agents"]] | None = None
