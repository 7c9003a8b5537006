"""A merger of plain NumPy, for the formulas of what methods do in a merge."""

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax import topology
from dimat_jax.algorithms import MergeRound
from dimat_jax.merging.batches import Batches
from dimat_jax.merging.merger import Merger, Repair

UNITS = 5
MATCHING, STATISTICS = Batches(rows=[0], examples=[]), Batches(rows=[1], examples=[])


def round_of(graph, round=0, frame="own", aligns=True, examples=None):
    """A merge round on these agents; images are drawn when a merge asks for them."""
    sources, weights = topology.neighbor_slots(graph, round)
    return MergeRound(
        sources,
        weights,
        examples=np.ones(graph.agents, int) if examples is None else np.asarray(examples),
        matching=lambda: MATCHING,
        statistics=lambda: STATISTICS,
        tree=lambda: topology.flood(graph),
        frame=frame,
        aligns=aligns,
        key=KEY,
    )


KEY = jax.random.key(0)


def order_of(target, source):
    """The permutation that brings a source's units, all different, into the target's order."""
    return np.argsort(source)[np.argsort(np.argsort(target))]


class Aligner:
    """Aligns by the units' own order, and remembers by what, and how many networks at a time."""

    def __init__(self):
        self.held = []

    def by_activations(self, target, sources, batches):
        assert batches is MATCHING
        return self.align("activations", target, sources)

    def by_weights(self, target, sources, key):
        assert key is KEY
        return self.align("weights", target, sources)

    def into_universe(self, variables, key):
        assert key is KEY
        universe = {"params": np.tile(np.arange(UNITS), (len(variables["params"]), 1))}
        return self.align("universe", universe, [variables])

    def align(self, how, target, sources):
        self.held.append((how, len(sources)))
        return [
            {"units": jnp.asarray(list(map(order_of, target["params"], source["params"])))}
            for source in sources
        ]


def numpy_merger(aligner: Aligner) -> Merger:
    """A merger of networks that are vectors of units, ``{"params": [agents, units]}``.

    A unit's preactivation is its square. What is done to the merged network is noted down in it.
    """
    return Merger(
        symmetries=None,
        match={
            "activations": aligner.by_activations,
            "weights": aligner.by_weights,
            "universe": aligner.into_universe,
        },
        correlate=lambda target, sources, batches: [],
        gather=gather,
        gather_slots=lambda v, sources: [gather(v, slot) for slot in sources.T],
        average=average,
        permute=lambda p, v: {**v, "params": reordered(p, v["params"])},
        compose=composed,
        permute_state=lambda p, v, state: jax.tree.map(lambda x: reordered(p, x), state),
        add=add,
        recompute=lambda v, batches: {**v, "recomputed": batches},
        repair=Repair(read, correct),
    )


def gather(variables, sources):
    return {"params": variables["params"][sources]}


def average(variables, sources, weights):
    return jax.tree.map(lambda x: np.einsum("is,isu->iu", weights, x[sources]), variables)


def composed(permutations, ancestors):
    """Of each agent into the frame of its root, one ancestor after the other."""
    arrays = np.asarray(permutations["units"])
    found = np.tile(np.arange(UNITS), (len(arrays), 1))
    for agent in range(len(arrays)):
        way = [agent]
        while ancestors[way[-1]] != way[-1]:
            way.append(int(ancestors[way[-1]]))
        for step in way[:-1]:
            found[agent] = found[agent][arrays[step]]
    return {"units": jnp.asarray(found)}


def reordered(permutations, array):
    return np.take_along_axis(np.asarray(array), np.asarray(permutations["units"]), 1)


def add(total, weights, variables):
    weighted = jax.tree.map(lambda x: weights[:, None] * x, variables)
    return weighted if total is None else jax.tree.map(np.add, total, weighted)


def read(variables, batches):
    assert batches is MATCHING
    return {"square": variables["params"] ** 2}


def correct(variables, goal, batches):
    assert batches is MATCHING
    return {**variables, "corrected": goal["square"]}
