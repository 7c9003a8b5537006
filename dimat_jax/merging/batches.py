"""Images that agents run networks on in a merge, and where they lie."""

from typing import NamedTuple

from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, UInt8

from dimat_jax.execution.placement import AGENTS, REPLICATED


class Batches(NamedTuple):
    """Images that agents run networks on.

    Attributes:
      rows: int32 ``[lanes, batches, batch]``, rows of ``images`` on the agent's device.
      images: uint8 ``[rows, height, width, channels]``.
      shared: whether all images lie on every device; else each device holds those of its agents.
    """

    rows: Int[Array, "lanes batches batch"]
    images: UInt8[Array, "rows height width channels"]
    shared: bool = False

    @property
    def spec(self) -> PartitionSpec:
        """How the images lie on the devices."""
        return REPLICATED if self.shared else AGENTS

    @property
    def number(self) -> int:
        """How many batches there are for each agent."""
        return self.rows.shape[1]
