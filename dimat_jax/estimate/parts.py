"""The parts of a run on shapes: what `Session` calls, called once each without running."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.algorithms import Merge, MergeRound, exchanges
from dimat_jax.estimate.programs import Program, recorder
from dimat_jax.execution.placement import replicate, shard, stacked
from dimat_jax.execution.timing import Stopwatch
from dimat_jax.merging.average import add_weighted
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import Merger, Repair
from dimat_jax.simulation.examples import Shards, split_evenly
from dimat_jax.simulation.memory import one_agent, remembered
from dimat_jax.simulation.parts import Parts, make_parts
from dimat_jax.simulation.setup import Setup
from dimat_jax.symmetries import permute, random_permutations
from dimat_jax.topology import flood, neighbor_slots
from dimat_jax.training.state import AgentState
from dimat_jax.types import Permutations, Variables

EPOCH, MATCHING, STATISTICS, MIXING = "training epoch", "matching", "statistics", "mixing"
EVALUATION = "evaluation"
Calls = list[Program]


class Dry(NamedTuple):
    """A run on shapes.

    Attributes:
      setup: what it works with, on devices that are described.
      parts: as those of a `dimat_jax.simulation.session.Session`.
      calls: the programs that have been called, in order.
      agents: the shapes of all agents' state, on their devices.
    """

    setup: Setup
    parts: Parts
    calls: Calls
    agents: AgentState


def dry_run(setup: Setup, compiles: bool, options: Mapping[str, Any]) -> Dry:
    """A run on shapes.

    Args:
      setup: what it works with, on devices that are described.
      compiles: whether its parts are compiled when they are first called.
      options: of XLA.
    """
    calls: Calls = []
    parts = make_parts(setup, Stopwatch(compile=recorder(compiles, options, calls)))
    return Dry(setup, parts, calls, stacked(setup.execution, one_agent(setup)))


def called(dry: Dry, part: Callable[[Dry], Any]) -> Calls:
    """The programs that a part calls."""
    before = len(dry.calls)
    part(dry)
    return dry.calls[before:]


def shards_of(dry: Dry, steps: int | None = None) -> Shards:
    """The shapes of the agents' training examples in the rounds.

    Args:
      dry: the run.
      steps: of an epoch; None: all.
    """
    setup, execution = dry.setup, dry.setup.execution
    number = next(iter(setup.shards.values()))[1].shape[1]
    of_one = jax.eval_shape(first_rows, setup.data.train)
    examples = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((execution.all_lanes * number, *x.shape), x.dtype), of_one
    )
    full = setup.epoch_examples[1] // setup.batch_size
    return Shards(shard(execution, examples), number, full if steps is None else steps)


def first_rows(examples: Any) -> Any:
    """The first example."""
    return jax.tree.map(lambda x: x[0], examples)


def steps_of(dry: Dry) -> tuple[int, float]:
    """How many steps of an epoch are called, and how often as many there are in all.

    Where Python loops over steps they are all alike: one will do.
    """
    full = dry.setup.epoch_examples[1] // dry.setup.batch_size
    return (1, float(full)) if dry.setup.execution.sequential else (full, 1.0)


def train(dry: Dry) -> None:
    """An epoch of every agent by itself."""
    shards = shards_of(dry, steps_of(dry)[0])
    dry.parts.train(dry.agents, shards, jax.random.key(0), 0)


def gossip(method: str) -> Callable[[Dry], None]:
    """An epoch of a method that exchanges something in every step."""

    def part(dry: Dry) -> None:
        setup, execution = dry.setup, dry.setup.execution
        record = setup.methods[method].gossip
        assert record is not None
        graph = replicate(execution, exchanges(setup.graphs[method]["gossip"], execution))
        state = shard(execution, remembered(setup, method, dry.agents)["gossip"])
        shards = shards_of(dry, steps_of(dry)[0])
        training = dry.parts.gossip(record).train
        training(dry.agents, state, graph, shards, jax.random.key(0), 0)

    return part


def batches_of(dry: Dry, number: int, shared: bool) -> Batches:
    """The shapes of batches of so many images of each agent's own, or of the same for all."""
    execution, shards = dry.setup.execution, shards_of(dry)
    agents = dry.setup.config.agents
    batches, size = split_evenly(min(number, shards.number * (agents if shared else 1)))
    rows = shard(execution, jax.ShapeDtypeStruct((execution.all_lanes, batches, size), jnp.int32))
    if not shared:
        return Batches(rows, shards.examples)
    examples = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batches * size, *x.shape[1:]), x.dtype), shards.examples
    )
    return Batches(rows, replicate(execution, examples), shared=True)


def match(sources: int) -> Callable[[Dry], None]:
    """Every agent's units compared with those of so many others, by their activations."""

    def part(dry: Dry) -> None:
        config, variables = dry.setup.config, dry.agents.variables
        batches = batches_of(dry, config.matching_images, config.matching_data == "shared")
        dry.parts.merger.correlate(variables, [variables] * sources, batches)

    return part


def statistics(dry: Dry) -> None:
    """Normalisation statistics of every agent, recomputed."""
    config = dry.setup.config
    batches = batches_of(dry, config.statistics_images, config.statistics_data == "shared")
    dry.parts.merger.recompute(dry.agents.variables, batches)


