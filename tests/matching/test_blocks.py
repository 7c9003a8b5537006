"""Leaves taken apart: every group on an axis of its own, and every weight once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import ARCHITECTURES
from helpers.random_programs import random_program, stacked_program
from helpers.symmetry_checks import random, reference_permute
from hypothesis import given, settings
from hypothesis import strategies as st

from dimat_jax.matching.blocks import layouts
from dimat_jax.matching.weights import _permuted
from dimat_jax.symmetries import Group, Place, Site, Symmetries, find_symmetries


def assert_cut_and_permuted_alike(symmetries, leaves, seed=0):
    """Blocks of a permuted leaf are permuted blocks of it, and hold each moved weight once."""
    chosen = dict(random(symmetries, seed))
    permuted = reference_permute(symmetries, chosen, leaves)
    for path in symmetries.shapes:
        leaf, after = np.asarray(leaves[path]), permuted[path]
        found, failed = layouts(symmetries, path, leaf.shape)
        assert not failed
        numbers = np.arange(leaf.size).reshape(leaf.shape)
        held = [layout.cut(numbers).ravel() for layout in found]
        held = np.concatenate([*held, np.zeros(0, int)])
        assert len(np.unique(held)) == len(held)
        assert {*np.flatnonzero((leaf != after).ravel())} <= {*held}
        for layout in found:
            block = _permuted(layout.cut(leaf), layout.occurrences, chosen)
            np.testing.assert_array_equal(block, layout.cut(after))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    function, variables, inputs = ARCHITECTURES[name].make()
    symmetries = find_symmetries(function, variables, *inputs)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert_cut_and_permuted_alike(symmetries, leaves)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_random_programs(seed, stacked):
    rng = np.random.default_rng(seed)
    shapes, program = (stacked_program if stacked else random_program)(rng)
    x = rng.normal(size=(4, 3) if stacked else rng.choice([2, 3, 4, 6], 2))
    leaves = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    with jax.enable_x64(True):
        symmetries = find_symmetries(lambda v, x: program(jnp, v, x), leaves, x)
    assert_cut_and_permuted_alike(symmetries, leaves)


def test_a_fused_kernel_has_a_block_for_values_and_one_for_queries_and_keys():
    """[10, 60]: 3 segments of 4 heads x 5 units, of which queries and keys share theirs."""
    function, variables, inputs = ARCHITECTURES["fused_qkv_split"].make()
    symmetries = find_symmetries(function, variables, *inputs)
    blocks, _ = layouts(symmetries, "qkv", (10, 60))
    assert [block.shape for block in blocks] == [(10, 4, 5, 2), (10, 4, 5)]
    assert [len(block.indices[1]) for block in blocks] == [40, 20]
    for block in blocks:
        assert [o.axis for o in block.occurrences] == [0, 1, 2]
        assert [o.outer for o in block.occurrences] == [(), (), (1,)]


def test_a_group_twice_on_one_axis_has_two_columns():
    """The outer product of a layer with itself, flattened."""
    leaf = np.arange(18.0).reshape(9, 2)
    sites = tuple(Site("w", 0, (0, 9), factor) for factor in ((1, 3, 3), (3, 3, 1)))
    symmetries = Symmetries({"a": Group(3, sites)}, shapes={"w": (9, 2)})
    ((block,), _) = layouts(symmetries, "w", (9, 2))
    assert block.shape == (3, 3, 2)
    assert [o.axis for o in block.occurrences] == [0, 1]
    assert_cut_and_permuted_alike(symmetries, {"w": leaf})


def test_what_is_no_product_is_named():
    heads, units = Place(0, (0, 6), (1, 2, 3)), Site("w", 0, (0, 2), (1, 2, 1))
    symmetries = Symmetries({"h": Group(2, (Site("w", *heads),)), "u": Group(2, (units,))})
    found, failed = layouts(symmetries, "w", (6,))
    assert failed == {"h", "u"} and not found
