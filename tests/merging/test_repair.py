"""REPAIR: what a merged network's units have afterwards is what their parents had."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.mergers import AGENTS, case, case_of, own_batches, population_of
from helpers.small_runs import assert_trees_close, random_variables

import dimat_jax as dj
from dimat_jax.merging.repair import EPSILON, Preactivations, batch_preactivations, fold
from dimat_jax.merging.units import find_units

SHAPE = (32, 32, 3)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(16, *SHAPE)), jnp.float32)


def parts(model, images=IMAGES):
    """The model's units, and a jitted function that reads them on one batch."""
    variables = random_variables(model, images.shape[1:])
    symmetries = dj.find_symmetries(model, variables, images)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def read(variables, goal=None):
        means, variances = batch_preactivations(symmetries, model, variables, images, goal)
        deviations = {path: jnp.sqrt(v + EPSILON) for path, v in variances.items()}
        return {path: Preactivations(means[path], deviations[path]) for path in means}

    return find_units(symmetries, model, variables, images).found, read


def parents_of(model):
    one = random_variables(model, SHAPE)
    rng = np.random.default_rng(1)
    return one, jax.tree.map(
        lambda x: jnp.asarray(rng.permutation(np.asarray(x).ravel()).reshape(x.shape)), one
    )


@pytest.mark.parametrize(
    "name, options",
    [
        ("mlp", {"width": 0.05}),
        ("vgg11", {"width": 0.0625, "norm": "none"}),
        ("resnet20", {"width": 0.25, "norm": "none"}),
        pytest.param("resnet20", {"width": 0.25}, marks=pytest.mark.slow),
        pytest.param("vit", {"width": 0.125}, marks=pytest.mark.slow),
    ],
)
def test_units_get_the_mean_and_deviation_of_their_parents(name, options):
    model = dj.models.make(name, num_classes=4, **options)
    units, read = parts(model)
    first, second = parents_of(model)
    goal = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, read(first), read(second))
    merged = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, first, second)
    before = read(merged)
    assert (
        max(
            np.abs(b.deviation / g.deviation - 1).max()
            for b, g in zip(before.values(), goal.values(), strict=True)
        )
        > 0.1
    )
    corrected = fold(units, merged, read(merged, goal), goal)
    for path, had in read(corrected).items():
        size = 1 + float(jnp.abs(goal[path].mean).max())
        np.testing.assert_allclose(had.mean, goal[path].mean, atol=2e-3 * size, err_msg=path)
        np.testing.assert_allclose(had.deviation, goal[path].deviation, rtol=2e-2, err_msg=path)


def test_preactivations_are_those_of_numpy():
    model = dj.models.mlp(num_classes=4, width=0.05, depth=2)
    _, read = parts(model)
    variables = random_variables(model, SHAPE)
    x = np.asarray(IMAGES).reshape(len(IMAGES), -1)
    for layer in ("Dense_0", "Dense_1"):
        params = variables["params"][layer]
        x = x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
        found = read(variables)[f"params/{layer}/bias"]
        np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-3)
        np.testing.assert_allclose(found.deviation, np.sqrt(x.var(0) + EPSILON), rtol=1e-3)
        x = np.maximum(x, 0)


def test_a_network_merged_with_itself_stays_as_it_is():
    model = dj.models.mlp(num_classes=4, width=0.05)
    units, read = parts(model)
    variables = random_variables(model, SHAPE)
    goal = read(variables)
    assert_trees_close(fold(units, variables, read(variables, goal), goal), variables, 1e-4)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_a_population_is_corrected_agent_by_agent(name):
    """In both forms of execution, and over several batches."""
    this = case(name)
    batches, variables = own_batches(this.execution), population_of(this)
    rolled = this.merger.gather(variables, np.roll(np.arange(AGENTS), 1).astype(np.int32))
    half = np.full(AGENTS, 0.5)

    def average(first, second):
        return this.merger.add(this.merger.add(None, half, first), half, second)

    goal = average(
        this.merger.repair.read(variables, batches), this.merger.repair.read(rolled, batches)
    )
    merged = this.merger.recompute(average(variables, rolled), batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected = this.merger.repair.correct(merged, goal, batches)
    found = this.merger.repair.read(corrected, batches)
    for path, wanted in goal.items():
        # Batches differ: each is brought to the goal by its own moments, as BatchNorm in training.
        assert np.abs(found[path].deviation / wanted.deviation - 1).mean() < 0.1, path
        np.testing.assert_allclose(found[path].mean, wanted.mean, atol=0.3, err_msg=path)


def test_layers_that_stay_as_they_are_are_named():
    def init(key, x):
        return {"params": {"a": jnp.ones((x[0].size, 6)), "out": jnp.ones((6, 4))}}

    def apply(variables, x, train=False, key=None):
        p = variables["params"]
        return jax.nn.relu(x.reshape(len(x), -1) @ p["a"]) @ p["out"], variables

    this = case_of(dj.Model(init, apply), case("mlp").execution)
    variables, batches = population_of(this), own_batches(this.execution)
    with pytest.warns(UserWarning, match="uncorrected: params/a"):
        goal = this.merger.repair.read(variables, batches)
    assert goal == {}
    assert_trees_close(this.merger.repair.correct(variables, goal, batches), variables, 0)
