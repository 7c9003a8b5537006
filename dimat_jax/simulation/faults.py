"""What goes wrong in the simulated network, and who joins and leaves it, as a schedule.

A schedule changes numbers only, shares of a mixing matrix and masks of agents, so that nothing
recompiles. What a lost message would have brought an agent keeps of itself: whatever is lost, each
row of the mixing matrix still sums to 1, over agents that are there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dimat_jax.registry import check_number, choose, shown

Garbage = Literal["nan", "garbage"]
Newcomer = Literal["fresh", "copy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """Faults of a simulated network. Rounds count from 1, agents from 0.

    Attributes:
      message_loss: probability that a message does not arrive, of every message, or by edge
        ``{(to, from): probability}``. Drawn anew in each merge, and in each gossip step.
      lost: ``((round, to, from), ...)``: messages that are lost for certain.
      stale: probability that a merge gets what its sender sent one merge before.
      down: ``((agent, first round, last round), ...)``: in these rounds an agent neither trains nor
        sends nor hears.
      corrupt: ``((round, agent, "nan" or "garbage"), ...)``: what its parameters become before that
        round. Those that are not finite are left out by whoever would have averaged them.
      seed: of what is drawn, beside the run's.
    """

    message_loss: float | Mapping[tuple[int, int], float] = 0.0
    lost: tuple[tuple[int, int, int], ...] = ()
    stale: float = 0.0
    down: tuple[tuple[int, int, int], ...] = ()
    corrupt: tuple[tuple[int, int, Garbage], ...] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """Agents that join and leave, in a population of fixed size. Rounds count from 1.

    Attributes:
      joins: ``((round, agent, "fresh" or "copy"), ...)``: an agent that is not there before that
        round, and then begins from new weights, or from those of its first neighbour who is there.
      leaves: ``((round, agent), ...)``: an agent that is there no longer from that round on.
    """

    joins: tuple[tuple[int, int, Newcomer], ...] = ()
    leaves: tuple[tuple[int, int], ...] = ()


class Schedule(NamedTuple):
    """What happens to the network of a run."""

    faults: Faults = Faults()
    events: Events = Events()

    def __bool__(self) -> bool:
        """Whether anything happens at all."""
        return self != Schedule()


def scheduled(faults: Faults | None, events: Events | None) -> Schedule:
    """The schedule of a run; None: nothing of that kind."""
    none = Schedule()
    return Schedule(
        none.faults if faults is None else faults, none.events if events is None else events
    )


def check_schedule(schedule: Any, agents: int) -> None:
    """Raises a `ValueError` for a schedule that cannot be: names what is wrong with it."""
    faults, events = schedule
    for name, value in (("faults", faults), ("events", events)):
        if not isinstance(value, Faults if name == "faults" else Events):
            raise ValueError(f"{name} must be a dj.{name.title()}, not {shown(value)}.")
    loss = faults.message_loss
    by_edge = loss if isinstance(loss, Mapping) else {}
    check_entries("message_loss", tuple(by_edge), "aa", agents)
    for value in by_edge.values() if isinstance(loss, Mapping) else (loss,):
        check_number("message_loss", value, least=0, most=1)
    check_number("stale", faults.stale, least=0, most=1)
    check_number("faults.seed", faults.seed, least=0, whole=True)
    entries = {
        "lost": (faults.lost, "raa"),
        "down": (faults.down, "arr"),
        "corrupt": (faults.corrupt, "raw"),
        "joins": (events.joins, "raw"),
        "leaves": (events.leaves, "ra"),
    }
    for name, (given, kinds) in entries.items():
        check_entries(name, given, kinds, agents)
    for _, agent, word in faults.corrupt:
        choose(f"corrupt of agent {agent}", word, ("nan", "garbage"))
    for _, agent, word in events.joins:
        choose(f"joins of agent {agent}", word, ("fresh", "copy"))


def check_entries(name: str, given: Any, kinds: str, agents: int) -> None:
    """Raises a `ValueError` unless all entries are of rounds (r), agents (a) and words (w)."""
    words = {"r": "round", "a": "agent", "w": "word"}
    form = f"({', '.join(words[kind] for kind in kinds)})"
    if isinstance(given, str) or not isinstance(given, tuple | list):
        raise ValueError(f"{name} must be a tuple of {form}, not {shown(given)}.")
    for entry in given:
        if (
            isinstance(entry, str)
            or not isinstance(entry, tuple | list)
            or len(entry) != len(kinds)
        ):
            raise ValueError(f"{name} must be a tuple of {form}, not of {shown(entry)}.")
        for kind, value in zip(kinds, entry, strict=True):
            if kind == "r":
                check_number(f"the round of {name}", value, least=1, whole=True)
            elif kind == "a":
                check_agents(name, (value,), agents)


def check_agents(name: str, given: tuple[Any, ...], agents: int) -> None:
    """Raises a `ValueError` for what is no agent."""
    for agent in given:
        check_number(f"an agent of {name}", agent, least=0, most=agents - 1, whole=True)


def there(schedule: Schedule, agents: int, round: int) -> Bool[np.ndarray, "agents"]:
    """Which agents take part in a round: those that have joined, not left, and are not down."""
    faults, events = schedule
    found = np.ones(agents, bool)
    for agent in range(agents):
        # The last thing that happened to an agent holds; one that joins was not there before.
        joined = [(when, True) for when, who, _ in events.joins if who == agent]
        left = [(when, False) for when, who in events.leaves if who == agent]
        happened = sorted(joined + left)
        if happened:
            before = [is_there for when, is_there in happened if when <= round]
            found[agent] = before[-1] if before else not happened[0][1]
    for agent, first, last in faults.down:
        if first <= round <= last:
            found[agent] = False
    return found


def drawn(schedule: Schedule, seed: int, round: int, exchange: int) -> np.random.Generator:
    """The random numbers of one exchange: the same whatever was drawn before."""
    return np.random.default_rng([schedule.faults.seed, seed, round, exchange])


def arriving(
    schedule: Schedule, agents: int, seed: int, round: int, exchange: int = 0
) -> Bool[np.ndarray, "agents agents"]:
    """Whether what agent j sends reaches agent i, ``[i, j]``; one's own always does.

    Args:
      schedule: of the run.
      agents: number of agents.
      seed: of the run.
      round: counted from 1.
      exchange: 0 for the merge of a round, then its gossip steps.
    """
    faults = schedule.faults
    probability = np.zeros((agents, agents))
    if isinstance(faults.message_loss, Mapping):
        for edge, value in faults.message_loss.items():
            probability[edge] = value
    else:
        probability[:] = faults.message_loss
    found = drawn(schedule, seed, round, exchange).random((agents, agents)) >= probability
    for when, to, sender in faults.lost:
        if when == round:
            found[to, sender] = False
    np.fill_diagonal(found, True)
    return found


def stale_messages(
    schedule: Schedule, agents: int, seed: int, round: int
) -> Bool[np.ndarray, "agents agents"]:
    """Whether agent i gets what j sent one merge before, ``[i, j]``; its own is never stale."""
    numbers = drawn(schedule, seed, round, 0)
    numbers.random((agents, agents))  # Those of `arriving`.
    found = numbers.random((agents, agents)) < schedule.faults.stale
    np.fill_diagonal(found, False)
    return found


def without(
    shares: Float[np.ndarray, "agents slots"],
    sources: Int[np.ndarray, "agents slots"],
    usable: Bool[np.ndarray, "agents slots"],
) -> tuple[Int[np.ndarray, "agents slots"], Float[np.ndarray, "agents slots"]]:
    """A mixing matrix in slots, in which some slots cannot be used.

    Their share goes to the agent itself, slot 0; where that cannot be used either, to the other
    slots in proportion. An agent with nothing that it can use keeps what it has.

    Args:
      shares: π by slots, rows that sum to 1.
      sources: who is in each slot.
      usable: of each slot.

    Returns:
      Sources, where an agent stands for whoever cannot be used; shares, whose rows sum to what they
      did.
    """
    total = shares.sum(1)
    kept = np.where(usable, shares, 0.0)
    own = usable[:, 0]
    kept[own, 0] += (total - kept.sum(1))[own]
    rest = kept.sum(1)
    alone = rest <= 0
    kept = kept * np.where(alone, 0.0, total / np.where(alone, 1.0, rest))[:, None]
    kept[alone, 0] = total[alone]
    agents = np.arange(len(sources), dtype=sources.dtype)[:, None]
    return np.where(usable, sources, agents), kept


def matrix_without(
    matrix: Float[np.ndarray, "agents agents"], usable: Bool[np.ndarray, "agents agents"]
) -> Float[np.ndarray, "agents agents"]:
    """The same of a whole mixing matrix: ``usable[i, j]``, whether i can use what j has."""
    agents = np.arange(len(matrix))
    order = np.array([[i, *agents[agents != i]] for i in agents])
    _, kept = without(
        np.take_along_axis(matrix, order, 1), order, np.take_along_axis(usable, order, 1)
    )
    found = np.zeros_like(matrix)
    np.put_along_axis(found, order, kept, 1)
    return found
