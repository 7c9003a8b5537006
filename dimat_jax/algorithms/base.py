"""What a method is: pure functions, chosen by name, that all see the same data and weights."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dimat_jax.merger import Batches, Merger
from dimat_jax.topology import Topology
from dimat_jax.types import Permutations, Variables


class MergeRound(NamedTuple):
    """What one merge round works with.

    Attributes:
      sources: int32 ``[agents, slots]``: slot 0 is the agent itself, the others its neighbours;
        agents with fewer neighbours are filled up with themselves at weight 0.
      weights: ``[agents, slots]``, π_ij of those neighbours.
      matching: images on which units are compared.
      statistics: images from which normalisation statistics are recomputed.
      first_frame: whether all merge in agent 0's frame, rather than each in its own.
    """

    sources: Int[np.ndarray, "agents slots"]
    weights: Float[np.ndarray, "agents slots"]
    matching: Batches
    statistics: Batches
    first_frame: bool


class Merged(NamedTuple):
    """What a merge round gives.

    Attributes:
      variables: stacked ``[agents, ...]``.
      permutations: those that were used, a dict a slot, each array ``[agents, units]``; in agent
        0's frame one dict, that of every agent into it. Empty where nothing was aligned.
    """

    variables: Variables
    permutations: list[Permutations]


Align = Callable[[Merger, Variables, Sequence[Variables], Batches], list[Permutations]]
"""``(merger, target, sources, batches) -> permutations`` that bring each source into the frame of
``target``, for every agent at once; an empty list leaves them as they are."""


class Algorithm(NamedTuple):
    """A method as pure functions.

    Attributes:
      check: raises a `ValueError` for a graph that the method cannot use.
      merge: ``(merger, variables, round) -> merged``: what happens between two stretches of local
        training, for all agents at once.
    """

    check: Callable[[Topology], None]
    merge: Callable[[Merger, Variables, MergeRound], Merged]
