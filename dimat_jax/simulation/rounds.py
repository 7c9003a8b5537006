"""A merge round of a run: what goes into it, and what it leaves behind besides variables."""

import functools
from collections.abc import Callable

from dimat_jax.algorithms import Exchange, MergeRound
from dimat_jax.execution.placement import place, to_host
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.frames import common_frame
from dimat_jax.simulation.images import Shards, common_batches, own_batches
from dimat_jax.simulation.parts import Parts
from dimat_jax.simulation.setup import Setup
from dimat_jax.simulation.state import RoundKeys, RunState
from dimat_jax.topology import Topology, neighbor_slots
from dimat_jax.types import Key, Permutations, Variables


def merge_round(
    setup: Setup, shards: Shards, keys: RoundKeys, graph: Topology, round: int
) -> tuple[MergeRound, list[Batches]]:
    """Chooses the neighbours and the images of a merge round, counted from 1.

    Returns:
      What the merge works with; and a list to which images are added when the merge asks for them.
    """
    config = setup.config
    sources, weights = neighbor_slots(graph, round - 1)
    drawn: list[Batches] = []

    def when_asked(draw: Callable[[Setup, Shards, Key], Batches], key: Key) -> Callable:
        @functools.cache
        def once() -> Batches:
            drawn.append(draw(setup, shards, key))
            return drawn[-1]

        return once

    recomputed = config.recompute_statistics and "batch_stats" in setup.abstract[0]
    inputs = MergeRound(
        sources=sources,
        weights=weights,
        matching=when_asked(matching_batches, keys.matching),
        statistics=when_asked(statistics_batches, keys.statistics) if recomputed else None,
        first_frame=config.merge_frame == "first",
        key=keys.alignment,
    )
    return inputs, drawn


def matching_batches(setup: Setup, shards: Shards, key: Key) -> Batches:
    """The images on which units are compared: own ones, agent 0's, or of all agents."""
    config = setup.config
    if config.matching_data == "shared":
        return common_batches(setup, shards, key, config.matching_images, config.agents)
    if config.merge_frame == "first":
        return common_batches(setup, shards, key, config.matching_images, 1)
    return own_batches(setup, shards, key, config.matching_images)


def statistics_batches(setup: Setup, shards: Shards, key: Key) -> Batches:
    """The images from which a round's statistics are recomputed: own ones, or of all agents."""
    config = setup.config
    if config.statistics_data == "shared":
        return common_batches(setup, shards, key, config.statistics_images, config.agents)
    return own_batches(setup, shards, key, config.statistics_images)


def frame_after(
    setup: Setup, state: RunState, inputs: MergeRound, moved: bool
) -> Permutations | None:
    """`RunState.frame` after a merge, whose permutations the state has.

    Args:
      setup: what the run works with.
      state: after the merge.
      inputs: what the merge worked with.
      moved: whether it brought all agents into one frame.
    """
    if moved:
        return {}
    if not state.permutations:
        return state.frame
    used = to_host(setup.execution, state.permutations)
    found = common_frame(setup.symmetries, inputs.sources, used)
    # A round of a time-varying graph need not reach everyone; earlier ones then still hold.
    return state.frame if found is None else place(setup.execution, found)


def state_after(
    setup: Setup,
    parts: Parts,
    state: RunState,
    before: Variables,
    moved: bool,
    graph: Exchange | None,
) -> RunState:
    """What belongs to the agents' units starts afresh after a merge, or goes with them.

    Args:
      setup: what the run works with.
      parts: its compiled parts.
      state: after the merge.
      before: the agents' variables before it.
      moved: whether the agents' own units are in another order now.
      graph: on which the method exchanges something in every step, if it does.
    """
    gossip = list(setup.methods.values())[state.position.method].gossip
    agents, remembered = state.agents, state.method.gossip
    if setup.config.optimizer_after_merge == "fresh":
        agents = parts.fresh(agents)
        if gossip and graph and remembered:
            agents, new = parts.gossip(gossip).start(agents, graph)
            remembered = new._replace(turn=remembered.turn)
    elif moved:
        of_units = agents.optimizer, remembered and remembered.method
        for permutations in state.permutations:
            of_units = parts.merger.permute_state(permutations, before, of_units)
        agents = agents._replace(optimizer=of_units[0])
        remembered = remembered and remembered._replace(method=of_units[1])
    if gossip and graph and remembered:
        remembered = parts.gossip(gossip).resume(agents, remembered, graph)
    return state._replace(agents=agents, method=state.method._replace(gossip=remembered))
