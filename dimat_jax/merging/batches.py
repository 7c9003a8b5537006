"""Examples that agents run networks on in a merge, and where they lie."""

from typing import Any, NamedTuple

from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from dimat_jax.execution.placement import AGENTS, REPLICATED


class Batches(NamedTuple):
    """Examples that agents run networks on.

    Attributes:
      rows: int32 ``[lanes, batches, batch]``, rows of ``examples`` on the agent's device.
      examples: a pytree ``[rows, ...]``.
      shared: whether all examples lie on every device; else each device holds those of its agents.
    """

    rows: Int[Array, "lanes batches batch"]
    examples: Any
    shared: bool = False

    @property
    def spec(self) -> PartitionSpec:
        """How the examples lie on the devices."""
        return REPLICATED if self.shared else AGENTS

    @property
    def number(self) -> int:
        """How many batches there are for each agent."""
        return self.rows.shape[1]
