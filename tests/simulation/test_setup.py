"""What a run works with: defaults filled in, and everything wrong said before anything compiles."""

import dataclasses
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import compilations, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm
from dimat_jax.execution.placement import choose_execution
from dimat_jax.simulation import setup
from dimat_jax.simulation.setup import prepare
from dimat_jax.simulation.state import seed_keys

DATASET = noise(examples=80, tests=20, size=8)
TINY = noise(examples=5, tests=5, size=8)


def test_an_unknown_data_set_is_said_too():
    with pytest.raises(ValueError, match="Unknown data set 'cifar11'. Did you mean 'cifar10'?"):
        prepare(small_config(dataset="cifar11"))


def test_a_class_count_that_does_not_fit():
    message = r"logits of shape \(1, 3\) for one image: they must be of shape \(1, 4\), as noise"
    with pytest.raises(ValueError, match=message):
        prepare(small_config(), dj.models.mlp(num_classes=3, width=0.03), DATASET)
    with pytest.raises(ValueError, match="num_classes is 3"):
        prepare(small_config(), dataset=DATASET._replace(num_classes=3))


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (2, 4), ()])
def test_logits_of_another_shape(shape):
    model = dj.Model(lambda key, x: {"params": {}}, lambda v, x, **_: (jnp.zeros(shape), v))
    with pytest.raises(ValueError, match=re.escape(f"{shape} for one image: they must be of")):
        setup.abstract_inputs(model, DATASET)


def test_what_is_handed_over_is_recorded_under_its_own_name():
    named = prepare(small_config(dataset="digits"), dataset=DATASET).config
    assert (named.model, named.dataset, named.topology) == ("mlp", "noise", "ring")
    matrix = topology.from_matrix(np.full((8, 8), 1 / 8), "mine")
    own = prepare(small_config(), dj.models.mlp(num_classes=4, width=0.03), DATASET, matrix).config
    assert (own.model, own.dataset, own.topology) == ("own", "noise", "mine")


def test_a_graph_of_ones_own_is_checked():
    matrix = np.full((8, 8), 1 / 8)
    matrix[2, 3] += 0.1
    with pytest.raises(ValueError, match=r"row 2 sums to 1.1, \+0.1 away from 1"):
        prepare(small_config(), dataset=DATASET, graph=topology.from_matrix(matrix))
    with pytest.raises(ValueError, match="The topology has 4 agents, the run 8"):
        prepare(small_config(), dataset=DATASET, graph=topology.ring(4))


def test_images_too_small_for_the_model():
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, not 4 x 4"):
        prepare(small_config(model="convnet"), dataset=noise(examples=80, size=4))


def test_an_agent_without_examples():
    with pytest.raises(ValueError, match="has no example"):
        prepare(small_config(agents=5, partition="by_class", batch_size=None), dataset=TINY)


@pytest.mark.parametrize(
    ("optimizer", "examples", "batch_size", "learning_rate"),
    [
        ("momentum", 1250, 50, 0.02),
        ("momentum", 250, 25, 0.01),
        ("sgd", 250, 25, 0.05),
        ("adam", 250, 25, 0.001),
        ("momentum", 7, 1, 0.0004),
    ],
)
def test_defaults_suit_the_size_of_a_share(optimizer, examples, batch_size, learning_rate):
    config = dj.Config(optimizer=optimizer)
    found = setup.choose_batch_size(config, examples)
    assert found == batch_size
    assert setup.choose_learning_rate(config, found) == pytest.approx(learning_rate)
    mine = dataclasses.replace(config, batch_size=5, learning_rate=0.7)
    assert setup.choose_batch_size(mine, examples) == 5
    assert setup.choose_learning_rate(mine, 5) == 0.7


