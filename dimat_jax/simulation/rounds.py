"""A merge round of a run: what goes into it, and what it leaves behind besides variables."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dimat_jax.algorithms import Exchange, Merge, Merged, MergeRound, Message
from dimat_jax.algorithms.communication import variables_bytes
from dimat_jax.execution.placement import place, to_host
from dimat_jax.merging.average import narrow
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.frames import common_frame
from dimat_jax.merging.merger import Merger
from dimat_jax.simulation.examples import Shards, common_batches, own_batches
from dimat_jax.simulation.parts import Parts
from dimat_jax.simulation.setup import Setup
from dimat_jax.simulation.state import Position, RoundKeys, RunState
from dimat_jax.topology import Topology, Tree, flood, neighbor_slots
from dimat_jax.training.optimizers import with_hyperparams
from dimat_jax.types import Key, Permutations, Variables


def merge_round(
    setup: Setup,
    position: Position,
    shards: Shards,
    keys: RoundKeys,
    part: str,
    graph: Topology,
    among: Topology | None = None,
) -> tuple[MergeRound, list[Batches | Tree]]:
    """Chooses the neighbours and the images of a merge round.

    Args:
      setup: what the run works with.
      position: where the run stands, in the round of this merge.
      shards: the agents' examples.
      keys: of this round.
      part: of the method, ``initial``, ``merge`` or ``final``.
      graph: on which it merges.
      among: the same among agents who are there, on which a network is handed on; None: all are.

    Returns:
      What the merge works with; and a list to which what it asks for is added, to be counted as
      sent.
    """
    config, exchange = setup.config, max(0, position.round - 1)
    sources, weights = neighbor_slots(graph, exchange)
    asked_for: list[Batches | Tree] = []

    def when_asked(make: Callable[[], Any]) -> Callable[[], Any]:
        @functools.cache
        def once() -> Any:
            asked_for.append(make())
            return asked_for[-1]

        return once

    def statistics() -> Batches:
        return statistics_batches(setup, shards, keys.statistics)

    every = config.align_every
    due = exchange == 0 if every == "once" else exchange % every == 0
    recomputed = config.recompute_statistics and "batch_stats" in setup.abstract[0]
    inputs = MergeRound(
        sources=sources,
        weights=weights,
        examples=setup.examples[position.seed],
        matching=when_asked(lambda: matching_batches(setup, shards, keys.matching)),
        statistics=when_asked(statistics) if recomputed else None,
        tree=when_asked(lambda: flood(among or graph)),
        frame=config.merge_frame,
        aligns=due or part != "merge",
        key=keys.alignment,
    )
    return inputs, asked_for


def matching_batches(setup: Setup, shards: Shards, key: Key) -> Batches:
    """The images on which units are compared: own ones, or of all agents."""
    config = setup.config
    if config.matching_data == "shared":
        return common_batches(setup, shards, key, config.matching_images, config.agents)
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
    inputs: MergeRound,
    merged: Merged,
    optimizer: str,
    graph: Exchange | None,
) -> RunState:
    """What belongs to the agents' units starts afresh after a merge, or goes with them.

    Args:
      setup: what the run works with.
      parts: its compiled parts.
      state: after the merge.
      before: the agents' variables before it.
      inputs: what the merge worked with.
      merged: what it gave.
      optimizer: what becomes of the agents' optimizers: fresh, kept or averaged.
      graph: on which the method exchanges something in every step, if it does.
    """
    gossip = list(setup.methods.values())[state.position.method].gossip
    agents, remembered = state.agents, state.method.gossip
    if optimizer == "fresh":
        agents = parts.fresh(agents)
        if gossip and graph and remembered:
            agents, new = parts.gossip(gossip).start(agents, graph)
            remembered = new._replace(turn=remembered.turn)
    elif merged.moved:
        of_units = agents.optimizer, remembered and remembered.method
        for permutations in state.permutations:
            of_units = parts.merger.permute_state(permutations, before, of_units)
        agents = agents._replace(optimizer=of_units[0])
        remembered = remembered and remembered._replace(method=of_units[1])
    if optimizer == "averaged" and merged.weights is not None:
        slots = [] if merged.moved else merged.permutations
        shared = inputs._replace(weights=merged.weights)
        averaged = average_state(parts.merger, shared, before, agents.optimizer, slots)
        agents = agents._replace(optimizer=averaged)
    if setup.config.proximal:
        # A copy, for the agents' own will be donated.
        agents = agents._replace(anchor=jax.tree.map(jnp.copy, agents.variables["params"]))
    if gossip and graph and remembered:
        remembered = parts.gossip(gossip).resume(agents, remembered, graph)
    return state._replace(agents=agents, method=state.method._replace(gossip=remembered))


def optimizer_after(setup: Setup, merge: Merge) -> str:
    """What becomes of the agents' optimizers after a merge."""
    return merge.optimizer or setup.config.optimizer_after_merge


def with_optimizer(setup: Setup, merge: Merge) -> Message:
    """What a merge sends, together with the optimizer's state where that is averaged, too."""
    message = merge.message
    if optimizer_after(setup, merge) != "averaged" or not message.parameters:
        return message
    params = setup.abstract[0]["params"]
    state = jax.eval_shape(setup.optimizer.init, params)
    copies = variables_bytes({"optimizer": state}) // variables_bytes(params)
    return message._replace(parameters=message.parameters + copies)


def average_state(
    merger: Merger,
    inputs: MergeRound,
    variables: Variables,
    state: Any,
    permutations: Sequence[Permutations],
) -> Any:
    """Σ_s w_s P_s of what belongs to the agents' units, as the networks themselves are averaged.

    Args:
      merger: the parts of a merge.
      inputs: neighbours and weights.
      variables: of all agents, before the merge.
      state: like parameters; what is not of floats stays the agent's own.
      permutations: of each slot but the first; empty where nothing is to be aligned.
    """
    own = {"state": state}
    if permutations:
        total = merger.add(None, inputs.weights[:, 0], own)
        for slot, of_slot in enumerate(permutations, 1):
            sources = inputs.sources[:, slot]
            networks, theirs = (merger.gather(x, sources) for x in (variables, own))
            theirs = merger.permute_state(of_slot, networks, theirs)
            total = merger.add(total, inputs.weights[:, slot], theirs)
    else:
        total = merger.average(own, inputs.sources, inputs.weights)
    # The numbers that each agent's optimizer was given are not averaged.
    return with_hyperparams(narrow(total, own)["state"], state)
