"""How many networks can be merged into one, and does it matter in which order?

    python -m experiments.scaling_agents --preset cpu

Agents train apart, as many epochs each, and are then averaged once: as they are, their units
matched with one reference network by activations or by weights, or all of them brought into one
universe; with and without REPAIR. Once all agents together have as many images whatever their
number, once each of them has. Networks are also merged one after the other into a running average,
in many orders.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dimat_jax.config import Config
from experiments import grid, studies

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from dimat_jax.algorithms import MergeRound
    from dimat_jax.algorithms.merging import Align
    from dimat_jax.datasets import Dataset
    from dimat_jax.merging.batches import Batches
    from dimat_jax.simulation.session import Session
    from dimat_jax.simulation.state import RunState
    from dimat_jax.types import Variables

NAME = "scaling_agents"
UNIVERSE = "cycle-consistent"
"""What `experiments.techniques.frames` calls it."""
TOTAL, EACH = "fixed in all", "fixed for each"
CORRECTIONS = ("none", "REPAIR")
"""What is done to a merged network. Where it has statistics of a normalisation, they are recomputed
in both."""
RUNNING, AT_ONCE = "one after the other", "all at once"


class Setting(NamedTuple):
    """How many agents, and what of the data does not depend on it: `TOTAL` or `EACH`."""

    agents: int
    data: str


class Study(NamedTuple):
    """A preset.

    Attributes:
      base: what all cells share.
      agents: numbers of them.
      total: training images of all agents together, where that is fixed.
      each: training images of each, where that is fixed.
      seeds: of settings of up to `many` agents.
      many: above so many, there are fewer seeds.
      seeds_of_many: how many then.
      most_universe: up to so many agents are brought into one universe, which is found on the host,
        one network after the other.
      ordered: how units are compared → numbers of agents that are merged in several orders, with
        as many orders as agents.
      tests: of the test images accuracies are of.
    """

    base: Config
    agents: tuple[int, ...]
    total: int
    each: int
    seeds: int
    many: int
    seeds_of_many: int
    most_universe: int
    ordered: Mapping[str, tuple[int, ...]]
    tests: int


CPU = Config(
    dataset="cifar10",
    topology="fully_connected",
    augmentation="none",
    model="mlp",
    width=0.25,
    optimizer="adam",
    schedule="cosine",
    batch_size=24,
    learning_rate=2e-3,
    pretrain_epochs=12,
    rounds=0,
    methods=("local_only",),
    merged_every=0,
    matching_images=512,
    statistics_images=256,
    test_examples=None,
)
STUDIES = {
    "cpu": Study(
        CPU,
        agents=(2, 4, 8, 16, 32, 64, 128, 256),
        total=24_576,
        each=192,
        seeds=3,
        many=64,
        seeds_of_many=3,
        most_universe=16,
        ordered={"activation matching": (4, 16, 32), "weight matching": (4, 16)},
        tests=2_000,
    ),
    "smoke": Study(
        dataclasses.replace(
            CPU, dataset="digits", width=0.1, batch_size=20, pretrain_epochs=3, matching_images=32
        ),
        agents=(2, 4),
        total=320,
        each=80,
        seeds=2,
        many=2,
        seeds_of_many=1,
        most_universe=4,
        ordered={"activation matching": (4,), "weight matching": (4,)},
        tests=100,
    ),
}


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.scaling_agents import picture, report

    prepare_devices(max(study.agents))
    dataset = grid.load_data(study.base.dataset, options.data_dir, study.tests)

    @functools.lru_cache(maxsize=1)
    def tools(setting: Setting) -> Tools:
        return tools_of(study, setting, dataset)

    rows = []
    for setting in settings_of(study):
        for seed in range(seeds_of(study, setting)):
            found = studies.cell(
                folder,
                f"{setting.agents}-{setting.data.replace(' ', '-')}-{seed}",
                described(study, setting, seed),
                lambda setting=setting, seed=seed: one_thread(
                    lambda: cell(study, setting, tools(setting), seed)
                ),
            )
            rows += [{**row, **setting._asdict(), "seed": seed} for row in found]
    return report(study, dataset.name, rows), picture(rows)


def one_thread(function: Callable[[], studies.Rows]) -> studies.Rows:
    """Calls a function while NumPy's products take one thread each.

    Matching weights is thousands of small products, whose threads would mostly wait for each other
    where others use the machine, too (0.46 s instead of 0.02 a pair, of 64 units a layer).
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        return function()


def settings_of(study: Study) -> list[Setting]:
    """All of them; one after the other those of as many agents, which share compilations."""
    return [Setting(agents, data) for agents in study.agents for data in (TOTAL, EACH)]


def seeds_of(study: Study, setting: Setting) -> int:
    """How many seeds a setting has."""
    return study.seeds if setting.agents <= study.many else study.seeds_of_many


def images_of(study: Study, setting: Setting) -> int:
    """Training images of an agent."""
    return study.total // setting.agents if setting.data == TOTAL else study.each


