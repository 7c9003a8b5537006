"""One agent's training step and evaluation, against plain loops and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_runs import (
    assert_trees_close,
    assert_trees_equal,
    linear_softmax,
    noise,
    normaliser,
    random_variables,
)

import dimat_jax as dj
from dimat_jax.training import local as training

AGENTS, EXAMPLES, STEPS, BATCH = 4, 13, 3, 4


def order_of(epoch=0, lanes=1, seed=0):
    return np.asarray(
        training.epoch_order(jax.random.key(seed), epoch, AGENTS, EXAMPLES, STEPS, BATCH, lanes)
    )


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_an_epoch_takes_each_agent_through_its_own_shard_once(lanes):
    order = order_of(lanes=lanes)
    assert order.shape == (AGENTS, STEPS, BATCH) and order.dtype == np.int32
    within = order - EXAMPLES * (np.arange(AGENTS) % lanes)[:, None, None]
    for rows in within.reshape(AGENTS, -1):
        assert len(set(rows)) == STEPS * BATCH and set(rows) <= set(range(EXAMPLES))
    np.testing.assert_array_equal(within, order_of(lanes=1))  # whatever the devices


def test_a_full_epoch_leaves_no_example_out():
    order = training.epoch_order(jax.random.key(3), 1, AGENTS, 12, 4, 3, 1)
    np.testing.assert_array_equal(np.sort(order.reshape(AGENTS, -1)), np.tile(range(12), (4, 1)))


def test_agents_epochs_and_seeds_have_orders_of_their_own():
    orders = [*order_of(), *order_of(epoch=1), *order_of(seed=1)]
    assert len({order.tobytes() for order in orders}) == 3 * AGENTS
    np.testing.assert_array_equal(order_of(epoch=1), order_of(epoch=1))


def test_the_order_is_the_same_in_float64(x64):
    in_float64 = order_of(epoch=2)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(order_of(epoch=2), in_float64)


def number(key):
    """A key as two exact floats: what would be drawn from it, without compiling a generator."""
    return (jax.random.key_data(key) % 2**16).astype(float)


def remembering() -> dj.Model:
    """A model whose statistics are the mean of the last batch seen in training, and its key."""
    plain = linear_softmax()

    def init(key, x):
        start = {"mean": jnp.zeros(x.shape[1:]), "key": jnp.zeros(2)}
        return {**plain.init(key, x), "batch_stats": start}

    def apply(variables, x, train=False, key=None):
        logits, _ = plain.apply(variables, x)
        if not train:
            return logits, variables
        seen = {"mean": x.mean(0), "key": number(key)}
        return logits, {**variables, "batch_stats": seen}

    return dj.Model(init, apply)


def first_state(model, name, agents=AGENTS):
    """States of random variables at the first step."""
    variables = random_variables(model, (4, 4, 1), agents)
    zero = jnp.zeros(agents, jnp.int32)
    return training.AgentState(
        variables=variables,
        optimizer=jax.vmap(training.OPTIMIZERS[name]().init)(variables["params"]),
        key=jax.random.split(jax.random.key(0), agents),
        step=zero,
        rate_scale=jnp.ones(agents),
        loss=jnp.zeros(agents),
        diverged=zero - 1,
    )


def agent_of(tree, agent):
    return jax.tree.map(lambda x: x[agent], tree)


REFERENCES = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_step_is_that_of_a_plain_optax_loop(name, x64):
    assert set(REFERENCES) == set(training.OPTIMIZERS)
    dataset = noise(examples=EXAMPLES, size=4, channels=1)
    model = dj.models.mlp(num_classes=4, width=0.03, depth=1, norm="batch")
    normalise, order = normaliser(dataset), order_of()[0]
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    state = agent_of(first_state(model, name), 0)

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
        updates, opt_state = reference.update(gradients, opt_state)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": batch_stats}, opt_state, loss

    variables, opt_state, losses = state.variables, reference.init(state.variables["params"]), []
    for step in range(2 * STEPS):  # a second epoch in the same order
        rows = order[step % STEPS]
        x, y = normalise(images[rows]), labels[rows]
        variables, opt_state, loss = plain_step(variables, opt_state, x, y)
        losses.append(loss)

    update = training.train_update(
        model, training.OPTIMIZERS[name](), schedule, lambda key, images: normalise(images)
    )
    step = jax.jit(update)
    for _ in range(2 * STEPS):
        state = step(state, order, (images, labels))
    assert_trees_close(state.variables, variables, tolerance=1e-12)
    assert state.loss == pytest.approx(float(sum(losses)), abs=1e-12)
    assert (int(state.step), int(state.diverged)) == (2 * STEPS, -1)
    assert {x.dtype for x in jax.tree.leaves(state.variables)} == {jnp.dtype("float64")}


def test_the_schedule_goes_on_where_an_optimizer_starts_afresh(x64):
    dataset = noise(examples=EXAMPLES, size=4, channels=1)
    model, normalise = linear_softmax(), normaliser(dataset)
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    rates = np.array([0.5, 0.25, 0.125, 0.0625])
    optimizer = training.OPTIMIZERS["momentum"]()
    update = jax.jit(
        training.train_update(
            model, optimizer, lambda step: jnp.asarray(rates)[step], lambda _, x: normalise(x)
        )
    )
    state, order = agent_of(first_state(model, "momentum"), 0), order_of()[0]
    for step in range(4):
        state = state._replace(optimizer=optimizer.init(state.variables["params"]))
        before = state.variables["params"]["bias"]
        x, y = normalise(images[order[step % STEPS]]), labels[order[step % STEPS]]
        logits, _ = model.apply(state.variables, x)
        gradient = (jax.nn.softmax(logits) - jax.nn.one_hot(y, 4)).mean(0)
        state = update(state, order, (images, labels))
        moved = state.variables["params"]["bias"] - before
        np.testing.assert_allclose(moved, -rates[step] * gradient, atol=1e-14)


def test_every_step_of_every_agent_has_keys_of_its_own():
    images, labels = jnp.zeros((EXAMPLES, 4, 4, 1), jnp.uint8), jnp.zeros(EXAMPLES, jnp.int32)

    def prepare(key, images):
        return jnp.zeros(images.shape).at[:, 0, :2, 0].set(number(key))

    update = training.train_update(
        remembering(), training.OPTIMIZERS["sgd"](), optax.constant_schedule(0.1), prepare
    )
    step = jax.jit(jax.vmap(update, in_axes=(0, 0, None)))
    state, keys = first_state(remembering(), "sgd"), []
    for _ in range(2 * STEPS):
        state = step(state, order_of(), (images, labels))
        seen = jax.device_get(state.variables["batch_stats"])
        keys += [tuple(x) for x in (*seen["mean"][:, 0, :2, 0], *seen["key"])]
    # One for the augmentation and one for the model, of every agent in every step.
    assert len(set(keys)) == 2 * 2 * STEPS * AGENTS


def test_the_first_step_whose_loss_is_not_finite_is_remembered():
    images = jnp.ones((EXAMPLES, 4, 4, 1), jnp.uint8).at[5].set(255)
    labels = jnp.zeros(EXAMPLES, jnp.int32)
    model = linear_softmax()
    update = training.train_update(
        model,
        training.OPTIMIZERS["sgd"](),
        optax.constant_schedule(0.0),
        lambda key, images: jnp.where(images == 255, jnp.nan, images / 255),
    )
    order = np.ones((2, 3, 2), np.int32)
    order[1, 1, 1] = 5  # agent 1 meets the bad image in its second step
    step = jax.jit(jax.vmap(update, in_axes=(0, 0, None)))
    state = first_state(model, "sgd", agents=2)
    for _ in range(6):
        state = step(state, order, (images, labels))
    assert state.diverged.tolist() == [-1, 1]


@pytest.mark.parametrize("same", [False, True])
def test_initial_states_differ_between_agents_unless_they_must_not(same):
    model, optimizer = remembering(), training.OPTIMIZERS["momentum"]()
    state = training.init_population(
        model, optimizer, jax.random.key(0), AGENTS, (4, 4, 1), same=same
    )
    kernels = np.asarray(state.variables["params"]["kernel"])
    assert kernels.shape == (AGENTS, 16, 4)
    assert len({kernel.tobytes() for kernel in kernels}) == (1 if same else AGENTS)
    keys = np.asarray(jax.random.key_data(state.key))
    assert len({key.tobytes() for key in keys}) == AGENTS
    assert (state.step == 0).all() and (state.diverged == -1).all() and (state.loss == 0).all()
    zeros = jax.tree.map(jnp.zeros_like, state.variables["params"])
    assert_trees_equal(state.optimizer.trace, zeros)


def test_a_population_can_be_made_of_shapes_only():
    shapes = jax.eval_shape(
        lambda key: training.init_population(
            linear_softmax(), training.OPTIMIZERS["adam"](), key, AGENTS, (4, 4, 1)
        ),
        jax.random.key(0),
    )
    assert shapes.variables["params"]["kernel"].shape == (AGENTS, 16, 4)
    assert shapes.optimizer.nu["bias"].shape == (AGENTS, 4)


@pytest.mark.parametrize("tests", [5, 8, 10])
def test_evaluation_is_that_of_numpy(tests, x64):
    dataset = noise(examples=8, tests=tests, size=4, channels=1)
    normalise = normaliser(dataset)
    resident = training.test_batches(dataset.test_images, dataset.test_labels, 4)
    assert resident[0].shape[:2] == resident[1].shape == (-(-tests // 4), 4)
    variables = first_state(linear_softmax(), "sgd").variables
    update = jax.jit(
        jax.vmap(training.evaluate_update(linear_softmax(), normalise), in_axes=(0, 0, None))
    )
    score = training.zero_score(AGENTS)
    for _ in range(len(resident[0])):
        score = update(score, variables, resident)

    x = (dataset.test_images / 255.0).reshape(tests, -1)
    mean, std = (float(v[0]) for v in dj.datasets.channel_statistics(dataset.train_images))
    params = jax.device_get(variables["params"])
    for agent in range(AGENTS):
        logits = (x - mean) / std @ params["kernel"][agent] + params["bias"][agent]
        correct = (logits.argmax(1) == dataset.test_labels).sum()
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(tests), dataset.test_labels]
        assert int(score.correct[agent]) == correct
        assert float(score.loss[agent]) == pytest.approx(losses.sum(), rel=1e-10)
    assert score.batch.tolist() == [len(resident[0])] * AGENTS


def test_the_last_test_batch_is_filled_up_with_images_of_no_class():
    dataset = noise(examples=4, tests=5, size=4, channels=1)
    images, labels = training.test_batches(dataset.test_images, dataset.test_labels, 3)
    np.testing.assert_array_equal(images.reshape(6, 4, 4, 1)[:5], dataset.test_images)
    assert labels.reshape(6).tolist() == [*dataset.test_labels.tolist(), -1]
