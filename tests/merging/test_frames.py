"""One frame for all agents, out of permutations of pairs."""

import jax
import numpy as np
import pytest
from helpers.small_runs import assert_trees_close, disorder, noise, random_variables, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.merging.frames import common_frame
from dimat_jax.simulation.measure import consensus_distance
from dimat_jax.symmetries import compose, invert

AGENTS = 6
MODEL = dj.models.mlp(num_classes=4, width=0.03, depth=2)
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
SYMMETRIES = dj.find_symmetries(MODEL, jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE), IMAGE)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(dict, trees))


def pairwise(orders, sources):
    """The permutations that bring each agent's sources into its own order, slot by slot.

    Agent i's network is one and the same, reordered by ``orders[i]``.
    """
    return [
        stacked(
            compose(invert(orders[j]), orders[i], SYMMETRIES)
            for i, j in enumerate(sources[:, slot])
        )
        for slot in range(1, sources.shape[1])
    ]


@pytest.mark.parametrize(
    "graph",
    [topology.ring(AGENTS), topology.star(AGENTS), topology.exponential(AGENTS)],
    ids=lambda graph: graph.name,
)
def test_networks_that_differ_by_their_order_alone_are_one_in_the_common_frame(graph):
    orders = [disorder(SYMMETRIES, seed) for seed in range(AGENTS)]
    network = random_variables(MODEL, IMAGE.shape[1:])
    agents = [dj.permute(SYMMETRIES, order, network) for order in orders]
    assert consensus_distance(stacked(agents)) > 0.1
    sources, _ = topology.neighbor_slots(graph)
    frame = common_frame(SYMMETRIES, sources, pairwise(orders, sources))
    assert {name: p.shape for name, p in frame.items()} == {
        name: (AGENTS, group.size) for name, group in SYMMETRIES.groups.items()
    }
    for agent, variables in enumerate(agents):
        own = {name: p[agent] for name, p in frame.items()}
        assert_trees_close(dj.permute(SYMMETRIES, own, variables), agents[0], 0)


def test_agents_of_whom_agent_0_does_not_hear_have_no_common_frame():
    orders = [disorder(SYMMETRIES, seed) for seed in range(4)]
    pairs = topology.from_matrix(np.kron(np.eye(2), np.full((2, 2), 0.5)))
    sources, _ = topology.neighbor_slots(pairs)
    assert common_frame(SYMMETRIES, sources, pairwise(orders, sources)) is None


@pytest.mark.slow
def test_the_aligned_distance_of_a_run_does_not_depend_on_the_order_of_units(x64):
    """Before, there was only the distance that a relabelling changes."""
    config = small_config(devices=2, methods=("dimat",))
    session = dj.make_session(config, model=MODEL, dataset=noise(size=8))

    def merged(reorder):
        state = session.train(session.start())
        agents = state.agents
        if reorder:
            orders = stacked(disorder(SYMMETRIES, seed) for seed in range(config.agents))
            variables = session.parts.merger.permute(orders, agents.variables)
            agents = agents._replace(variables=variables)
        return session.measure(session.merge(session.begin(state._replace(agents=agents), "dimat")))

    row, other = merged(False), merged(True)
    assert abs(row["consensus_distance"] - other["consensus_distance"]) > 1e-3
    aligned = "consensus_distance_aligned"
    np.testing.assert_allclose(row[aligned], other[aligned], rtol=1e-8)
    assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-8)


@pytest.mark.slow
def test_methods_that_do_not_align_have_no_aligned_distance():
    config = small_config(devices=2, methods=("wa", "dsgd", "universe"), rounds=1)
    rows = dj.simulate(config, model=MODEL, dataset=noise(size=8)).history
    for row in rows:
        aligned = row["consensus_distance_aligned"]
        if row["method"] == "universe":  # All are in one frame.
            assert aligned == row["consensus_distance"]
        else:
            assert aligned is None
