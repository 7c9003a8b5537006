"""What is measured of `dimat_jax`: the parts that a run itself calls, on data of one's own."""

import collections
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import dimat_jax as dj
from benchmarks.harness import peak_memory, select_backend
from benchmarks.work import NUM_CLASSES, Work, noise
from dimat_jax.config import Config
from dimat_jax.simulation.session import Session, session_of
from dimat_jax.simulation.setup import Setup, prepare
from dimat_jax.simulation.state import RunState
from dimat_jax.symmetries import read_sites


def start(work: Work) -> None:
    """Chooses JAX's backend and its devices; call it before anything else uses JAX."""
    select_backend(work.backend)
    dj.prepare_devices(work.agents)


def configuration(work: Work, **options: Any) -> Config:
    """The run that a piece of work is part of."""
    given: dict[str, Any] = dict(
        agents=work.agents,
        topology="disconnected",
        augmentation="flip_and_crop",
        examples_per_agent=None,
        model=work.model,
        width=work.width,
        optimizer="momentum",
        learning_rate=work.learning_rate,
        batch_size=work.batch,
        methods=("dimat",),
    )
    return Config(**{**given, **options})


class Population(NamedTuple):
    """A run that is ready to train.

    Attributes:
      session: the run.
      state: DIMAT's before its first round, from random initial weights; each step replaces it.
    """

    session: Session
    state: RunState


def prepare_run(work: Work, tests: int = 64, **options: Any) -> Setup:
    """What a run on random images works with: as many as one epoch of every agent takes."""
    dataset = dj.Dataset(*noise(work.images), *noise(tests, seed=1), NUM_CLASSES, "noise")
    return prepare(configuration(work, **options), dataset=dataset)


def make_population(work: Work, tests: int = 64, **options: Any) -> Population:
    """Prepares a run on random images, up to its agents' initial state.

    Args:
      work: the agents, their model and their batches.
      tests: number of test images.
      **options: further fields of `Config`.
    """
    session = session_of(prepare_run(work, tests, **options))
    # The agents from whom other methods would start are let go: one population is measured.
    state = session.begin(session.start(), "dimat")._replace(pretrained=None)
    return Population(session, jax.block_until_ready(state))


def epochs(population: Population) -> Callable[[], None]:
    """A block that trains all agents for the next epoch and waits for it, as a run does."""
    session, state = population
    shards, agents, epoch = session.shards_of(state), state.agents, 0

    def block() -> None:
        nonlocal agents, epoch
        agents = session.parts.train(agents, shards, state.keys.order, epoch)
        jax.block_until_ready(agents)
        epoch += 1

    return block


def step_operations(work: Work) -> float:
    """Floating-point operations of the gradient of one image's loss, as XLA counts them."""
    model = dj.models.make(work.model, num_classes=NUM_CLASSES, width=work.width)
    images = jax.ShapeDtypeStruct((work.batch, *noise(1)[0].shape[1:]), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def gradient(params: Any, rest: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            return model.apply({**rest, "params": params}, x, train=True)[0].sum()

        return jax.grad(loss)(params)

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return operations(gradient, variables["params"], rest, images) / work.batch


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a function, counted by XLA before it optimises anything."""
    cost = jax.jit(function).lower(*arguments).cost_analysis()
    if cost is None:
        raise RuntimeError(f"This version of JAX does not count the operations of {function}.")
    return float(cost["flops"])


def rounds(
    work: Work, topology: str, share: float, tests: int, measured_tests: int
) -> Callable[[], dict[str, float]]:
    """A block that goes through one round of DIMAT as a run does, and says where its time went.

    Args:
      work: the agents, and an epoch of their training.
      topology: the graph; fully connected, all merge in agent 0's frame, as published.
      share: of the epoch's steps that are measured.
      tests: test images of an evaluation.
      measured_tests: those of them that are measured.

    Returns:
      A function that returns the seconds by part of one whole round.
    """
    frame = "reference" if topology == "fully_connected" else "own"
    options: dict[str, Any] = dict(
        topology=topology, merge_frame=frame, align_every=1, test_examples=None
    )
    session, state = make_population(work, tests=measured_tests, **options)
    shards = session.shards_of(state)
    steps = max(1, round(share * shards.steps))
    scales = {"train": work.steps / steps, "evaluate": tests / measured_tests}
    session = session._replace(shards=lambda *_: shards._replace(steps=steps))

    def block() -> dict[str, float]:
        nonlocal state
        session.parts.stopwatch.take()
        state = session.train(session.merge(state))
        seconds = session.measure(state)["seconds"]
        return {part: scales.get(part, 1.0) * spent for part, spent in seconds.items()}

    return block


def merges(work: Work, topology: str, method: str = "dimat") -> Callable[[], dict[str, Any]]:
    """A block that merges all agents once by a method, as a run does.

    Returns:
      A function that returns the seconds by part, and the peak of memory before there were agents.
    """
    # Every merge aligns anew: what is measured is never skipped.
    options: dict[str, Any] = dict(topology=topology, merge_frame="own", align_every=1)
    options |= dict(methods=(method,))
    session = session_of(prepare_run(work, optimizer="sgd", **options))
    before = peak_memory()
    state = session.begin(session.start(), method)._replace(pretrained=None)
    session.shards_of(state)

    def block() -> dict[str, Any]:
        nonlocal state
        session.parts.stopwatch.take()
        state = jax.block_until_ready(session.merge(state))
        return {"seconds": session.parts.stopwatch.take(), "before": before}

    return block


def count_merge(work: Work, topology: str) -> dict[str, Any]:
    """Counts what one merge has to do, from shapes alone.

    Returns:
      Operations of matching (each agent's own forward pass and one of each neighbour, and a product
      of activations for each edge and read site) and of recomputing statistics (one forward pass);
      bytes that mixing has to read (an agent's own network and each neighbour's) and write; the
      number of assignments of each size; bytes of one network.
    """
    setup = prepare_run(work, topology=topology)
    variables, one = setup.abstract
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((work.batch, *x.shape[1:]), x.dtype), one)
    edges = int(np.count_nonzero(setup.topology.mixing_matrix(0)) - work.agents)
    sites = jax.eval_shape(read_sites(setup.symmetries, setup.task.outputs), variables, batch)
    shapes = [
        (x.size // units, units)
        for key, of_key in sites.items()
        for x in of_key
        for units in [math.prod(setup.symmetries.groups[group].size for group in key)]
    ]
    forward = operations(setup.task.outputs, variables, batch)
    network = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(variables))
    sizes = collections.Counter(group.size for group in setup.symmetries.groups.values())
    correlations = sum(2.0 * rows * units**2 for rows, units in shapes)
    return {
        "match_operations": (work.agents + edges) * forward + edges * correlations,
        "statistics_operations": work.agents * forward * ("batch_stats" in variables),
        "mix_bytes": float((2 * work.agents + edges) * network),
        "assignments": {size: edges * number for size, number in sizes.items()},
        "network_bytes": network,
        "edges": edges,
    }
