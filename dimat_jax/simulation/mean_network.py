"""The mean of all agents' networks, as if they were merged into one: how good would it be?

A counterfactual (arXiv 2507.06542): it changes nothing in the run, and nothing is sent for it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dimat_jax.datasets.data import examples_of
from dimat_jax.execution.placement import AGENTS, replicate, shard, to_host
from dimat_jax.execution.timing import Stopwatch, compiled
from dimat_jax.merging.batches import Batches
from dimat_jax.simulation.setup import Setup
from dimat_jax.training.evaluation import Score, Tests, zero_score
from dimat_jax.types import Variables


def mean_network(agents: int, variables: Variables) -> Variables:
    """The plain mean of all agents' networks, in every lane.

    Args:
      agents: how many lanes hold one of their own.
      variables: stacked ``[lanes, ...]``; leaves that are not floats stay as they are.
    """

    def mean(x: Any) -> Any:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.broadcast_to(x[:agents].mean(0), x.shape) if floating else x

    return jax.tree.map(mean, variables)


def mean_evaluation(
    setup: Setup,
    recompute: Callable[[Variables, Batches], Variables],
    evaluating: Callable[..., Any],
    tests: Tests,
    stopwatch: Stopwatch,
) -> Callable[[Variables, Batches], Score]:
    """Builds ``(variables, pool) -> score`` of the mean network, on the host.

    All lanes hold the same network, and each works on a part of the test examples.

    Args:
      setup: what the run works with.
      recompute: see `dimat_jax.merging.merger.Merger`.
      evaluating: the lifted `dimat_jax.training.evaluation.evaluate_update`, repeated.
      tests: test examples in batches.
      stopwatch: gets the compile time.
    """
    execution, config = setup.execution, setup.config
    mean_of_all = jax.jit(
        functools.partial(mean_network, execution.agents),
        out_shardings=NamedSharding(execution.mesh, AGENTS),
    )
    dispatched = compiled(mean_of_all, stopwatch)

    def averaging(variables: Variables) -> Variables:
        # It exchanges something: alone, as `dimat_jax.execution.forms.exchange` has it, and why.
        return jax.block_until_ready(dispatched(jax.block_until_ready(variables)))

    # As many batches for each agent; the last may be empty, of no weight.
    batches = examples_of(tests)
    each = -(-batches // execution.agents)
    missing = each * execution.agents - batches
    examples = jax.tree.map(
        lambda x: np.concatenate([x, np.repeat(x[:1], missing, 0)]), tests.examples
    )
    weights = np.concatenate([tests.weights, np.zeros((missing, *tests.weights.shape[1:]))])
    parts = Tests(examples, weights.astype(tests.weights.dtype))
    first = np.asarray(each * execution.agent_of_lane, np.int32)

    def evaluate(variables: Variables, pool: Batches) -> Score:
        mean = averaging(variables)
        if config.recompute_statistics and "batch_stats" in mean:
            # Each lane has the statistics of its own part of the pool: their mean is everyone's.
            mean = averaging(recompute(mean, pool))
        score = zero_score(execution.all_lanes, setup.metrics, setup.classes)
        score = shard(execution, score._replace(batch=jnp.asarray(first)))
        score = evaluating(score, mean, replicate(execution, parts), each)
        return jax.tree.map(lambda x: x.sum(0), to_host(execution, score))

    return evaluate
