"""What a run gives, and who is told of it while it goes on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import Row
from dimat_jax.simulation.measure import Diverged
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


class Observer(NamedTuple):
    """Who is told of a run while it goes on.

    Attributes:
      on_start: ``on_start(setup)``, before anything compiles.
      on_phase: ``on_phase(label, done)`` when an epoch has ended, or other work begins that takes a
        while: what it is, and the share of the whole run that is done, 0 to 1.
      on_row: ``on_row(row)`` for every row of the history.
      on_diverged: ``on_diverged(method, error)`` when a method diverges, which by default ends the
        run; where it returns, the run goes on without that method.
    """

    on_start: Callable[[Setup], None] = lambda setup: None
    on_phase: Callable[[str, float], None] = lambda label, done: None
    on_row: Callable[[Row], None] = lambda row: None
    on_diverged: Callable[[str, Diverged], None] = lambda method, error: end(error)


def end(error: Diverged) -> None:
    """Raises the error."""
    raise error