def config_of(study: Study, setting: Setting) -> Config:
    """The run of a setting, with all its seeds."""
    return dataclasses.replace(
        study.base,
        agents=setting.agents,
        examples_per_agent=images_of(study, setting),
        seeds=tuple(range(seeds_of(study, setting))),
    )


def ordered_by(study: Study, setting: Setting) -> list[str]:
    """How units are compared in merges in several orders; nothing where there are none."""
    if setting.data != EACH:
        return []
    return [name for name, agents in study.ordered.items() if setting.agents in agents]


def described(study: Study, setting: Setting, seed: int) -> dict[str, Any]:
    """All that decides the numbers of a cell."""
    config = dataclasses.replace(config_of(study, setting), seeds=(seed,))
    return {
        "config": grid.plain_of(config),
        "tests": study.tests,
        "universe": setting.agents <= study.most_universe,
        "ordered": ordered_by(study, setting),
    }


# What is compiled for a number of agents ---------------------------------------------------------


class Tools(NamedTuple):
    """What all seeds of a setting share.

    Attributes:
      session: that trains the agents.
      mean: ``(tree) -> tree``: the mean of all agents, in every lane.
      variances: ``(variables, examples) -> [[lanes, units]]``, on the host: of the activations of
        each group's units, in the order of the network.
    """

    session: "Session"
    mean: "Callable[[Any], Any]"
    variances: "Callable[[Variables, Any], list[Any]]"


