"""DIMAT, weight averaging and their kin: merge the neighbours' networks, then train on.

x_i ← Σ_j π_ij P_ij x_j, where P_ij brings the hidden units of agent j into the order of agent i's,
and P_ii = I (DIMAT, arXiv 2404.08079, algorithm 1). With P_ij = I throughout it is weight
averaging (WA). Both recompute the normalisation statistics afterwards. What differs between the
methods here are the arguments of `neighbor_average`.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dimat_jax.algorithms.base import (
    Algorithm,
    Graph,
    Merge,
    Merged,
    MergeRound,
    Message,
    State,
    doubly_stochastic,
)
from dimat_jax.merging.average import narrow
from dimat_jax.merging.merger import SLOTS_AT_ONCE, Merger
from dimat_jax.merging.repair import Goal
from dimat_jax.merging.units import find_units
from dimat_jax.symmetries import Symmetries
from dimat_jax.topology import Topology, Tree, fully_connected, random_peers
from dimat_jax.types import Batch, Permutations, Task, Variables

Align = Callable[[Merger, Variables, Sequence[Variables], MergeRound], list[Permutations]]
"""``(merger, target, sources, round) -> permutations`` that bring each source into the frame of
``target``, for every agent at once; an empty list leaves them as they are."""

Agents = Int[np.ndarray, " agents"]

Frame = Callable[[Merger, Variables, MergeRound], list[Permutations]]
"""``(merger, variables, round) -> permutations``: one dict that brings all agents into one frame,
in which they are then averaged; or none, which leaves them as they are."""


def by_activations(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Aligns units whose activations correlate most (DIMAT, equation 4; Li et al. 2015)."""
    return merger.match["activations"](target, sources, round.matching())


