"""Small data sets, models and populations for the tests of the simulation."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

import dimat_jax as dj
from dimat_jax.datasets import channel_statistics, normalize
from dimat_jax.execution import forms
from dimat_jax.execution.placement import Execution
from dimat_jax.simulation import parts

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def noise(examples=320, tests=50, size=16, channels=3, classes=4, seed=0) -> dj.Dataset:
    """Random images, on which every unit and every agent behaves differently."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (examples + tests, size, size, channels)).astype(np.uint8)
    labels = (rng.permutation(examples + tests) % classes).astype(np.int32)
    train, test = slice(examples), slice(examples, None)
    return dj.Dataset(images[train], labels[train], images[test], labels[test], classes, "noise")


PLAIN = dict(
    topology="ring",
    round_rate=1.0,
    merge_at_end=False,
    merge_frame="own",
    align_every=1,
    evaluate_every=1,
    merged_every=0,
    optimizer_after_merge="fresh",
    methods=("dimat", "wa"),
)
"""Options whose defaults are those of the main job."""


def small_config(**options) -> dj.Config:
    """Eight agents of 40 examples; a pretraining and two rounds of five steps each."""
    defaults = dict(
        agents=8,
        model="mlp",
        width=0.03,
        pretrain_epochs=1,
        rounds=2,
        batch_size=8,
        learning_rate=0.05,
        matching_images=32,
        statistics_images=32,
    )
    defaults |= PLAIN
    return dj.Config(**defaults | options)


def linear_softmax() -> dj.Model:
    """A softmax regression on flattened images: it compiles at once, and NumPy can follow."""

    def init(key, x):
        kernel = jax.random.normal(key, (x[0].size, 4), x.dtype)
        return {"params": {"kernel": 0.1 * kernel, "bias": jnp.zeros(4, x.dtype)}}

    def apply(variables, x, train=False, key=None):
        params = variables["params"]
        return x.reshape(len(x), -1) @ params["kernel"] + params["bias"], variables

    return dj.Model(init, apply)


def execution_of(
    agents: int, devices: int, sequential: bool = False, lanes_at_once: int | None = None
) -> Execution:
    """A form on the first virtual CPU devices, with masked lanes where they do not divide."""
    lanes = -(-agents // devices)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("agents",), axis_types=(AxisType.Auto,))
    return Execution(mesh, agents, lanes, lanes_at_once or (1 if sequential else lanes), sequential)


def normaliser(dataset: dj.Dataset):
    """Images as stored → what models take, in JAX's default float type."""
    mean, std = (
        jnp.asarray(x, jnp.result_type(float)) for x in channel_statistics(dataset.train_images)
    )
    return lambda images: normalize(images, mean, std)


def preparer(dataset: dj.Dataset):
    """A batch of images as stored → what a classification takes."""
    normalise = normaliser(dataset)
    return lambda batch: {**batch, "inputs": normalise(batch["inputs"])}


def as_batch(inputs, labels=None):
    """A batch of a classification; of class 0 if nothing else is said."""
    return {
        "inputs": inputs,
        "labels": np.zeros(len(inputs), np.int32) if labels is None else labels,
    }


def random_variables(model: dj.Model, image_shape: tuple[int, ...], agents: int | None = None):
    """Random variables of a model, stacked for so many agents; drawn by NumPy: none compiles."""
    dtype = jnp.result_type(float)
    image = jax.ShapeDtypeStruct((1, *image_shape), dtype)
    rng = np.random.default_rng(0)
    lead = () if agents is None else (agents,)

    def draw(path, leaf):
        values = rng.normal(0, (2 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5, (*lead, *leaf.shape))
        values = 1 + np.abs(values) if path[-1].key in ("scale", "var") else values
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(model.init, jax.random.key(0), image)
    )


def disorder(symmetries: dj.Symmetries, seed: int, agents: int | None = None):
    """Random permutations of every group, stacked for so many agents; drawn by NumPy."""
    rng = np.random.default_rng(seed)

    def draw(size):
        rows = np.tile(np.arange(size, dtype=np.int32), (agents or 1, 1))
        rows = rng.permuted(rows, axis=1)
        return jnp.asarray(rows[0] if agents is None else rows)

    return {name: draw(group.size) for name, group in symmetries.groups.items()}


def pick(tree, index):
    """One agent's part of a stacked pytree, or one round's of a graph's exchanges."""
    return jax.tree.map(lambda x: x[index], tree)


class Counter:
    """How often something happened, and how long it took where that is known."""

    count = 0
    seconds = 0.0


def counted(model: dj.Model) -> tuple[dj.Model, Counter]:
    """The model, and the number of times that its `apply` was traced."""
    counter = Counter()

    def apply(variables, x, train=False, key=None):
        counter.count += 1
        return model.apply(variables, x, train=train, key=key)

    return dj.Model(model.init, apply), counter


@contextlib.contextmanager
def compilations():
    """Counts how often, and for how long, XLA compiles anything while the block runs."""
    counter = Counter()

    def listen(event, seconds, **_):
        if event == COMPILE_EVENT:
            counter.count += 1
            counter.seconds += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counter
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def inner_jaxprs(eqn):
    """The jaxprs that an equation holds: bodies of loops, branches, called functions."""
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def equations(jaxpr, inside=()):
    """Every equation of a jaxpr, at any depth, with the names of the primitives around it."""
    for eqn in jaxpr.eqns:
        yield eqn, inside
        for inner in inner_jaxprs(eqn):
            yield from equations(inner, (*inside, eqn.primitive.name))


def is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def assert_trees_equal(first, second):
    """Asserts that two pytrees hold the same bits; keys are compared by their data."""
    assert_trees_close(first, second, tolerance=0)


def assert_trees_close(first, second, tolerance=1e-6):
    """Asserts that two pytrees have one structure and leaves that differ by at most so much."""

    def compare(path, a, b):
        a, b = (jax.random.key_data(x) if is_key(x) else x for x in (a, b))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, first, second)


def traced_through(monkeypatch):
    """Has compiled parts be traced like any function, so that a whole run of them is one jaxpr."""
    for module in (forms, parts):
        monkeypatch.setattr(module, "compiled", lambda function, stopwatch: function)
    monkeypatch.setattr(forms, "executables", lambda function, _: lambda *args: function)
