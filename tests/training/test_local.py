"""One agent's training step, against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.agents import AGENTS, first_state, number, remembering
from helpers.small_runs import (
    as_batch,
    assert_trees_close,
    linear_softmax,
    noise,
    normaliser,
    pick,
    preparer,
)

import dimat_jax as dj
from dimat_jax.models.convnet import ConvNet
from dimat_jax.training.local import Micro, batch_gradient, epoch_order, train_update
from dimat_jax.training.optimizers import OPTIMIZERS
from dimat_jax.training.state import init_population

EXAMPLES, STEPS, BATCH = 13, 3, 4


def order_of(epoch=0, lanes=1, seed=0):
    return np.asarray(
        epoch_order(jax.random.key(seed), epoch, AGENTS, EXAMPLES, STEPS, BATCH, lanes)
    )


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_an_epoch_takes_each_agent_through_its_own_shard_once(lanes):
    order = order_of(lanes=lanes)
    assert order.shape == (AGENTS, STEPS, BATCH) and order.dtype == np.int32
    within = order - EXAMPLES * (np.arange(AGENTS) % lanes)[:, None, None]
    for rows in within.reshape(AGENTS, -1):
        assert len(set(rows)) == STEPS * BATCH and set(rows) <= set(range(EXAMPLES))
    np.testing.assert_array_equal(within, order_of(lanes=1))  # whatever the devices


@pytest.mark.parametrize(("lanes", "all_lanes"), [(2, 4), (3, 6), (4, 8), (5, 5)])
def test_masked_lanes_go_through_the_last_agents_examples(lanes, all_lanes):
    sizes = AGENTS, EXAMPLES, STEPS, BATCH
    order = np.asarray(epoch_order(jax.random.key(0), 0, *sizes, lanes, all_lanes))
    assert order.shape == (all_lanes, STEPS, BATCH)
    within = order - EXAMPLES * (np.arange(all_lanes) % lanes)[:, None, None]
    own = order_of()[np.minimum(np.arange(all_lanes), AGENTS - 1)]
    np.testing.assert_array_equal(within, own)


def test_a_full_epoch_leaves_no_example_out():
    order = epoch_order(jax.random.key(3), 1, AGENTS, 12, 4, 3, 1)
    np.testing.assert_array_equal(np.sort(order.reshape(AGENTS, -1)), np.tile(range(12), (4, 1)))


def test_agents_epochs_and_seeds_have_orders_of_their_own():
    orders = [*order_of(), *order_of(epoch=1), *order_of(seed=1)]
    assert len({order.tobytes() for order in orders}) == 3 * AGENTS
    np.testing.assert_array_equal(order_of(epoch=1), order_of(epoch=1))


def test_the_order_is_the_same_in_float64(x64):
    in_float64 = order_of(epoch=2)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(order_of(epoch=2), in_float64)


REFERENCES = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=0.0),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_step_is_that_of_a_plain_optax_loop(name, x64):
    assert set(REFERENCES) == set(OPTIMIZERS)
    dataset = noise(examples=EXAMPLES, size=4, channels=1)
    model = dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")
    normalise, order = normaliser(dataset), order_of()[0]
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    state = pick(first_state(model, name), 0)

    def schedule(step):
        return 0.1 / (1 + step)

    reference = REFERENCES[name](schedule)

    @jax.jit
    def plain_step(variables, opt_state, x, y):
        def loss_of(params):
            logits, new = model.apply({**variables, "params": params}, x, train=True)
            picked = jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
            return -picked.mean(), new["batch_stats"]

        params = variables["params"]
        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = reference.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": batch_stats}, opt_state, loss

    variables, opt_state, losses = state.variables, reference.init(state.variables["params"]), []
    for step in range(2 * STEPS):  # a second epoch in the same order
        rows = order[step % STEPS]
        x, y = normalise(images[rows]), labels[rows]
        variables, opt_state, loss = plain_step(variables, opt_state, x, y)
        losses.append(loss)

    task, prepare = dj.classification(model), preparer(dataset)
    update = train_update(task, OPTIMIZERS[name](), schedule, lambda key, batch: prepare(batch))
    step = jax.jit(update)
    for _ in range(2 * STEPS):
        state = step(state, order, as_batch(images, labels))
    assert_trees_close(state.variables, variables, tolerance=1e-12)
    assert state.loss == pytest.approx(float(sum(losses)), abs=1e-12)
    assert (int(state.step), int(state.diverged)) == (2 * STEPS, -1)
    assert {x.dtype for x in jax.tree.leaves(state.variables)} == {jnp.dtype("float64")}


def test_the_schedule_goes_on_where_an_optimizer_starts_afresh(x64):
    dataset = noise(examples=EXAMPLES, size=4, channels=1)
    model, normalise = linear_softmax(), normaliser(dataset)
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    rates = np.array([0.5, 0.25, 0.125, 0.0625])
    optimizer = OPTIMIZERS["momentum"]()
    update = jax.jit(
        train_update(
            dj.classification(model),
            optimizer,
            lambda step: jnp.asarray(rates)[step],
            lambda _, batch: preparer(dataset)(batch),
        )
    )
    state, order = pick(first_state(model, "momentum"), 0), order_of()[0]
    for step in range(4):
        state = state._replace(optimizer=optimizer.init(state.variables["params"]))
        before = state.variables["params"]["bias"]
        x, y = normalise(images[order[step % STEPS]]), labels[order[step % STEPS]]
        logits, _ = model.apply(state.variables, x)
        gradient = (jax.nn.softmax(logits) - jax.nn.one_hot(y, 4)).mean(0)
        state = update(state, order, as_batch(images, labels))
        moved = state.variables["params"]["bias"] - before
        np.testing.assert_allclose(moved, -rates[step] * gradient, atol=1e-14)


def test_an_agent_with_an_anchor_is_pulled_back_to_it(x64):
    dataset = noise(examples=EXAMPLES, size=4, channels=1)
    model, prepare = linear_softmax(), preparer(dataset)
    resident = as_batch(jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
    schedule, optimizer = optax.constant_schedule(0.5), OPTIMIZERS["sgd"]()
    task = dj.classification(model)
    step = jax.jit(train_update(task, optimizer, schedule, lambda _, batch: prepare(batch), 0.3))
    state, order = pick(first_state(model, "sgd"), 0), order_of()[0]
    anchor = jax.tree.map(lambda x: x + 1.0, state.variables["params"])
    free = step(state, order, resident).variables["params"]
    pulled = step(state._replace(anchor=anchor), order, resident).variables["params"]
    expected = jax.tree.map(
        lambda x, p, a: x - 0.5 * 0.3 * (p - a), free, state.variables["params"], anchor
    )
    assert_trees_close(pulled, expected, tolerance=1e-12)


def test_every_step_of_every_agent_has_keys_of_its_own():
    images, labels = jnp.zeros((EXAMPLES, 4, 4, 1), jnp.uint8), jnp.zeros(EXAMPLES, jnp.int32)

    def prepare(key, batch):
        inputs = jnp.zeros(batch["inputs"].shape).at[:, 0, :2, 0].set(number(key))
        return {**batch, "inputs": inputs}

    task = dj.classification(remembering())
    update = train_update(task, OPTIMIZERS["sgd"](), optax.constant_schedule(0.1), prepare)
    step = jax.jit(jax.vmap(update, in_axes=(0, 0, None)))
    state, keys = first_state(remembering(), "sgd"), []
    for _ in range(2 * STEPS):
        state = step(state, order_of(), as_batch(images, labels))
        seen = jax.device_get(state.variables["batch_stats"])
        keys += [tuple(x) for x in (*seen["mean"][:, 0, :2, 0], *seen["key"])]
    # One for the augmentation and one for the model, of every agent in every step.
    assert len(set(keys)) == 2 * 2 * STEPS * AGENTS


def test_the_first_step_whose_loss_is_not_finite_is_remembered():
    images = jnp.ones((EXAMPLES, 4, 4, 1), jnp.uint8).at[5].set(255)
    labels = jnp.zeros(EXAMPLES, jnp.int32)
    model = linear_softmax()

    def prepare(key, batch):
        images = batch["inputs"]
        return {**batch, "inputs": jnp.where(images == 255, jnp.nan, images / 255)}

    update = train_update(
        dj.classification(model), OPTIMIZERS["sgd"](), optax.constant_schedule(0.0), prepare
    )
    order = np.ones((2, 3, 2), np.int32)
    order[1, 1, 1] = 5  # agent 1 meets the bad image in its second step
    step = jax.jit(jax.vmap(update, in_axes=(0, 0, None)))
    state = first_state(model, "sgd", agents=2)
    for _ in range(6):
        state = step(state, order, as_batch(images, labels))
    assert state.diverged.tolist() == [-1, 1]


@pytest.mark.parametrize(
    "optimizer",
    [optax.inject_hyperparams(optax.sgd)(0.1), optax.adam(1e-3, mu_dtype=jnp.float32)],
    ids=["hyperparameters", "wide moments"],
)
def test_parameters_keep_their_types(optimizer):
    params = {"a": jnp.ones(3), "w": jnp.ones(3, jnp.bfloat16)}
    task = dj.Task(
        lambda key, batch: {"params": params},
        lambda v, b, key=None, train=False: (
            (b["x"] * (v["params"]["a"] + v["params"]["w"])).sum(1), {}, v),
        lambda v, b: v["params"],
    )  # fmt: skip
    update = train_update(task, optimizer, lambda step: 1.0, lambda key, batch: batch)
    state = init_population(task, optimizer, jax.random.key(0), 1, {"x": jnp.zeros((2, 3))})
    state = jax.tree.map(lambda x: x[0], state)
    after = update(state, jnp.zeros((1, 2), jnp.int32), {"x": jnp.ones((4, 3))})
    kinds = [jax.tree.map(lambda x: x.dtype, s.variables) for s in (state, after)]
    assert kinds[0] == kinds[1]
    assert float(after.variables["params"]["a"][0]) != 1


# A batch in parts ---------------------------------------------------------------------------------

TASKS = {
    "images": (dj.classification(dj.from_linen(ConvNet(num_classes=4, channels=(3,), norm="none"))),
               lambda rng: as_batch(rng.normal(size=(24, 4, 4, 1)), rng.integers(0, 4, 24))),
    "tokens": (dj.language_model(dj.models.gpt(num_classes=5, width=0.25, depth=1, heads=1)),
               lambda rng: {"tokens": rng.integers(0, 5, (24, 6))}),
    "targets": (dj.regression(linear_softmax()),
                lambda rng: {"inputs": rng.normal(size=(24, 3)),
                             "targets": rng.normal(size=(24, 4))}),
}  # fmt: skip


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize(
    "name", ["images", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tokens", "targets"))]
)
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(name, unrolled, x64):
    """Each example as it is augmented in the whole batch."""
    task, make = TASKS[name]
    examples = jax.tree.map(jnp.asarray, make(np.random.default_rng(0)))
    variables = task.init(jax.random.key(1), examples)

    def prepare(key, batch):
        name = "inputs" if "inputs" in batch else None
        noise = jax.random.normal(key, batch[name].shape) if name else None
        return {**batch, name: batch[name] + noise} if name else batch

    def gradient(micro):
        order = jnp.arange(24).reshape(2, 12)
        step, key = jnp.int32(1), jax.random.key(2)
        return jax.jit(
            lambda v: batch_gradient(task, prepare, v, key, step, order, examples, micro)
        )(variables)

    whole = gradient(None)
    assert max(abs(x).max() for x in jax.tree.leaves(whole[0])) > 1e-3
    for size in (3, 12):
        assert_trees_close(gradient(Micro(size, unrolled)), whole, 1e-12)


@pytest.mark.slow
def test_statistics_of_parts_are_averaged_and_each_has_a_key_of_its_own(x64):
    """As if each part were a batch from the same start: ghost batches."""
    model = dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")
    task = dj.classification(model)
    rng = np.random.default_rng(0)
    examples = as_batch(jnp.asarray(rng.normal(size=(6, 4, 4, 1))), jnp.arange(6) % 4)
    variables = task.init(jax.random.key(1), examples)

    def gradient(rows, micro=None):
        order, key, step = jnp.asarray([rows]), jax.random.key(2), jnp.int32(0)
        return jax.jit(
            lambda v: batch_gradient(task, lambda _, b: b, v, key, step, order, examples, micro)
        )(variables)

    parts = [gradient([0, 1]), gradient([2, 3]), gradient([4, 5])]
    mean = jax.tree.map(lambda *x: sum(x) / 3, *parts)
    for unrolled in (True, False):
        assert_trees_close(gradient(range(6), Micro(2, unrolled)), mean, 1e-12)

    task, whole = dj.classification(remembering()), first_state(remembering(), "sgd", 1)
    variables = pick(whole.variables, 0)
    keys = {
        tuple(gradient(range(6), Micro(size, True))[2]["batch_stats"]["key"].tolist())
        for size in (1, 2, 3, 6)
    }
    assert len(keys) == 4


def test_what_is_no_float_is_counted_once_a_step():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    task = dj.Task(
        lambda key, batch: {"params": params, "count": {"n": jnp.int32(0)}},
        lambda v, b, key=None, train=False: (
            (b["x"] * v["params"]["w"]).sum(1), {}, {**v, "count": {"n": v["count"]["n"] + 1}}),
        lambda v, b: v["params"],
    )  # fmt: skip
    examples = {"x": jnp.ones((6, 3), jnp.bfloat16)}
    variables, order = task.init(jax.random.key(0), examples), jnp.arange(6)[None]
    for unrolled in (True, False):
        gradient, loss, statistics = batch_gradient(
            task, lambda _, b: b, variables, jax.random.key(0), jnp.int32(0), order, examples,
            Micro(2, unrolled),
        )  # fmt: skip
        assert int(statistics["count"]["n"]) == 1 and float(loss) == 3
        assert gradient["w"].dtype == jnp.bfloat16 and gradient["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("unrolled", [True, False])
def test_the_activations_of_one_part_are_held_at_a_time(unrolled):
    task, _ = TASKS["images"]
    batch = as_batch(jnp.zeros((64, 16, 16, 1)), jnp.zeros(64, jnp.int32))
    variables = task.init(jax.random.key(0), batch)

    def temporaries(micro):
        def gradient(variables):
            order, key, step = jnp.arange(64)[None], jax.random.key(0), jnp.int32(0)
            return batch_gradient(
                task, lambda _, b: b, variables, key, step, order, batch, micro
            )  # fmt: skip

        compiled = jax.jit(gradient).lower(variables).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(Micro(8, unrolled)) < temporaries(None) / 2
