"""Activation matching: moments and scores against NumPy, and the whole on small models."""

from functools import reduce

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import ARCHITECTURES
from helpers.symmetry_checks import drawn

from dimat_jax.matching import combine_moments, cross_moments, match_activations, scores
from dimat_jax.symmetries import Group, Symmetries, find_symmetries, invert, permute
from dimat_jax.symmetries.permutations import with_outer

KEY = ("a", "b")
SYMMETRIES = Symmetries({"a": Group(2, ()), "b": Group(3, ())})


def activations(seed, examples=40, offset=0.0, dtype=np.float32):
    """Two networks' activations `[examples, 5, 2, 3]`: 200 positions of 6 units, correlated."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(examples, 5, 2, 3))
    return [(shared + generator.normal(size=shared.shape) + offset).astype(dtype) for _ in "ts"]


def moments_of(target, source):
    return cross_moments(SYMMETRIES, {KEY: [jnp.asarray(target)]}, {KEY: [jnp.asarray(source)]})


def flat(x):
    return x.reshape(-1, 6).astype(np.float64)


def test_correlation_is_numpys():
    target, source = activations(0)
    expected = np.corrcoef(flat(target), flat(source), rowvar=False)[:6, 6:]
    np.testing.assert_allclose(scores(moments_of(target, source))[KEY], expected, atol=1e-6)


def test_covariance_and_inner_product_are_numpys():
    target, source = activations(0, offset=2.0)
    moments = moments_of(target, source)
    covariance = np.cov(flat(target), flat(source), rowvar=False, bias=True)[:6, 6:]
    np.testing.assert_allclose(scores(moments, "covariance")[KEY], covariance, atol=1e-5)
    product = flat(target).T @ flat(source) / 200
    np.testing.assert_allclose(scores(moments, "inner_product")[KEY], product, rtol=1e-5)


def test_large_means_do_not_spoil_float32():
    """Means of 3,000 and deviations of about 1.4: raw sums of squares would lose them all."""
    target, source = activations(0, offset=3000.0)
    expected = np.corrcoef(flat(target), flat(source), rowvar=False)[:6, 6:]
    batches = [moments_of(target[i : i + 10], source[i : i + 10]) for i in range(0, 40, 10)]
    found = scores(reduce(combine_moments, batches))[KEY]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_batches_of_any_sizes_combine_to_the_whole():
    target, source = activations(0, offset=1.0)
    cuts = [0, 1, 7, 30, 40]
    batches = [moments_of(target[a:b], source[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    together = reduce(combine_moments, batches)
    chex.assert_trees_all_close(together, moments_of(target, source), rtol=1e-4, atol=1e-4)


def test_constant_units_score_zero_and_nothing_is_nan():
    target, source = activations(0)
    target[..., 0, 0], target[..., 0, 1], source[..., 1, 2] = 0.0, 0.1, 70000.3
    found = np.asarray(scores(moments_of(target, source))[KEY])
    assert np.isfinite(found).all()
    assert (found[[0, 1]] == 0).all() and (found[:, 5] == 0).all()
    assert (found[2:, :5] != 0).all()


def test_low_precision_activations_are_summed_in_float32():
    target, source = activations(0)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (target, source)]
    assert moments_of(*half)[KEY][0].cross.dtype == jnp.float32
    np.testing.assert_allclose(
        scores(moments_of(*half))[KEY], scores(moments_of(target, source))[KEY], atol=0.02
    )


def test_complex_units_correlate_by_the_real_part_of_their_correlation():
    """Against NumPy, whole and in batches: units that differ in their phase are told apart."""
    (a, b), (c, d) = activations(0, offset=1.0), activations(1, offset=2.0)
    target, source = a + 1j * c, b + 1j * d
    x, y = (z.reshape(200, 6).astype(np.complex128) for z in (target, source))
    # np.corrcoef and np.cov conjugate their second argument.
    correlation = np.corrcoef(x, y, rowvar=False)[:6, 6:].real
    covariance = np.cov(x, y, rowvar=False, bias=True)[:6, 6:].real
    batches = [moments_of(target[i : i + 10], source[i : i + 10]) for i in range(0, 40, 10)]
    for moments in (moments_of(target, source), reduce(combine_moments, batches)):
        np.testing.assert_allclose(scores(moments)[KEY], correlation, atol=1e-6)
        np.testing.assert_allclose(scores(moments, "covariance")[KEY], covariance, atol=1e-5)
        product = scores(moments, "inner_product")[KEY]
        np.testing.assert_allclose(product, (x.conj().T @ y).real / 200, rtol=1e-5)
    constant = np.full_like(target, 3 + 4j)
    assert not np.asarray(scores(moments_of(constant, source))[KEY]).any()


def test_small_integers_do_not_overflow():
    target, source = (np.clip(x * 40, -127, 127).astype(np.int8) for x in activations(0))
    expected = np.corrcoef(flat(target), flat(source), rowvar=False)[:6, 6:]
    np.testing.assert_allclose(scores(moments_of(target, source))[KEY], expected, atol=1e-6)


def test_sites_are_summed_or_the_last_one_is_taken():
    pairs = [activations(seed) for seed in (0, 1)]
    sides = [{KEY: [jnp.asarray(pair[i]) for pair in pairs]} for i in (0, 1)]
    moments = cross_moments(SYMMETRIES, *sides)
    each = [scores(moments_of(*pair))[KEY] for pair in pairs]
    np.testing.assert_allclose(scores(moments)[KEY], each[0] + each[1], rtol=1e-6)
    np.testing.assert_allclose(scores(moments, sites="last")[KEY], each[1], rtol=1e-6)


def test_it_can_be_vmapped_over_agents():
    pairs = [activations(seed) for seed in range(3)]
    target, source = (jnp.stack([pair[i] for pair in pairs]) for i in (0, 1))
    together = scores(jax.vmap(moments_of)(target, source))[KEY]
    for agent, pair in enumerate(pairs):
        np.testing.assert_allclose(together[agent], scores(moments_of(*pair))[KEY], atol=1e-6)


def planted(name, copies):
    """An architecture over `copies` batches of random inputs, its network and a permuted one."""
    function, variables, inputs = ARCHITECTURES[name].make()
    generator = np.random.default_rng(3)
    many = [generator.normal(size=(copies, *x.shape)).astype(np.float32) for x in inputs]
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)

    def batched(variables, *inputs):
        return jax.vmap(function, (None, *[0] * len(inputs)))(variables, *inputs)

    symmetries = find_symmetries(batched, variables, *many)
    permutations = with_outer(symmetries, jax.tree.map(jnp.asarray, drawn(symmetries, seed=1)))
    source = jax.jit(permute, static_argnums=0)(symmetries, permutations, variables)
    return symmetries, batched, variables, source, many, invert(permutations)


@pytest.mark.parametrize(
    "name",
    ["group_norm", "grouped_query", "scanned_layers", "channel_shuffle_across"],
)
def test_planted_permutations_are_recovered(name):
    """Jointly read groups and those that vary along others, positions or layers among them."""
    symmetries, function, target, source, inputs, truth = planted(name, copies=24)
    found = match_activations(symmetries, function, target, source, *inputs)
    assert set(found) == set(symmetries.groups)
    for group in symmetries.groups:
        np.testing.assert_array_equal(found[group], truth[group], err_msg=group)


def test_batches_costs_and_compiled_calls_agree():
    symmetries, function, target, source, inputs, truth = planted("mlp", copies=10)

    def recovered(found):
        return all(np.array_equal(found[name], truth[name]) for name in truth)

    assert recovered(match_activations(symmetries, function, target, source, *inputs, batch_size=4))
    for cost in ("covariance", "inner_product"):
        last = match_activations(
            symmetries, function, target, source, *inputs, cost=cost, sites="last"
        )
        assert recovered(last)
    compiled = jax.jit(lambda t, s, *x: match_activations(symmetries, function, t, s, *x))
    assert recovered(compiled(target, source, *inputs))


def test_a_second_call_compiles_nothing():
    symmetries, function, target, source, inputs, _ = planted("mlp", copies=3)
    traced = []

    def counted(variables, *inputs):
        traced.append(1)
        return function(variables, *inputs)

    match_activations(symmetries, counted, target, source, *inputs)
    before = len(traced)
    again = find_symmetries(function, target, *inputs)
    match_activations(again, counted, source, target, *inputs)
    assert len(traced) == before


def test_bad_options_are_named():
    symmetries, function, target, source, inputs, _ = planted("mlp", copies=3)
    arguments = (symmetries, function, target, source, *inputs)
    with pytest.raises(ValueError, match="Unknown cost 'corelation'.*correlation"):
        match_activations(*arguments, cost="corelation")
    with pytest.raises(ValueError, match="choice of sites 'first'"):
        match_activations(*arguments, sites="first")
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        match_activations(*arguments, batch_size=0)
    broken = jax.tree.map(lambda x: x * np.nan, source)
    with pytest.raises(ValueError, match="not finite"):
        match_activations(*arguments[:3], broken, *inputs)


def recurrence(v, x):
    """A linear recurrent unit: real leaves, complex states."""
    decay = jnp.exp(-jnp.exp(v["nu"]) + 1j * jnp.exp(v["theta"]))
    inputs = (x @ (v["re"] + 1j * v["im"])).swapaxes(0, 1)
    start = jnp.zeros(inputs.shape[1:], inputs.dtype)
    _, states = jax.lax.scan(lambda h, u: (decay * h + u,) * 2, start, inputs)
    return (states @ (v["c_re"] + 1j * v["c_im"])).real


def test_complex_states_of_real_leaves_are_recovered():
    rng = np.random.default_rng(0)
    shapes = dict(nu=12, theta=12, re=(5, 12), im=(5, 12), c_re=(12, 3), c_im=(12, 3))
    target = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(16, 20, 5)).astype(np.float32)
    symmetries = find_symmetries(recurrence, target, x)
    permutations = with_outer(symmetries, drawn(symmetries, seed=1))
    source = permute(symmetries, permutations, target)
    found = match_activations(symmetries, recurrence, target, source, x, batch_size=8)
    np.testing.assert_array_equal(found["nu"], invert(permutations)["nu"])


def test_networks_of_different_leaves_are_refused():
    symmetries, function, target, source, inputs, _ = planted("mlp", copies=3)
    first = next(iter(source))
    wider = source | {first: np.ones((*source[first].shape[:-1], 99), np.float32)}
    with pytest.raises(ValueError, match=f"Leaf '{first}' has shape .* in the target but .* 99"):
        match_activations(symmetries, function, target, wider, *inputs)
    with pytest.raises(ValueError, match=f"Leaf '{first}' has shape .* but the symmetries"):
        match_activations(symmetries, function, wider, wider, *inputs)
    lacking = {name: x for name, x in source.items() if name != first}
    with pytest.raises(ValueError, match=f"Leaf '{first}' of the target is missing in the source"):
        match_activations(symmetries, function, target, lacking, *inputs)
    frozen = flax.core.freeze(source)
    same = match_activations(symmetries, function, target, frozen, *inputs)
    chex.assert_trees_all_equal(
        same, match_activations(symmetries, function, target, source, *inputs)
    )


def test_units_that_are_read_only_in_a_loop_are_recovered():
    def function(v, x, steps):
        def step(i, y):
            return y + 0.1 * jnp.tanh(y @ v["up"]) @ v["down"]

        return jax.lax.fori_loop(0, steps, step, x @ v["stem"]) @ v["head"]

    rng = np.random.default_rng(0)
    shapes = dict(stem=(5, 4), up=(4, 16), down=(16, 4), head=(4, 2))
    target = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = rng.normal(size=(64, 5)).astype(np.float32), 10
    symmetries = find_symmetries(function, target, *inputs)
    permutations = with_outer(symmetries, drawn(symmetries, seed=1))
    source = permute(symmetries, permutations, target)
    found = match_activations(symmetries, function, target, source, *inputs)
    for name, truth in invert(permutations).items():
        np.testing.assert_array_equal(found[name], truth)


def test_groups_that_are_never_read_are_named():
    """Of code for one platform only, which may not compile on another, nothing is read."""

    def function(v, x):
        h = jnp.tanh(x @ v["a"])
        inside = jax.lax.platform_dependent(x, cpu=lambda x: jnp.tanh(x @ v["b"]) @ v["c"])
        return h @ v["d"] + inside

    rng = np.random.default_rng(0)
    shapes = dict(a=(3, 4), d=(4, 2), b=(3, 5), c=(5, 2))
    target = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(20, 3)).astype(np.float32)
    symmetries = find_symmetries(function, target, x)
    source = permute(symmetries, {"a": np.array([1, 2, 3, 0]), "b": np.arange(5)[::-1]}, target)
    with pytest.warns(UserWarning, match="leaves these groups as they are: b. Their units"):
        found = match_activations(symmetries, function, target, source, x)
    np.testing.assert_array_equal(found["b"], np.arange(5))
    np.testing.assert_array_equal(found["a"], [3, 0, 1, 2])
