"""How one network reaches everyone: a graph's edges, breadth first from an agent."""

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dimat_jax.topology.base import Topology


class Tree(NamedTuple):
    """A spanning tree of a graph; a forest where the graph does not reach everyone.

    Attributes:
      parents: int32, from whom each agent hears; a root from itself.
      roots: int32, the root of each agent's tree.
    """

    parents: Int[np.ndarray, " agents"]
    roots: Int[np.ndarray, " agents"]


def flood(topology: Topology) -> Tree:
    """The way of agent 0's network to everyone, over the edges of all rounds of a period.

    An agent that it does not reach is a root itself, and its network goes to those behind it.
    """
    hears = (topology.mixing_matrices != 0).any(0)
    parents = np.full(topology.agents, -1, np.int32)
    roots = parents.copy()
    for root in range(topology.agents):
        if parents[root] >= 0:
            continue
        parents[root] = roots[root] = root
        queue = deque([root])
        while queue:
            parent = queue.popleft()
            children = np.flatnonzero(hears[:, parent] & (parents < 0))
            parents[children], roots[children] = parent, root
            queue.extend(children.tolist())
    return Tree(parents, roots)
