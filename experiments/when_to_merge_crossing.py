"""Many rounds after some pretraining apart: when plain averaging overtakes alignment, and why.

What `experiments.when_to_merge` measures before and after every few merges.
"""

from typing import TYPE_CHECKING, Any

from dimat_jax.config import Config
from experiments import studies
from experiments.when_to_merge_apart import make_probe
from experiments.when_to_merge_spend import ALIGNED, PLAIN

if TYPE_CHECKING:
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState

ALONE = "alone"
METHODS = {"dimat": ALIGNED, "wa": PLAIN, "local_only": ALONE}
"""Method → what tables call it."""


def is_measured(config: Config, round: int) -> bool:
    """Whether a round is evaluated, as `dimat_jax.simulation.plan` has it."""
    return round in (1, config.rounds) or round % config.evaluate_every == 0


def cross(session: "Session", pretrained: "RunState") -> studies.Rows:
    """Runs the methods from pretrained agents; a row for each measured round of each.

    Returns:
      ``units`` and ``round``; what `make_probe` gives before its merge; accuracies 0 to 1:
      ``after``, of the agents after the merge (of agents alone: before it), ``trained`` after the
      training that follows, and ``merged``, of the mean of their networks then.
    """
    from dimat_jax.simulation.plan import Action

    config, probe = session.setup.config, make_probe(session)
    start = probe(pretrained)
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    def begin(method: str, round: int, measured: dict[str, Any]) -> None:
        named = {"units": METHODS[method], "round": round}
        rows[method, round] = {**named, **measured, "after": measured["accuracy"]}

    def watch(event: Any, state: "RunState", row: Any) -> None:
        if event.action is Action.BEGIN:
            begin(event.method, 1, start)
        elif event.action is Action.RECOMPUTE and event.round < config.rounds:
            # As agents go into the next round's merge.
            if is_measured(config, event.round + 1):
                begin(event.method, event.round + 1, probe(state))
        elif row is not None and row["phase"] == "merge":
            rows[event.method, event.round]["after"] = row["test_accuracy"]
        elif row is not None:
            found = {"trained": row["test_accuracy"], "merged": row["merged_accuracy"]}
            rows[event.method, event.round] |= found

    diverged = studies.run_methods(session, pretrained, METHODS, watch)
    return [row for (method, _), row in rows.items() if method not in diverged]
