"""Permuted weighted averages of several networks."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import assert_trees_close, assert_trees_equal, disorder, random_variables

import dimat_jax as dj
from dimat_jax.merging.average import add_weighted, narrow, permute_state
from dimat_jax.training.optimizers import OPTIMIZERS

MODELS = {
    "mlp": dj.models.mlp(num_classes=4, width=0.03, depth=2, norm="batch"),
    "convnet": dj.models.convnet(num_classes=4, width=0.25),
}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 3)), jnp.float32)


def symmetries_of(name):
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return dj.find_symmetries(
        MODELS[name], jax.eval_shape(MODELS[name].init, jax.random.key(0), image), image
    )


@pytest.mark.parametrize("name", MODELS)
def test_permuted_copies_of_a_network_merge_into_itself(name):
    symmetries, variables = symmetries_of(name), random_variables(MODELS[name], (8, 8, 3))
    assert len(symmetries.groups) == (2 if name == "mlp" else 3)
    weights = [0.5, 0.3, 0.2]

    @jax.jit
    def merge_copies(disorders, variables):
        copies = [dj.permute(symmetries, p, variables) for p in disorders]
        naive = dj.merge(symmetries, copies, weights, [{}, {}, {}])
        aligned = dj.merge(symmetries, copies, weights, [dj.invert(p) for p in disorders])
        logits = [MODELS[name].apply(v, IMAGES)[0] for v in (variables, aligned, naive)]
        return aligned, logits

    disorders = [disorder(symmetries, seed) for seed in range(3)]
    aligned, (own, merged, naive) = merge_copies(disorders, variables)
    assert_trees_close(aligned, variables, tolerance=1e-6)
    assert_trees_close(merged, own, tolerance=1e-4)
    assert jnp.abs(naive - own).max() > 0.1  # without alignment it is another function


def test_a_merge_is_the_weighted_sum_of_what_is_permuted():
    symmetries = symmetries_of("mlp")
    networks = [random_variables(MODELS["mlp"], (8, 8, 3)) for _ in range(2)]
    networks[1] = jax.tree.map(lambda x: 2 * x + 1, networks[1])
    first, second = (jnp.asarray(np.random.default_rng(i).permutation(8)) for i in (0, 1))
    names = list(symmetries.groups)
    permutations = [{}, {names[0]: first, names[1]: second}]
    merged = jax.jit(lambda v, p: dj.merge(symmetries, v, [0.25, 0.75], p))(networks, permutations)

    def expected(layer, leaf, rows=slice(None), columns=slice(None)):
        one, two = (np.asarray(network["params"][layer][leaf]) for network in networks)
        two = two[rows][..., columns] if two.ndim == 2 else two[columns]
        return 0.25 * one + 0.75 * two

    found = merged["params"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(found["Dense_0"]["kernel"], expected("Dense_0", "kernel", columns=first))
    close(found["BatchNorm_0"]["scale"], expected("BatchNorm_0", "scale", columns=first))
    close(found["Dense_1"]["kernel"], expected("Dense_1", "kernel", first, second))
    close(found["Dense_2"]["kernel"], expected("Dense_2", "kernel", rows=second))
    close(found["Dense_2"]["bias"], expected("Dense_2", "bias"))
    one, two = (np.asarray(n["batch_stats"]["BatchNorm_1"]["var"]) for n in networks)
    close(merged["batch_stats"]["BatchNorm_1"]["var"], 0.25 * one + 0.75 * two[second])


def test_what_is_no_float_stays_the_first_ones():
    first = {"kernel": jnp.ones(2), "seen": jnp.asarray(3), "key": jax.random.key(0)}
    second = {"kernel": jnp.full(2, 5.0), "seen": jnp.asarray(9), "key": jax.random.key(1)}
    merged = add_weighted(add_weighted(None, jnp.asarray(0.5), first), jnp.asarray(0.25), second)
    assert_trees_equal(merged, first | {"kernel": jnp.full(2, 1.75)})


EMPTY = dj.Symmetries({})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float32", "complex64"])
@pytest.mark.parametrize("number", [3, 10, 64])
def test_the_mean_of_equal_networks_is_that_network(dtype, number):
    """In bfloat16 64 summands would be off by 6%."""
    rng = np.random.default_rng(0)
    network = {"a": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32).astype(dtype)}
    merged = dj.merge(EMPTY, [network] * number, [1 / number] * number, [{}] * number)
    assert merged["a"].dtype == dtype
    found, expected = (np.asarray(x["a"].astype("complex64")) for x in (merged, network))
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype[-2:] == "32" else 4e-3)


def test_a_total_is_narrowed_at_the_end_only():
    half = {"a": jnp.full(2, 1.01, jnp.bfloat16), "steps": jnp.asarray(3)}
    total = None
    for _ in range(100):
        total = add_weighted(total, jnp.asarray(0.01), half)
    assert total["a"].dtype == jnp.float32
    assert_trees_equal(narrow(total, half), half)


def test_complex_weights_are_averaged():
    rng = np.random.default_rng(0)
    a, b = ({"a": rng.normal(size=3) + 1j * rng.normal(size=3)} for _ in range(2))
    merged = dj.merge(EMPTY, [a, b], [0.25, 0.75], [{}, {}])
    np.testing.assert_allclose(merged["a"], 0.25 * a["a"] + 0.75 * b["a"], rtol=1e-6)


def test_whatever_a_pytree_holds():
    """Python numbers, keys, words, other containers of the same leaves."""
    first = {"a": jnp.ones(2), "t": 2.0, "step": 3, "key": jax.random.key(0), "name": "x"}
    second = flax.core.freeze(first | {"a": np.zeros(2, np.float32), "t": 4.0, "step": 5})
    merged = dj.merge(EMPTY, [first, second], [0.5, 0.5], [{}, {}])
    assert_trees_equal(merged | {"name": 0}, first | {"a": jnp.full(2, 0.5), "t": 3.0, "name": 0})
    assert type(merged["t"]) is float and type(merged["step"]) is int and merged["name"] == "x"
    traced = jax.jit(lambda w: dj.merge(EMPTY, [{"t": 2.0}, {"t": 4.0}], w, [{}, {}]))
    np.testing.assert_allclose(traced(jnp.array([0.5, 0.5]))["t"], 3.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": np.ones(2)}, "Leaf 'b' of network 0 is missing in network 1"),
        ({"a": np.ones(2), "b": 1, "c": 1}, "Leaf 'c' of network 1 is missing in network 0"),
        ({"a": np.ones(3), "b": 1}, r"'a' has shape \(2,\) in network 0 but \(3,\) in network 1"),
        ({"a": 1j * np.ones(2), "b": 1}, "'a' is float64 in network 0 but complex128 in network 1"),
        ({"a": np.ones(2), "b": 1.0}, "'b' is int64 in network 0 but float64 in network 1"),
    ],
)
def test_networks_of_different_leaves_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        dj.merge(EMPTY, [{"a": np.ones(2), "b": 1}, other], [0.5, 0.5], [{}, {}])


@pytest.mark.parametrize(
    ("networks", "weights", "permutations", "counts"),
    [(2, 1, 2, "2, 1 and 2"), (1, 1, 0, "1, 1 and 0"), (0, 0, 0, "0, 0 and 0")],
)
def test_lists_of_different_lengths_are_refused(networks, weights, permutations, counts):
    with pytest.raises(ValueError, match=counts):
        dj.merge(symmetries_of("mlp"), [{}] * networks, [1.0] * weights, [{}] * permutations)


def permuted_state(state):
    """A state of the MLP's parameters, and what becomes of it; the permutations, the variables."""
    symmetries, variables = symmetries_of("mlp"), random_variables(MODELS["mlp"], (8, 8, 3))
    permutations = disorder(symmetries, 3)
    found = jax.jit(functools.partial(permute_state, symmetries))(permutations, variables, state)

    def move(params):
        return dj.permute(symmetries, permutations, {**variables, "params": params})["params"]

    return found, move, variables


