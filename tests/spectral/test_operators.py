"""A merge's operator on groups and on whole networks is what a merge does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import disorder, pick, random_variables

import dimat_jax as dj
from dimat_jax import spectral
from dimat_jax import topology as T
from dimat_jax.merging.average import merge
from dimat_jax.topology import neighbor_slots

SHAPE = (4, 4, 1)
MODEL = dj.models.mlp(num_classes=3, width=0.03, depth=2)
SYMMETRIES = dj.find_symmetries(
    MODEL,
    random_variables(MODEL, SHAPE),
    jax.ShapeDtypeStruct((1, *SHAPE), np.float32),
)


def merge_operators(graph, seed=0):
    """Random frames, the alignments of pairs that they amount to, and the merge's operators."""
    sources, weights = neighbor_slots(graph)
    frames = disorder(SYMMETRIES, seed, agents=graph.agents)
    pairs = spectral.pairs_of_frames(SYMMETRIES, sources, frames)
    groups = spectral.of_groups(SYMMETRIES, sources, weights, pairs)
    whole = spectral.of_parameters(
        SYMMETRIES, sources, weights, pairs, random_variables(MODEL, SHAPE)
    )
    return sources, weights, pairs, groups, whole


def test_the_operator_of_all_parameters_is_the_merge():
    graph = T.exponential(5)
    sources, weights, pairs, groups, whole = merge_operators(graph)
    agents = random_variables(MODEL, SHAPE, agents=5)
    flat = np.concatenate([np.reshape(leaf, (5, -1)) for leaf in jax.tree.leaves(agents)], axis=1)
    merged = spectral.linear_map(whole).matvec(flat.ravel()).reshape(flat.shape)
    for i in range(5):
        theirs = [pick(agents, int(j)) for j in sources[i]]
        permutations = [{}, *(pick(of_slot, i) for of_slot in pairs)]
        expected = merge(SYMMETRIES, theirs, list(weights[i]), permutations)
        row = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(expected)])
        np.testing.assert_allclose(merged[i], row, atol=1e-5)
    for name, operator in groups.items():
        for slot, of_slot in enumerate(pairs, 1):
            np.testing.assert_array_equal(operator.moves[:, slot], of_slot[name])


def test_frames_are_consistent_on_every_group_and_all_parameters():
    graph = T.ring(5)
    *_, groups, whole = merge_operators(graph)
    assert set(groups) == set(SYMMETRIES.groups)
    for operator in (*groups.values(), whole):
        found = spectral.spectrum(operator)
        assert found.fixed_dimension == operator.shape[1]
        assert found.gap == pytest.approx(graph.spectral_gap, abs=1e-4)
        assert spectral.cycle_inconsistency(operator)[:2] == (0, 0)


def test_groups_that_vary_along_others_are_one_operator():
    # Heads, and units within each: what the whole parameters do, seen on the query kernel's axes.
    model = dj.models.vit(num_classes=3, width=0.25, depth=1)
    image = (8, 8, 3)
    one = random_variables(model, image)
    found = dj.find_symmetries(model, one, jax.ShapeDtypeStruct((1, *image), np.float32))
    assert any(group.outer for group in found.groups.values())
    sources, weights = neighbor_slots(T.ring(3))
    drawn = [dj.random_permutations(jax.random.key(i), found) for i in range(3)]
    frames = jax.tree.map(lambda *of_agents: np.stack(of_agents), *drawn)
    pairs = spectral.pairs_of_frames(found, sources, frames)
    for name, operator in spectral.of_groups(found, sources, weights, pairs).items():
        assert spectral.stochasticity_error(operator) < 1e-12, name
        assert spectral.cycle_inconsistency(operator)[:2] == (0, 0), name
        assert spectral.fixed_space(operator).max() + 1 == operator.shape[1], name
    whole = spectral.of_parameters(found, sources, weights, pairs, one)
    assert spectral.fixed_space(whole).max() + 1 == whole.shape[1]


def test_nothing_aligned_is_plain_averaging():
    sources, weights = neighbor_slots(T.ring(4))
    for operator in spectral.of_groups(SYMMETRIES, sources, weights, []).values():
        np.testing.assert_array_equal(operator.moves[0], operator.moves[-1])
        assert spectral.spectrum(operator).gap == pytest.approx(T.ring(4).spectral_gap, abs=1e-6)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.ones((1, *SHAPE)))
    whole = spectral.of_parameters(SYMMETRIES, sources, weights, [], shapes)
    assert whole.moves.shape == (4, 3, sum(x.size for x in jax.tree.leaves(shapes)))


def test_the_number_of_slots_is_checked(untyped):
    sources, weights = neighbor_slots(T.ring(4))
    frames = disorder(SYMMETRIES, 0, agents=4)
    with pytest.raises(ValueError, match="each of the 2 slots .* not of 1: those of frames"):
        spectral.of_groups(SYMMETRIES, sources, weights, [frames])
    with pytest.raises(ValueError, match=r"weights must be as sources, \(4, 3\), not \(4, 2\)"):
        spectral.of_groups(SYMMETRIES, sources, weights[:, :2], [])
