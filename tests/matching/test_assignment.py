"""Assignment of all groups: leading axes, inside and outside of compiled functions, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from dimat_jax.matching import assign
from dimat_jax.symmetries import find_symmetries

AGENTS = 8


def attention(v, x):
    """Four heads of three query/key units and five value units; a stream of six; five layers."""
    h = x @ v["stem"]
    q, k, values = (jnp.einsum("btd,dhe->bthe", h, v[name]) for name in "qkv")
    logits = jnp.einsum("bthe,bshe->bhts", q, k)
    h = h + jnp.einsum("bhts,bshe,hed->btd", jax.nn.softmax(logits), values, v["out"])
    step = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)  # noqa: E731
    return jax.lax.scan(step, h, (v["up"], v["down"]))[0] @ v["head"]


SHAPES = dict(
    stem=(7, 6), q=(6, 4, 3), k=(6, 4, 3), v=(6, 4, 5), out=(4, 5, 6), up=(5, 6, 9), down=(5, 9, 6),
    head=(6, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def symmetries():
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    return find_symmetries(attention, shapes, jax.ShapeDtypeStruct((2, 4, 7), jnp.float32))


@pytest.fixture(scope="module")
def scores():
    """Random scores with a leading axis of agents, by the sizes of the groups."""
    generator = np.random.default_rng(0)
    units = {("stem",): 6, ("q[1]",): 4, ("q[1]", "q[2]"): 12, ("q[1]", "v"): 20, ("up",): 9}
    return {
        key: generator.normal(size=(AGENTS, *([5] if key == ("up",) else []), n, n)).astype("f4")
        for key, n in units.items()
    }


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in (*a, *b))


def test_every_leading_index_is_a_problem_of_its_own(symmetries, scores):
    together = assign(symmetries, scores)
    shapes = {name: permutation.shape for name, permutation in together.items()}
    assert shapes == {
        "stem": (AGENTS, 6), "q[1]": (AGENTS, 4), "q[2]": (AGENTS, 4, 3), "v": (AGENTS, 4, 5),
        "up": (AGENTS, 5, 9),
    }  # fmt: skip
    for agent in (0, 7):
        alone = assign(symmetries, {key: table[agent] for key, table in scores.items()})
        assert same(alone, {name: p[agent] for name, p in together.items()})


def test_inside_jit_and_vmap_it_calls_back_to_the_host(symmetries, scores):
    on_host = assign(symmetries, scores)
    assert same(jax.jit(lambda s: assign(symmetries, s))(scores), on_host)
    assert same(jax.jit(jax.vmap(lambda s: assign(symmetries, s)))(scores), on_host)


def test_inside_shard_map_each_device_calls_back_for_its_own_agents(symmetries, scores):
    mesh = Mesh(np.array(jax.devices()[:AGENTS]), ("agents",))
    spec = PartitionSpec("agents")
    sharded = jax.shard_map(
        lambda s: assign(symmetries, s), mesh=mesh, in_specs=spec, out_specs=spec
    )
    assert same(jax.jit(sharded)(scores), assign(symmetries, scores))


def test_groups_without_scores_keep_the_identity(symmetries, scores):
    permutations = assign(symmetries, {("stem",): scores["stem",]})
    expected = np.broadcast_to(np.arange(3), (AGENTS, 4, 3))
    np.testing.assert_array_equal(permutations["q[2]"], expected)
    np.testing.assert_array_equal(assign(symmetries, {})["stem"], np.arange(6))


def test_bad_scores_are_named(symmetries, scores):
    broken = {**scores, ("stem",): np.full((AGENTS, 6, 6), np.nan)}
    with pytest.raises(ValueError, match="scores of group stem are not finite"):
        assign(symmetries, broken)
    with pytest.raises(ValueError, match="same leading axes"):
        assign(symmetries, {**scores, ("stem",): scores["stem",][0]})
