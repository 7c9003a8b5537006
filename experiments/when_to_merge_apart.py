"""How far agents are apart: in their parameters, and in what they predict.

What `experiments.when_to_merge` measures before merges. Nothing is counted as sent for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dimat_jax.execution.forms import Update
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState
    from dimat_jax.types import Task, Variables

Probe = Callable[["RunState"], dict[str, Any]]
"""``(state) -> measured``, see `make_probe`."""


class Predictions(NamedTuple):
    """What one agent predicts, and the next batch of which it does.

    Attributes:
      labels: int32 ``[batches, batch]``.
      batch: int32.
    """

    labels: Any
    batch: Any


def make_probe(session: "Session") -> Probe:
    """Builds what measures agents where they stand; the state stays as it is.

    Returns:
      A function of a state, which gives: ``accuracy``, the mean over agents; ``disagreement``, the
      share of test images on which two agents differ, in the mean over pairs; ``distance``, from
      consensus, and ``distance_aligned``, the same once every agent's units are in the order of
      agent 0's; ``norm`` of their parameters, √(1/n Σ_i ‖x_i‖²); ``train_loss`` of the last epoch,
      None before any.
    """
    from dimat_jax.execution.placement import to_host

    predict = predictor(session)
    tests = session.parts.tests
    counted = tests.weights > 0
    labels = tests.examples["labels"][counted]

    def probe(state: "RunState") -> dict[str, Any]:
        variables = state.agents.variables
        predicted = predict(variables)[:, counted]
        distance = session.parts.consensus_distance
        return {
            "accuracy": float((predicted == labels).mean()),
            "disagreement": disagreement(predicted),
            "distance": float(distance(variables)),
            "distance_aligned": float(distance(in_one_frame(session, state))),
            "norm": norm(to_host(session.setup.execution, variables), session.setup.config.agents),
            "train_loss": state.train_loss,
        }

    return probe


def predictor(session: "Session") -> "Callable[[Variables], np.ndarray]":
    """Builds ``(variables) -> labels [agents, batches, batch]`` that agents give test images."""
    import jax.numpy as jnp

    from dimat_jax.execution.forms import repeat
    from dimat_jax.execution.placement import replicate, shard, to_host
    from dimat_jax.simulation.parts import prepared

    setup, tests = session.setup, session.parts.tests
    execution = setup.execution
    update = predict_update(setup.task, prepared(setup.data).always)
    run = repeat(execution, update, session.parts.stopwatch)

    def predict(variables: "Variables") -> np.ndarray:
        lanes, shape = execution.all_lanes, np.shape(tests.weights)
        none = Predictions(jnp.zeros((lanes, *shape), jnp.int32), jnp.zeros(lanes, jnp.int32))
        found = run(shard(execution, none), variables, replicate(execution, tests), shape[0])
        return to_host(execution, found).labels

    return predict


def predict_update(task: "Task", prepare: Callable[..., Any]) -> "Update":
    """Adds an agent's predictions of one batch to those it has made, see `Predictions`."""
    import jax.numpy as jnp

    from dimat_jax.datasets.data import take

    def update(made: Predictions, variables: "Variables", resident: Any) -> Predictions:
        outputs = task.outputs(variables, prepare(take(resident.examples, made.batch)))
        labels = outputs.argmax(-1).astype(jnp.int32)
        return Predictions(made.labels.at[made.batch].set(labels), made.batch + 1)

    return update


def disagreement(predicted: np.ndarray) -> float:
    """The share of examples on which two agents differ, in the mean over pairs of them.

    Args:
      predicted: ``[agents, examples]``.
    """
    agents = len(predicted)
    differ = (predicted[:, None] != predicted).mean(-1)
    return float(differ.sum() / max(1, agents * (agents - 1)))


def norm(variables: "Variables", agents: int) -> float:
    """The length of an agent's parameters: √(1/n Σ_i ‖x_i‖²).

    On the host: sums of sharded arrays one after the other would each be a program that waits for
    all devices, and many of them at once can wait for each other.

    Args:
      variables: stacked ``[agents, ...]``, masked lanes after them; arrays of NumPy.
      agents: how many there are.
    """
    import jax

    squares = (np.sum(np.square(x[:agents])) for x in jax.tree.leaves(variables["params"]))
    return float(np.sqrt(sum(squares) / agents))


def in_one_frame(session: "Session", state: "RunState") -> "Variables":
    """The agents' networks, each with its units in the order of agent 0's, by their activations."""
    from dimat_jax.algorithms.merging import by_activations, reference_frame
    from dimat_jax.simulation.rounds import merge_round
    from dimat_jax.simulation.state import round_keys
    from dimat_jax.topology import fully_connected

    setup, merger = session.setup, session.parts.merger
    keys = round_keys(state.keys, state.position.round + 1)
    graph = fully_connected(setup.config.agents)
    shards = session.shards_of(state)
    inputs, _ = merge_round(setup, state.position, shards, keys, "initial", graph)
    variables = state.agents.variables
    for permutations in reference_frame(by_activations)(merger, variables, inputs):
        variables = merger.permute(permutations, variables)
    return variables
