"""Ways to spend messages: early, evenly, late, as sparse gossip, or only in one final average.

What `experiments.when_to_merge` compares for its budget and for its map. Every way ends with one
average of everyone, and is tried with units aligned and as they are.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import studies
from experiments.when_to_merge_apart import make_probe

if TYPE_CHECKING:
    from dimat_jax.algorithms import Algorithm, Merge, Merged, MergeRound
    from dimat_jax.merging.merger import Merger
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState
    from dimat_jax.topology import Topology
    from dimat_jax.types import Variables

FINAL = "nothing but the final average"
EARLY, EVENLY, LATE = "early", "evenly", "late"
GOSSIP = "gossip, p = "
"""What a way to spend messages is called; that of gossip goes on with its probability."""
ALIGNED, PLAIN = "aligned", "plain"


class Budget(NamedTuple):
    """What can be spent.

    Attributes:
      every: of so many rounds one has a merge on the whole graph, where a budget is fixed.
      chances: probabilities with which an agent meets one random peer in a round.
    """

    every: int
    chances: tuple[float, ...]


def gossip(chance: float) -> str:
    """What gossip with this probability is called; of nobody it is the final average only."""
    return f"{GOSSIP}{chance:g}" if chance else FINAL


def ways(budget: Budget, fixed: bool) -> list[str]:
    """The ways to spend messages, in the order of tables.

    Args:
      budget: what can be spent.
      fixed: whether the same budget is spent early, evenly and late, too.
    """
    return [FINAL, *([EARLY, EVENLY, LATE] if fixed else []), *map(gossip, budget.chances)]


def graphs(agents: int, rounds: int, budget: Budget, seed: int) -> "dict[str, Topology]":
    """Who merges with whom before the final average, by the way to spend messages.

    Args:
      agents: how many there are.
      rounds: how many there are.
      budget: what can be spent.
      seed: of random meetings.
    """
    from dimat_jax.topology import disconnected, exponential, random_peers, schedule

    dense, nobody = exponential(agents), disconnected(agents)
    share = 1 / budget.every
    merging, apart = (share, dense), (1 - share, nobody)
    found = {
        EARLY: schedule([merging, apart], rounds),
        EVENLY: schedule([merging, apart], budget.every),
        LATE: schedule([apart, merging], rounds),
    }
    meetings = {gossip(p): random_peers(agents, p, seed, rounds) for p in budget.chances}
    return found | meetings


def methods(
    agents: int, rounds: int, budget: Budget, seed: int, fixed: bool
) -> "dict[str, Algorithm]":
    """The methods by name, ready to be handed to a run; arguments as of `ways` and `graphs`."""
    from dimat_jax.algorithms import METHODS, common_frame, neighbor_average
    from dimat_jax.algorithms.merging import by_activations, everyone

    found: dict[str, Algorithm] = {}
    of_way = graphs(agents, rounds, budget, seed)
    for way in ways(budget, fixed):
        for units in (PLAIN, ALIGNED):
            method = METHODS["final_dimat" if units == ALIGNED else "final_wa"]
            if way != FINAL:
                graph = of_way[way]
                merge = neighbor_average(graph=lambda _, graph=graph: graph)
                if units == ALIGNED and way in (EARLY, EVENLY, LATE):
                    merge = aligned_at_first(merge)
                elif units == ALIGNED:
                    # Of rare meetings no network need reach everyone: it is handed on by itself.
                    method = method._replace(initial=common_frame(by_activations, everyone))
                method = method._replace(merge=merge)
            found[f"{way}, {units}"] = method._replace(label=f"{way}, {units}")
    return found


def aligned_at_first(merge: "Merge") -> "Merge":
    """A plain average that brings all agents into agent 0's frame before the first exchange.

    Agents who train apart until late are so compared when it is needed, and not before.
    """
    import jax
    import jax.numpy as jnp

    from dimat_jax.algorithms import neighbor_average
    from dimat_jax.algorithms.merging import by_activations, reference_frame

    aligned = neighbor_average(frame=reference_frame(by_activations))

    def init(variables: "Variables") -> Any:
        return jnp.zeros(len(jax.tree.leaves(variables)[0]))  # 1 once they have been aligned

    def apply(
        merger: "Merger", variables: "Variables", state: Any, round: "MergeRound"
    ) -> "Merged":
        first = bool((round.weights[:, 1:] > 0).any()) and not float(state.max())
        chosen = aligned if first else merge
        merged = chosen.apply(merger, variables, (), round._replace(aligns=first))
        return merged._replace(state=state + first)

    return merge._replace(apply=apply, init=init, fits=aligned.fits)


def spend(
    session: "Session", tried: "Mapping[str, Algorithm]", pretrained: "RunState"
) -> studies.Rows:
    """Runs the methods from pretrained agents; a row each.

    Returns:
      ``spent`` and ``units``; ``own``, the agents' mean accuracy after the last training, 0 to 1;
      ``merged``, that of the merged model after the final average, and ``merged_before``, of the
      plain mean of the networks before it; what `make_probe` gives before it; ``networks`` and
      ``bytes_sent``, by an agent in the mean, and ``bytes_before`` the final average.
    """
    from dimat_jax.algorithms.communication import variables_bytes

    size = variables_bytes(session.setup.abstract[0])
    probe, rounds = make_probe(session), session.setup.config.rounds
    found: dict[str, dict[str, Any]] = {}

    def watch(event: Any, state: "RunState", row: Any) -> None:
        if (
            row is None
            or row["round"] < rounds
            or (row["round"], row["phase"]) == (rounds, "merge")
        ):
            return
        measured = found.setdefault(event.method, {})
        if row["phase"] == "train":
            measured |= probe(state) | {
                "own": row["test_accuracy"],
                "merged_before": row["merged_accuracy"],
                "bytes_before": row["bytes_sent"],
            }
        else:
            sent = row["bytes_sent"]
            networks = {"bytes_sent": sent, "networks": sent / size}
            measured |= {"merged": row["merged_accuracy"], **networks}

    diverged = studies.run_methods(session, pretrained, tried, watch)
    rows = []
    for name, measured in found.items():
        spent, _, units = name.rpartition(", ")
        if name not in diverged:
            rows.append({"spent": spent, "units": units, **measured})
    return rows


def spent_by(rows: Sequence[Mapping[str, Any]], way: str, units: str, name: str) -> dict:
    """Seed → an entry of the rows of one way."""
    return {r["seed"]: r[name] for r in rows if (r["spent"], r["units"]) == (way, units)}
