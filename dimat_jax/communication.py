"""What agents send, in messages and bytes."""

import jax
import numpy as np

from dimat_jax.topology import Topology
from dimat_jax.types import Variables


def variables_bytes(variables: Variables) -> int:
    """Bytes of one network's variables, running statistics included.

    Args:
      variables: arrays or `jax.ShapeDtypeStruct`s, without an ``agents`` axis.
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(variables))


def merge_bytes(topology: Topology, round: int, variables: Variables) -> float:
    """Bytes that an agent sends in one merge round, in the mean over agents.

    Each agent sends its variables to each agent that averages them (the nonzeros of its column of
    the mixing matrix), whatever the alignment: matching happens where they arrive.

    Args:
      topology: the graph.
      round: counted from 0; a time-varying graph repeats after its period.
      variables: one agent's.
    """
    matrix = topology.mixing_matrices[round % len(topology.mixing_matrices)]
    messages = np.count_nonzero(matrix) - np.count_nonzero(np.diagonal(matrix))
    return messages * variables_bytes(variables) / len(matrix)
