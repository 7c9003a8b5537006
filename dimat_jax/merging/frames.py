"""One frame for all agents, out of the permutations that a merge found for pairs of them."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dimat_jax.symmetries import Symmetries, compose


def compose_along(
    symmetries: Symmetries,
    ancestors: Int[np.ndarray, " agents"],
    permutations: Mapping[str, Any],
) -> Any:
    """Brings every agent into the frame of its root, by way of its ancestors.

    With P_j bringing agent j into the frame of its ancestor i, and Q_i agent i into that of the
    root, Q_j is P_j and then Q_i.

    Args:
      symmetries: the model's permutation groups.
      ancestors: of each agent; of a root itself.
      permutations: group name → ``[agents, *outer, units]``, each P.

    Returns:
      The same kind of pytree, each Q; the identity for a root.
    """
    agents = np.arange(len(ancestors))
    own = [{name: np.asarray(p[agent]) for name, p in permutations.items()} for agent in agents]
    frames: dict[int, Mapping[str, Any]] = {}
    order = agents[ancestors == agents].tolist()
    for agent in order:  # which grows on the way
        ancestor = int(ancestors[agent])
        if ancestor == agent:
            frames[agent] = {
                name: np.broadcast_to(np.arange(p.shape[-1]), p.shape)
                for name, p in own[agent].items()
            }
        else:
            frames[agent] = compose(own[agent], frames[ancestor], symmetries)
        order += agents[(ancestors == agent) & (agents != agent)].tolist()
    leaves = [
        np.stack([np.asarray(frames[agent][name], np.int32) for agent in range(len(agents))])
        for name in sorted(permutations)
    ]
    return jax.tree.unflatten(jax.tree.structure(permutations), leaves)


def common_frame(
    symmetries: Symmetries,
    sources: Int[np.ndarray, "agents slots"],
    permutations: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Brings every agent into agent 0's frame, by composing along the graph, breadth first.

    With P_ij bringing agent j into the frame of its neighbour i, and Q_i agent i into that of agent
    0, Q_j is P_ij and then Q_i.

    Args:
      symmetries: the model's permutation groups.
      sources: slot 0 is the agent itself, the others its neighbours, as in
        `dimat_jax.algorithms.MergeRound`.
      permutations: for each slot but the first one dict, group name → ``[agents, *outer, units]``.

    Returns:
      Group name → ``[agents, *outer, units]``; None unless everyone is heard of by agent 0, through
      others or directly.
    """
    # On a ring of 4, agent 0 hears of 1 and 3, and 2 is reached through 1: Q_2 is P_12, then P_01.
    frames: dict[int, Mapping[str, Any]] = {0: {}}
    queue = deque([0])
    while queue:
        agent = queue.popleft()
        for source, of_slot in zip(sources[agent, 1:].tolist(), permutations, strict=True):
            if source not in frames:
                own = {name: np.asarray(p[agent]) for name, p in of_slot.items()}
                frames[source] = compose(own, frames[agent], symmetries)
                queue.append(source)
    if len(frames) < len(sources):
        return None
    frames[0] = {
        name: np.broadcast_to(np.arange(p.shape[-1]), p.shape[1:])
        for name, p in permutations[0].items()
    }
    return {
        name: np.stack([np.asarray(frames[agent][name], np.int32) for agent in range(len(sources))])
        for name in frames[0]
    }