PARAMS = random_variables(MODELS["mlp"], (8, 8, 3))["params"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_moments_go_with_the_units_that_they_belong_to(name):
    optimizer = OPTIMIZERS[name]()
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    found, move, _ = permuted_state(state)
    # All that is like the parameters is moved, and the count of Adam's steps is not.
    moved = {"sgd": (), "momentum": ("trace",), "adam": ("mu", "nu")}[name]
    for field in getattr(state, "_fields", ()):
        before, after = getattr(state, field), getattr(found, field)
        assert_trees_equal(after, move(before) if field in moved else before)
    assert bool(moved) == (name != "sgd")
    if moved:
        with pytest.raises(AssertionError):
            assert_trees_equal(getattr(found, moved[0]), getattr(state, moved[0]))


def test_what_has_further_axes_before_the_parameters_own_is_moved_likewise():
    messages = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), PARAMS)
    found, move, _ = permuted_state({"messages": messages, "counts": jnp.arange(3.0)})
    for slot in range(3):
        one = jax.tree.map(lambda x, s=slot: x[s], messages)
        assert_trees_equal(jax.tree.map(lambda x, s=slot: x[s], found["messages"]), move(one))
    assert_trees_equal(found["counts"], jnp.arange(3.0))


@pytest.mark.parametrize("state", [(), None, {"a": jnp.ones(3)}, jnp.zeros(())])
def test_what_is_nothing_like_the_parameters_stays(state):
    assert_trees_equal(permuted_state(state)[0], state)