def by_weights(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Aligns networks so that their weights are nearest (Git Re-Basin, algorithm 1).

    On the host, one pair of networks after the other.
    """
    return merger.match["weights"](target, sources, round.key)


def unaligned(
    merger: Merger, target: Variables, sources: Sequence[Variables], round: MergeRound
) -> list[Permutations]:
    """Leaves every unit where it is."""
    return []


def reference_frame(align: Align) -> Frame:
    """Brings all into the frame of one network, agent 0's, which is flooded to everyone.

    Each agent compares its own network with it, on its own images.
    """
    return into_frame(align, lambda tree: tree.roots)


def tree_frame(align: Align) -> Frame:
    """The same frame, by composing along the tree: no network goes further than one edge.

    Each agent compares its own network with that of its parent in the tree, and puts what the
    parent found before it. Errors add up on the way.
    """
    return into_frame(align, lambda tree: tree.parents)


def into_frame(align: Align, ancestors_of: Callable[[Tree], Agents]) -> Frame:
    """Brings all into the frame of the root of their tree.

    Args:
      align: how an agent's units are brought into the order of an ancestor's.
      ancestors_of: tree → an ancestor of each agent, nearer to the root; of a root itself.
    """

    def frame(merger: Merger, variables: Variables, round: MergeRound) -> list[Permutations]:
        ancestors = ancestors_of(round.tree())
        targets = merger.gather(variables, ancestors)
        found = align(merger, targets, [variables], round)
        return [merger.compose(permutations, ancestors) for permutations in found]

    return frame


FRAMES: dict[str, Callable[[Align], Frame]] = {"reference": reference_frame, "tree": tree_frame}
"""The common frames that a run can name."""


def universe_frame(merger: Merger, variables: Variables, round: MergeRound) -> list[Permutations]:
    """Brings all into one universe, found for all together (`match_universe`).

    P_ij = Q_i⁻¹ Q_j: cycle-consistent, as pairs aligned one by one are not. It takes everyone's
    networks, and so each agent sends its own to all others, and not to its neighbours alone.
    """
    return merger.match["universe"](variables, round.key)


def everyone(topology: Topology) -> Topology:
    """All agents of a graph, fully connected."""
    return fully_connected(topology.agents)


def sparse(topology: Topology) -> Topology:
    """Each agent meets one random peer with probability 0.2 in a round."""
    return random_peers(topology.agents, p=0.2)


def common_frame(align: Align, graph: Graph = doubly_stochastic) -> Merge:
    """Brings all agents into the frame of one network, and averages nothing.

    With it once before the first round (`Algorithm.initial`), methods that do not align work on
    networks that are aligned.

    Args:
      align: how units are compared.
      graph: on which the network is handed on.
    """
    frame = reference_frame(align)

    def apply(merger: Merger, variables: Variables, state: State, round: MergeRound) -> Merged:
        used = frame(merger, variables, round)
        for permutations in used:
            variables = merger.permute(permutations, variables)
        return Merged(variables, state, used, moved=bool(used))

    fits = functools.partial(check_model, align, frame, False)
    return Merge(apply, graph, Message(parameters=0, statistics=0), fits=fits)


def neighbor_average(
    align: Align = unaligned,
    frame: Frame | None = None,
    recompute: bool = True,
    repair: bool = False,
    by_examples: bool = False,
    graph: Graph = doubly_stochastic,
    message: Message = Message(parameters=1, statistics=1),
) -> Merge:
    """Σ_j π_ij P_ij x_j for every agent i, and the statistics of what comes out.

    Args:
      align: how a neighbour's units are brought into the order of one's own.
      frame: brings all agents into one frame first; the average then needs no alignment.
      recompute: whether normalisation statistics are recomputed (where the run does so at all).
      repair: whether units get the mean and deviation of their parents' (REPAIR).
      by_examples: whether weights are in proportion to the number of each agent's examples.
      graph: on which agents merge.
      message: what an agent sends to each that hears from it.
    """
    return Merge(
        functools.partial(average, align, frame, recompute, repair, by_examples),
        graph,
        message,
        fits=functools.partial(check_model, align, frame, repair),
    )


def check_model(
    align: Align,
    frame: Frame | None,
    repair: bool,
    task: Task,
    symmetries: Symmetries,
    abstract: tuple[Variables, Batch],
) -> None:
    """Whether a model can be merged so; the first arguments as of `neighbor_average`.

    Raises:
      ValueError: for no layer that REPAIR can correct.
    """
    aligns = frame is not None or align is not unaligned
    if aligns and not symmetries.groups:
        warnings.warn(
            "The model has no permutation group: there is nothing to align, and merging averages.",
            stacklevel=2,
        )
    if repair and not find_units(symmetries, task.outputs, *abstract).found:
        raise ValueError(
            "REPAIR finds no layer that it can correct: it needs a bias after each, and both used "
            "once and outside loops."
        )


def average(
    align: Align,
    frame: Frame | None,
    recompute: bool,
    repair: bool,
    by_examples: bool,
    merger: Merger,
    variables: Variables,
    state: State,
    round: MergeRound,
) -> Merged:
    """One round of `neighbor_average`, a few neighbours at a time."""
    used: list[Permutations] = []
    if frame is None and align is not unaligned and round.frame != "own":
        frame = FRAMES[round.frame](align)
    if frame is not None:
        used, align = frame(merger, variables, round) if round.aligns else [], unaligned
        for permutations in used:
            variables = merger.permute(permutations, variables)
    weights = round.weights
    if by_examples:
        weights = weights * round.examples[round.sources]
        weights = weights / weights.sum(1, keepdims=True)

    goal: Goal = {}
    if align is unaligned and not repair:
        total = merger.average(variables, round.sources, weights)
    else:
        total, goal, found = average_parents(align, repair, merger, variables, weights, round)
        used.extend(found)
    total = narrow(total, variables)
    # REPAIR comes last: it corrects what recomputed statistics leave.
    if recompute and round.statistics is not None:
        total = merger.recompute(total, round.statistics())
    if repair:
        total = merger.repair.correct(total, goal, round.matching())
    return Merged(total, state, used, moved=frame is not None and bool(used), weights=weights)


def average_parents(
    align: Align,
    repair: bool,
    merger: Merger,
    variables: Variables,
    weights: Float[np.ndarray, "agents slots"],
    round: MergeRound,
) -> tuple[Any, Any, list[Any]]:
    """What `average` adds up where neighbours have to be looked at one by one.

    Returns:
      Σ_s weights[i, s] P x[sources[i, s]], of networks and of their units' moments where REPAIR
      needs these; the permutations P.
    """
    used: list[Permutations] = []

    # s = 0 is the agent itself: a sum over slots, each of which is one neighbour of every agent,
    # [lanes, ...]. On a ring two slots hold everything.
    def parents(slots: range) -> Sequence[Variables]:
        sources = merger.gather_slots(variables, round.sources[:, slots.start : slots.stop])
        permutations = align(merger, variables, sources, round)
        used.extend(permutations)
        pairs = zip(permutations, sources, strict=True)
        return [merger.permute(p, s) for p, s in pairs] if permutations else sources

    total = merger.add(None, weights[:, 0], variables)
    goal: Goal = {}
    if repair:
        own = merger.repair.read(variables, round.matching())
        goal = merger.add(None, weights[:, 0], own)
    slots = range(1, round.sources.shape[1])
    for start in range(0, len(slots), SLOTS_AT_ONCE):
        chunk = slots[start : start + SLOTS_AT_ONCE]
        for slot, parent in zip(chunk, parents(chunk), strict=True):
            total = merger.add(total, weights[:, slot], parent)
            if repair:
                of_parent = merger.repair.read(parent, round.matching())
                goal = merger.add(goal, weights[:, slot], of_parent)
    return total, goal, used


DIMAT_SOURCE = "arXiv 2404.08079, algorithm 1"
AVERAGE = "x_i ← Σ_j π_ij x_j"
REPAIRED = "; then each unit's mean and standard deviation are the average of its parents'"
REPAIR_SOURCE = "arXiv 2211.08403"

dimat = Algorithm(
    label="DIMAT",
    update="x_i ← Σ_j π_ij P_ij x_j, units aligned by their activations",
    source=DIMAT_SOURCE,
    merge=neighbor_average(by_activations),
)
wm = Algorithm(
    label="WM",
    update="x_i ← Σ_j π_ij P_ij x_j, units aligned by their weights",
    source="arXiv 2209.04836, algorithm 1",
    merge=neighbor_average(by_weights),
    rate_of="dimat",
)
universe = Algorithm(
    label="Universe",
    update="x_i ← Σ_j π_ij Q_j x_j, all aligned to one universe, and from then on in its frame: "
    "cycle-consistent, P_ij = Q_i⁻¹ Q_j",
    source="arXiv 2209.04836, algorithm 3",
    merge=neighbor_average(
        frame=universe_frame, message=Message(parameters=1, statistics=1, to_everyone=True)
    ),
    rate_of="dimat",
)
wa = Algorithm(
    label="WA",
    update=AVERAGE,
    source="arXiv 2404.08079, with BatchNorm statistics recomputed",
    merge=neighbor_average(),
)
wa_published = Algorithm(
    label="WA (published)",
    update=f"{AVERAGE}; BatchNorm statistics are averaged with the rest",
    source="the published code of arXiv 2404.08079",
    merge=neighbor_average(recompute=False),
    rate_of="wa",
)
local_only = Algorithm(
    label="Alone",
    update="x_i ← x_i: each agent trains by itself",
    source="the first baseline: no communication",
)
final_dimat = local_only._replace(
    label="Final DIMAT",
    update="each trains alone; at the end one average of all, aligned in agent 0's frame",
    source="arXiv 2507.06542, aligned",
    final=neighbor_average(frame=reference_frame(by_activations), graph=everyone),
)
final_wa = local_only._replace(
    label="Final WA",
    update="each trains alone; at the end one average of all",
    source="arXiv 2507.06542",
    final=neighbor_average(graph=everyone),
)
dimat_once = Algorithm(
    label="DIMAT, aligned once",
    update="all align themselves once to agent 0's network, before the first round; from then on "
    "x_i ← Σ_j π_ij x_j",
    source="as `dimat`, in one frame as the published code has it on fully connected graphs",
    initial=common_frame(by_activations),
    merge=neighbor_average(),
    rate_of="dimat",
)
dimat_plus = dimat_once._replace(
    label="DIMAT+",
    update="as `dimat_once`, and optimizers keep their state, which moves with the units",
    source="what helps in docs/results/factors.md, at the bytes of `wa`",
    initial=common_frame(by_activations)._replace(optimizer="kept"),
    merge=neighbor_average()._replace(optimizer="kept"),
    rate_of=None,
)
sparse_final_wa = Algorithm(
    label="Sparse, final WA",
    update="x_i ← (x_i + x_j) / 2 with one random peer, with probability 0.2 a round; at the end "
    "one average of all",
    source="arXiv 2507.06542",
    merge=neighbor_average(graph=sparse),
    final=neighbor_average(graph=everyone),
    rate_of="wa",
)
sparse_final_dimat = sparse_final_wa._replace(
    label="Sparse, final DIMAT",
    update="the same, all in the frame of agent 0's network from the beginning",
    source="arXiv 2507.06542, aligned",
    initial=common_frame(by_activations, graph=everyone),
    rate_of="dimat",
)
dimat_repair = Algorithm(
    label="DIMAT + REPAIR",
    update=f"as `dimat`{REPAIRED}",
    source=REPAIR_SOURCE,
    merge=neighbor_average(by_activations, repair=True),
    rate_of="dimat",
)
wa_repair = Algorithm(
    label="WA + REPAIR",
    update=f"as `wa`{REPAIRED}",
    source=REPAIR_SOURCE,
    merge=neighbor_average(repair=True),
    rate_of="wa",
)