def tools_of(study: Study, setting: Setting, dataset: "Dataset") -> Tools:
    """Makes them; each is compiled when it is first used."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    import dimat_jax as dj
    from dimat_jax.execution.placement import AGENTS
    from dimat_jax.simulation.mean_network import mean_network
    from dimat_jax.simulation.parts import prepared

    session = dj.make_session(config_of(study, setting), dataset=dataset)
    setup, of_agents = session.setup, NamedSharding(session.setup.execution.mesh, AGENTS)
    read = dj.read_activations(setup.symmetries, setup.task.outputs)
    always = prepared(setup.data).always

    def variances(variables: "Variables", examples: Any) -> list[Any]:
        def of_site(x: Any) -> Any:
            return x.reshape(-1, x.shape[-1]).var(0)

        sites = read(variables, always(examples)).values()
        return [jnp.stack([of_site(x) for x in of_group]).mean(0) for of_group in sites]

    mean = jax.jit(functools.partial(mean_network, setting.agents), out_shardings=of_agents)
    of_all = jax.jit(jax.vmap(variances, in_axes=(0, None)))
    # Each waits: devices that share a few threads may wait for each other for ever where two
    # programs in which they exchange something are under way.
    return Tools(
        session,
        lambda tree: jax.block_until_ready(mean(tree)),
        lambda variables, examples: jax.device_get(of_all(variables, examples)),
    )


# A cell -------------------------------------------------------------------------------------------


def cell(study: Study, setting: Setting, tools: Tools, seed: int) -> studies.Rows:
    """Trains the agents of a seed, and merges them in every way.

    Returns:
      A row of ``kind`` alone, with the agents' mean ``accuracy``, 0 to 1, and ``loss``; for each
      technique and correction one of kind merged, see `merged_rows`; and where there are several
      orders those of kind order, see `order_rows`.
    """
    from dimat_jax.algorithms.merging import by_activations, by_weights
    from experiments.techniques import frames, scores

    session = tools.session
    state = trained(session, seed)
    variables, common = state.agents.variables, common_examples(session, state)
    round = round_of(session, state)
    accuracies, losses = scores(session, variables)
    rows = [{"kind": "alone", "accuracy": float(accuracies.mean()), "loss": float(losses.mean())}]
    # Whatever the order of its units, a network has as much variance.
    parents = [x.mean() for x in tools.variances(variables, common.examples)]
    for name, frame in frames(session.setup.symmetries.groups).items():
        if name == UNIVERSE and setting.agents > study.most_universe:
            continue
        aligned = variables
        for permutations in [] if frame is None else frame(session.parts.merger, variables, round):
            aligned = session.parts.merger.permute(permutations, aligned)
        found = merged_rows(tools, aligned, parents, common, seed)
        rows += [{"method": name, **row} for row in found]
    # The same images for all, so that nothing but the order differs.
    round = round._replace(matching=lambda: common)
    aligns = {"activation matching": by_activations, "weight matching": by_weights}
    for name in ordered_by(study, setting):
        found = order_rows(session, variables, round, aligns[name], seed)
        rows += [{"method": name, **row} for row in found]
    return rows


def trained(session: "Session", seed: int) -> "RunState":
    """The agents of a seed after their training, each by itself."""
    state = session.start(seed)
    for _ in range(session.setup.config.pretrain_epochs):
        state = session.train(state)
    return session.recompute(state)


def round_of(session: "Session", state: "RunState") -> "MergeRound":
    """What a merge of all trained agents works with: each compares units on its own images."""
    from dimat_jax.simulation.rounds import merge_round
    from dimat_jax.simulation.state import round_keys

    setup, shards, keys = session.setup, session.shards_of(state), round_keys(state.keys, 1)
    return merge_round(setup, state.position, shards, keys, "final", setup.topology)[0]


def common_examples(session: "Session", state: "RunState") -> "Batches":
    """Training images of all agents, the same for all, on which variances are measured."""
    from dimat_jax.simulation.examples import common_batches
    from dimat_jax.simulation.state import round_keys

    config, key = session.setup.config, round_keys(state.keys, 1).matching
    shards = session.shards_of(state)
    return common_batches(session.setup, shards, key, config.statistics_images, config.agents)


def merged_rows(
    tools: Tools,
    aligned: "Variables",
    parents: "Sequence[np.ndarray]",
    common: "Batches",
    seed: int,
) -> studies.Rows:
    """Merges all agents into one network.

    Args:
      tools: of as many agents.
      aligned: all agents, their units in the order in which they are averaged.
      parents: for each hidden layer the variance of the agents' units, in the mean over both.
      common: on which variances are measured, and which REPAIR takes.
      seed: of the agents.

    Returns:
      For each correction its ``accuracy`` and ``loss``, and ``variance``: for each hidden layer
      that of its units, in the mean, over that of its parents.
    """
    import jax

    from dimat_jax.training.evaluation import values_of

    parts = tools.session.parts
    merger, pool = parts.merger, tools.session.pools(seed, 0)
    merged = tools.mean(aligned)
    if "batch_stats" in merged:
        merged = merger.recompute(merged, common)
    goal = tools.mean(merger.repair.read(aligned, common))
    networks = {"none": merged, "REPAIR": merger.repair.correct(merged, goal, common)}
    rows = []
    for correction, network in networks.items():
        # All lanes hold this network, and it is their mean.
        measured = values_of(parts.evaluate_mean(network, pool))
        first = jax.tree.map(lambda x: x[:1], jax.device_get(network))
        children = tools.variances(first, common.examples)
        rows.append(
            {
                "kind": "merged",
                "correction": correction,
                "accuracy": float(measured["accuracy"]),
                "loss": float(measured["loss"]),
                "variance": [
                    float(child.mean() / parent)
                    for child, parent in zip(children, parents, strict=True)
                ],
            }
        )
    return rows


def order_rows(
    session: "Session", variables: "Variables", round: "MergeRound", align: "Align", seed: int
) -> studies.Rows:
    """Merges all agents in as many random orders as there are agents, each beginning with another.

    Returns:
      For each way and correction the merged networks' ``accuracies`` and ``losses``, by order. In
      one way each network is aligned to the average of those before it, in the other to the first.
    """
    import numpy as np

    from experiments.techniques import scores

    agents = session.setup.config.agents
    rng = np.random.default_rng(seed)
    orders = np.array(
        [[i, *rng.permutation(np.delete(np.arange(agents), i))] for i in range(agents)]
    )
    rows = []
    for way in (RUNNING, AT_ONCE):
        merged, goal = in_order(session, variables, round, align, orders, way == RUNNING)
        repaired = session.parts.merger.repair.correct(merged, goal, round.matching())
        for correction, networks in zip(CORRECTIONS, (merged, repaired), strict=True):
            accuracies, losses = scores(session, networks)
            found = {"accuracies": accuracies.tolist(), "losses": losses.tolist()}
            rows.append({"kind": "order", "way": way, "correction": correction, **found})
    return rows


def in_order(
    session: "Session",
    variables: "Variables",
    round: "MergeRound",
    align: "Align",
    orders: "np.ndarray",
    running: bool,
) -> "tuple[Variables, Any]":
    """Averages networks in one order in each lane, one network of all lanes at a time.

    Args:
      session: of as many agents.
      variables: of all agents.
      round: has the images on which units are compared.
      align: how they are.
      orders: ``[agents, agents]``, a row an order.
      running: whether a network is aligned to the average of those before it, or to the first.

    Returns:
      The averages, and the averages of their parents' moments, which REPAIR takes.
    """
    import numpy as np

    merger = session.parts.merger
    sources = orders.astype(np.int32)
    first = total = merger.gather(variables, sources[:, 0])
    goal = merger.repair.read(first, round.matching())
    for number, source in enumerate(sources.T[1:], 1):
        network = merger.gather(variables, source)
        for permutations in align(merger, total if running else first, [network], round):
            network = merger.permute(permutations, network)
        moments = merger.repair.read(network, round.matching())
        # Of the average so far, and of the network that comes to it.
        shares = np.full(len(orders), number / (number + 1)), np.full(len(orders), 1 / (number + 1))
        total, goal = (
            merger.add(merger.add(None, shares[0], before), shares[1], new)
            for before, new in ((total, network), (goal, moments))
        )
    return total, goal


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