def test_shards_are_those_of_the_partition():
    found = prepare(small_config(seeds=(3, 4), examples_per_agent=None), dataset=DATASET)
    assert set(found.shards) == {3, 4}
    for seed in (3, 4):
        before, after = found.shards[seed]
        expected = dj.partition.iid(DATASET.train_labels, 8, seed_keys(seed).partition)
        np.testing.assert_array_equal(before, expected)
        np.testing.assert_array_equal(after, expected)
    assert not np.array_equal(found.shards[3][0], found.shards[4][0])
    assert found.epoch_examples == (10, 10)


def test_examples_of_an_agent_can_be_limited():
    found = prepare(small_config(examples_per_agent=6, batch_size=3), dataset=DATASET)
    assert found.shards[0][0].shape == (8, 6) and found.epoch_examples == (6, 6)


def test_pretraining_and_rounds_may_have_shards_of_their_own():
    config = small_config(partition="pretrain_iid_finetune_by_class", batch_size=4)
    before, after = prepare(config, dataset=DATASET).shards[0]
    assert not set(before.ravel()) & set(after.ravel())
    assert all(len(set(DATASET.train_labels[rows])) == 1 for rows in after)


def test_an_epoch_is_as_long_for_everyone_as_the_mean_share():
    config = small_config(partition="dirichlet", alpha=1.0, batch_size=None)
    found = prepare(config, dataset=DATASET)
    sizes = {len(set(rows)) for rows in found.shards[0][0]}
    assert len(sizes) > 1 and found.epoch_examples == (10, 10)
    assert {i for rows in found.shards[0][0] for i in rows} == set(range(80))


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_the_rest_is_what_the_options_name(name):
    found = prepare(small_config(model=name, width=0.25, topology="star"), dataset=DATASET)
    image = found.abstract[1]
    assert (image.shape, image.dtype) == ((1, 8, 8, 3), jnp.float32)
    assert found.execution == choose_execution(8, convolutions=name == "convnet")
    assert found.topology.name == "star"
    assert len(found.symmetries.groups) == 3
    assert found.config.learning_rate == found.learning_rate == 0.05
    assert found.augment is dj.datasets.AUGMENTATIONS["none"]  # one's own images: left alone
    own = prepare(small_config(), dataset=DATASET._replace(augmentation="flip_and_crop"))
    assert own.augment is dj.datasets.flip_and_crop  # unless one says what suits them
    mirrored = prepare(
        small_config(model=name, augmentation="flip_and_crop", norm="layer"), dataset=DATASET
    )
    assert mirrored.augment is dj.datasets.flip_and_crop
    assert "batch_stats" not in mirrored.abstract[0]


def test_variables_are_of_jaxs_default_float(x64):
    abstract, image = prepare(small_config(), dataset=DATASET).abstract
    assert {x.dtype for x in [image, *jax.tree.leaves(abstract)]} == {jnp.dtype("float64")}


def test_methods_of_ones_own_follow_those_that_are_named():
    mine = {"mine": Algorithm("Mine"), "other": Algorithm("Other")}
    appended = prepare(small_config(methods=("wa",)), dataset=DATASET, methods=mine)
    assert list(appended.methods) == ["wa", "mine", "other"] == list(appended.config.methods)
    named = small_config(methods=("mine", "wa"))
    found = prepare(named, dataset=DATASET, methods=mine)
    assert list(found.methods) == ["mine", "wa", "other"]
    assert found.methods["mine"] is mine["mine"] and found.methods["wa"] is METHODS["wa"]
    rate = small_config(methods=("mine",), method_learning_rate=(("mine", 0.1),))
    assert prepare(rate, dataset=DATASET, methods=mine).config.methods == ("mine", "other")