def mix(dry: Dry) -> None:
    """A neighbour of every agent, fetched and added to what is averaged."""
    variables, agents = dry.agents.variables, dry.setup.config.agents
    total = dry.parts.merger.add(None, np.ones(agents, np.float32), variables)
    fetched = dry.parts.merger.gather(variables, np.zeros(agents, np.int32))
    dry.parts.merger.add(total, np.ones(agents, np.float32), fetched)


def gather(dry: Dry) -> None:
    """A neighbour of every agent, fetched."""
    dry.parts.merger.gather(dry.agents.variables, np.zeros(dry.setup.config.agents, np.int32))


def add(dry: Dry) -> None:
    """Something added to what is averaged."""
    total, weights = dry.agents.variables, np.ones(dry.setup.config.agents, np.float32)
    dry.parts.merger.add(total, weights, dry.agents.variables)


def reorder(dry: Dry) -> None:
    """Every agent's units in another order."""
    dry.parts.merger.permute(permutations_of(dry), dry.agents.variables)


def permutations_of(dry: Dry) -> Any:
    """The shapes of every agent's permutations."""
    drawn = functools.partial(random_permutations, symmetries=dry.setup.symmetries)
    return stacked(dry.setup.execution, jax.eval_shape(drawn, jax.random.key(0)))


def evaluate(dry: Dry) -> None:
    """Every agent on the test examples of the evaluations along the way."""
    dry.parts.evaluate(dry.agents.variables, dry.parts.tests)


def merge_counts(dry: Dry, method: str, name: str, aligns: bool = True) -> Counter[str]:
    """How often a merge calls the parts of a `Merger`, by their names.

    Args:
      dry: the run.
      method: the name of the method.
      name: which of its merges.
      aligns: whether in a round in which units are compared.
    """
    setup, counts = dry.setup, Counter()
    record, graph = setup.methods[method].parts()[name], setup.graphs[method][name]
    assert isinstance(record, Merge)
    merger = counting_merger(dry, counts)
    sources, weights = neighbor_slots(graph, 0)
    unused = batches_of(dry, 2, False)
    inputs = MergeRound(
        sources=sources,
        weights=weights,
        examples=next(iter(setup.examples.values())),
        matching=lambda: unused,
        statistics=(lambda: unused) if recomputes(setup) else None,
        tree=lambda: flood(graph),
        frame=setup.config.merge_frame,
        aligns=aligns,
        key=jax.random.key(0),
    )

    def apply(variables: Variables, state: Any) -> Any:
        return record.apply(merger, variables, state, inputs).variables

    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((setup.config.agents, *x.shape[1:]), x.dtype),
        dry.agents.variables,
    )
    jax.eval_shape(apply, variables, jax.eval_shape(record.init, variables))
    return counts


def recomputes(setup: Setup) -> bool:
    """Whether the run recomputes normalisation statistics, if the model has any."""
    return setup.config.recompute_statistics and "batch_stats" in setup.abstract[0]


def counting_merger(dry: Dry, counts: Counter[str]) -> Merger:
    """A `Merger` of all agents on one device that compares nothing, and counts its calls."""
    symmetries, agents = dry.setup.symmetries, dry.setup.config.agents

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return call

    def some() -> Permutations:
        return jax.vmap(lambda key: random_permutations(key, symmetries))(
            jax.random.split(jax.random.key(0), agents)
        )

    def by_activations(target: Variables, sources: Any, batches: Batches) -> list[Permutations]:
        counts[f"{MATCHING} {len(sources)}"] += 1
        return [some() for _ in sources] if symmetries.groups else []

    def elsewhere(*args: Any) -> list[Permutations]:
        number = len(args[1]) if len(args) == 3 else 1  # On the host, which has no roofline here.
        return [some() for _ in range(number)] if symmetries.groups else []

    def add_all(total: Any, weights: Any, variables: Any) -> Any:
        weights = jnp.asarray(weights, jnp.result_type(float))
        return jax.vmap(add_weighted)(total, weights, variables)

    gather = counted("gather", lambda variables, sources: variables)
    add = counted("add", add_all)

    def average(variables: Any, sources: Any, weights: Any) -> Any:
        total = add(None, weights[:, 0], variables)
        for slot in range(1, sources.shape[1]):
            total = add(total, weights[:, slot], gather(variables, sources[:, slot]))
        return total

    return Merger(
        symmetries=symmetries,
        match={"activations": by_activations, "weights": elsewhere, "universe": elsewhere},
        correlate=lambda *_: [],
        gather=gather,
        gather_slots=lambda variables, sources: [gather(variables, s) for s in sources.T],
        average=average,
        permute=counted("permute", jax.vmap(functools.partial(permute, symmetries))),
        compose=lambda permutations, ancestors: permutations,
        permute_state=lambda permutations, variables, state: state,
        add=add,
        recompute=counted(STATISTICS, lambda variables, batches: variables),
        repair=Repair(
            counted(STATISTICS, lambda variables, batches: {}),
            counted(STATISTICS, lambda variables, goal, batches: variables),
        ),
    )
