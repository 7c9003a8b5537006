"""What a run gives."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import Row
from dimat_jax.simulation.setup import Setup
from dimat_jax.symmetries import Symmetries
from dimat_jax.types import Permutations, Variables


class Final(NamedTuple):
    """Where one method ends for one seed.

    Attributes:
      variables: stacked ``[agents, ...]``, on the host: with many methods and seeds they would fill
        the devices.
      test_accuracy: of each agent, on all test images.
      permutations: those of the last merge round, see `dimat_jax.algorithms.Merged`.
    """

    variables: Variables
    test_accuracy: Float[np.ndarray, "agents"]
    permutations: list[Permutations]


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      history: the rows of ``metrics.jsonl``, in order of time.
      variables: stacked ``[agents, ...]``, of the first method that did not diverge and the last
        seed; None where all did.
      symmetries: the model's permutation groups.
      finals: (method, seed) → where it ended.
      setup: what the run worked with, its data set among it.
    """

    history: list[Row]
    variables: Variables | None
    symmetries: Symmetries
    finals: dict[tuple[str, int], Final]
    setup: Setup