@pytest.mark.parametrize(("agents", "devices", "lanes"), [(5, 4, 2), (3, 2, 2), (7, 3, 3)])
def test_devices_need_not_divide_the_agents(agents, devices, lanes):
    found = prepare(small_config(agents=agents, devices=devices), dataset=DATASET).execution
    assert (found.agents, found.lanes, found.mesh.size) == (agents, lanes, -(-agents // lanes))
    assert found.mesh.size > 1


def test_so_many_agents_at_once_as_asked_for():
    found = prepare(small_config(devices=2, agents_at_once=2), dataset=DATASET).execution
    assert (found.lanes, found.lanes_at_once) == (4, 2)


class WithoutBias(nn.Module):
    """No layer that REPAIR could correct."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(8, use_bias=False)(x.reshape(len(x), -1)))
        return nn.Dense(4, use_bias=False)(hidden)


@pytest.mark.parametrize("method", ["dimat_repair", "wa_repair"])
def test_a_method_that_cannot_work_on_the_model_says_so_before_pretraining(method):
    model = dj.from_linen(WithoutBias())
    with (
        compilations() as counter,
        pytest.raises(
            ValueError, match=f"'{method}' cannot merge this model: REPAIR finds no layer"
        ),
    ):
        prepare(small_config(methods=("wa", method)), model, DATASET)
    assert counter.count == 0
    prepare(small_config(methods=("wa", "dimat", "wm")), model, DATASET)


@pytest.mark.parametrize("part", ["initial", "merge", "final"])
def test_each_merge_of_a_method_is_asked_whether_it_fits_the_model(part):
    asked = []

    def fits(model, symmetries, abstract):
        asked.append((len(symmetries.groups), abstract[1].shape))
        raise ValueError("no.")

    merge = METHODS["wa"].merge._replace(fits=fits)
    methods = {"mine": Algorithm("Mine", **{part: merge})}
    with pytest.raises(ValueError, match="The method 'mine' cannot merge this model: no."):
        prepare(small_config(), dataset=DATASET, methods=methods)
    assert asked == [(3, (1, 8, 8, 3))]


def test_where_nothing_can_be_aligned_it_is_said():
    with pytest.warns(UserWarning, match="no permutation group: there is nothing to align"):
        prepare(small_config(methods=("dimat",)), linear_softmax(), DATASET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(small_config(methods=("wa",)), linear_softmax(), DATASET)


def test_of_ones_own_data_all_examples_are_used():
    many = noise(examples=4400, tests=20, size=8)
    small = dict(agents=8, batch_size=None, width=0.03)
    own = prepare(small_config(**small), dataset=many)
    assert own.epoch_examples == (550, 550) and own.config.examples_per_agent is None
    fewer = prepare(small_config(**small, examples_per_agent=60), dataset=many)
    assert fewer.epoch_examples == (60, 60)
    named = prepare(small_config(**small | {"agents": 2, "dataset": "digits"}))
    assert named.epoch_examples == (500, 500) and named.config.examples_per_agent == 500


def test_a_graph_has_its_options(untyped):
    options = dict(agents=8, topology="random_regular")
    degrees = {}
    for degree in (2, 3, None):
        given = () if degree is None else (("degree", degree),)
        graph = prepare(small_config(**options, topology_options=given), dataset=DATASET).topology
        degrees[degree] = {len(graph.neighbors(i)) for i in range(8)}
    assert degrees == {2: {2}, 3: {3}, None: {4}}
    bad = {
        (("p", 0.3),): "topology 'random_regular': got an unexpected keyword argument 'p'",
        (("degree", 2.5),): "degree must be a whole number, not 2.5",
        (("degree", 8),): "degree must be between 1 and 7 for 8 agents, not 8",
        (("degree", 3), ("degree", 2)): "topology_options must name each once",
        ("degree",): "topology_options must be of pairs",
    }
    for given, message in bad.items():
        with pytest.raises(ValueError, match=message):
            prepare(small_config(**options, topology_options=given), dataset=DATASET)
    with pytest.raises(ValueError, match="topology_options are those of a named topology"):
        config = small_config(topology_options=(("degree", 3),))
        prepare(config, dataset=DATASET, graph=topology.ring(8))
