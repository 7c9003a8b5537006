"""How often the published code goes over the data in one merge."""

from typing import NamedTuple


class Passes(NamedTuple):
    """How many passes over all images of all agents one merge makes.

    Attributes:
      resets: by one network, to recompute its BatchNorm statistics.
      groups: by all networks that are matched with one another, their features correlated.
      networks: number of networks in such a group.
    """

    resets: int
    groups: int
    networks: int


def passes_of(topology: str, agents: int) -> Passes:
    """The passes of one merge.

    Raises:
      ValueError: for another topology than ring and fully_connected.
    """
    if topology == "ring":
        networks = min(3, agents)
        return Passes(agents * networks + agents, agents, networks)
    if topology == "fully_connected":
        return Passes(agents + 1, 1, agents)
    raise ValueError(f"topology must be ring or fully_connected, not {topology!r}.")
