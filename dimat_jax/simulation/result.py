"""What a run gives."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dimat_jax.metrics import Row, measure_of, measured, spread
from dimat_jax.simulation.setup import Setup
from dimat_jax.simulation.state import RunState
from dimat_jax.symmetries import Symmetries
from dimat_jax.types import Permutations, Variables

LINES, COLUMNS = 10, 88
"""What a result has room for where it is shown."""


class Final(NamedTuple):
    """Where one method ends for one seed.

    Attributes:
      variables: stacked ``[agents, ...]``, on the host: with many methods and seeds they would fill
        the devices.
      measured: metric → its value for each agent, on all test examples.
      permutations: those of the last merge round, see `dimat_jax.algorithms.Merged`.
    """

    variables: Variables
    measured: dict[str, Float[np.ndarray, "agents"]]
    permutations: list[Permutations]


class SoFar(NamedTuple):
    """What there is of a run that goes on.

    Attributes:
      state: where it stands; None: at the beginning.
      history: the rows.
      finals: (method, seed) → where it ended.
      diverged: (method, seed) → where and how.
    """

    state: RunState | None
    history: list[Row]
    finals: dict[tuple[str, int], Final]
    diverged: dict[tuple[str, int], str]


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      history: the rows of ``metrics.jsonl``, in order of time.
      variables: stacked ``[agents, ...]``, of the first method that did not diverge and the last
        seed; None where all did.
      symmetries: the model's permutation groups.
      finals: (method, seed) → where it ended.
      setup: what the run worked with, its data among it.
      diverged: (method, seed) → where and how, of those whose loss did not stay finite.
    """

    history: list[Row]
    variables: Variables | None
    symmetries: Symmetries
    finals: dict[tuple[str, int], Final]
    setup: Setup
    diverged: dict[tuple[str, int], str] = {}

    def __repr__(self) -> str:
        """What was run and where it ended, in at most `LINES` lines of `COLUMNS` columns."""
        config, setup = self.setup.config, self.setup
        title = measure_of(measured(self.history)).title
        lines = [
            setup.data.name,
            f"{config.model} × {config.width:g}, {config.agents} agents, {setup.topology.name}",
            f"seeds {', '.join(map(str, config.seeds))}; {title} at the end, ± std:",
        ]
        methods = [end_of(self, name) for name in setup.methods]
        room = LINES - 1 - len(lines)
        if len(methods) > room:
            methods = [*methods[: room - 1], f"… and {len(methods) - room + 1} more methods"]
        shown = ["Result:", *(f"  {line}" for line in [*lines, *methods])]
        return "\n".join(s if len(s) <= COLUMNS else f"{s[: COLUMNS - 1]}…" for s in shown)


def end_of(result: Result, method: str) -> str:
    """What a method comes to at the end, over all agents of the seeds that it finished."""
    measure = measure_of(measured(result.history))
    finals = [found for (name, _), found in result.finals.items() if name == method]
    values = measure.scale * np.concatenate(
        [np.zeros(0), *(found.measured[measure.name] for found in finals)]
    )
    std = spread(values)
    mean = f"{values.mean():.{measure.digits}f}" if len(values) else "did not end"
    deviation = "" if std is None else f" ± {std:.{measure.digits}f}"
    return f"{result.setup.methods[method].label}: {mean}{deviation}"
