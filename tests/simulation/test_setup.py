"""What a run works with: defaults filled in, and everything wrong said before anything compiles."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from dimat_jax.execution.population import choose_execution
from helpers.small_runs import compilations, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.simulation import setup
from dimat_jax.simulation.setup import prepare

DATASET = noise(examples=80, tests=20, size=8)
TINY = noise(examples=5, tests=5, size=8)


@pytest.fixture(scope="module", autouse=True)
def keys_are_compiled():
    """Splitting keys is all that preparing computes; it is compiled before compilations count."""
    prepare(small_config(), dataset=DATASET)
    halves = small_config(partition="pretrain_iid_finetune_by_class", batch_size=None)
    prepare(halves, dataset=DATASET)


BAD = {
    "unknown method": ({"methods": ("dimatt",)}, "Unknown method 'dimatt'. Did you mean 'dimat'?"),
    "no method": ({"methods": ()}, "methods must be at least one, each once, not ()"),
    "method twice": ({"methods": ("wa", "wa")}, "each once, not ('wa', 'wa')"),
    "no seed": ({"seeds": ()}, "seeds must be at least one, each once, not ()"),
    "unknown model": ({"model": "convnt"}, "Unknown model 'convnt'. Did you mean 'convnet'?"),
    "unknown topology": ({"topology": "rings"}, "Unknown topology 'rings'. Did you mean 'ring'?"),
    "unknown partition": ({"partition": "idd"}, "Unknown partition 'idd'. Did you mean 'iid'?"),
    "unknown optimizer": ({"optimizer": "adm"}, "Unknown optimizer 'adm'. Did you mean 'adam'?"),
    "unknown augmentation": ({"augmentation": "crop"}, "Unknown augmentation 'crop'."),
    "unknown schedule": ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
    "unknown init": ({"init": "some"}, "Unknown init 'some'. Did you mean 'same'?"),
    "unknown matching": ({"matching_data": "all"}, "Unknown matching_data 'all'."),
    "unknown norm": ({"norm": "bach"}, "Unknown norm 'bach'. Did you mean 'batch'?"),
    "no agents": ({"agents": 0}, "agents must be at least 1, not 0"),
    "one agent on a ring": ({"agents": 1}, "'ring' needs at least 2 agents, not 1"),
    "agents no power of two": ({"agents": 6, "topology": "hypercube"}, "not 6"),
    "more agents than examples": ({"agents": 81}, "There are 81 agents and 80 examples"),
    "first frame on a ring": ({"merge_frame": "first"}, "fully connected graph, not 'ring'"),
    "large batch": ({"batch_size": 11}, "batch_size is 11, but an agent has 10 examples"),
    "no batch": ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    "negative rounds": ({"rounds": -1}, "rounds must be at least 0, not -1"),
    "one matching image": ({"matching_images": 1}, "matching_images must be at least 2, not 1"),
    "learning rate 0": ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
    "learning rate nan": ({"learning_rate": float("nan")}, "must be positive, not nan"),
    "width 0": ({"width": 0.0}, "must be positive, not 0.0"),
    "alpha 0": ({"partition": "dirichlet", "alpha": 0.0}, "alpha is 0.0"),
    "devices that do not divide": ({"devices": 3}, "3 devices do not divide 8 agents evenly"),
    "too many devices": ({"devices": 9, "agents": 9}, "devices must be 1 to 8"),
    "an option that the model lacks": (
        {"model": "vit", "norm": "batch"},
        "vit takes no norm: its normalisation is always the same",
    ),
    "one method as a string": (
        {"methods": "dimat"},
        "methods must be a tuple, ('dimat',) for a single one, not 'dimat'.",
    ),
    "one seed": ({"seeds": 3}, "seeds must be a tuple, (3,) for a single one, not 3."),
    "agents as a string": ({"agents": "4"}, "agents must be a whole number, not '4'."),
    "half an agent": ({"agents": 4.0}, "agents must be a whole number, not 4.0."),
    "no number of agents": ({"agents": None}, "agents must be a whole number, not None."),
    "devices as a string": ({"devices": "2"}, "devices must be a whole number, not '2'."),
    "a seed as a string": ({"seeds": (0, "1")}, "seeds must be a whole number, not '1'."),
    "a rate as a string": ({"learning_rate": "1"}, "learning_rate must be a number, not '1'."),
}


def config_of(**options) -> dj.Config:
    """A configuration of any options: the tests' own check of types would refuse some at once."""
    config = small_config(batch_size=None)
    for name, value in options.items():
        object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_run_is_said_before_anything_compiles(options, message):
    with compilations() as counter, pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare(config_of(**options), dataset=DATASET)
    assert counter.count == 0
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            (nn.Dense(4), None, None),
            "model must be a dj.Model, not a Dense: .*from_linen.*from_nnx",
        ),
        (
            ("mlp", None, None),
            "model must be a dj.Model, not a str: .* a name goes into the Config",
        ),
        ((None, DATASET[:4], None), "dataset must be a dj.Dataset, not a tuple"),
        ((None, None, np.eye(8)), "topology must be a dj.Topology, not a ndarray: .*from_matrix"),
        (
            (None, None, nx.cycle_graph(8)),
            "topology must be a dj.Topology, not a Graph: .*from_graph",
        ),
    ],
)
def test_what_is_handed_over_must_be_what_it_is_taken_for(own, message):
    setup.check_own(dj.models.mlp(), DATASET, topology.ring(8))
    setup.check_own(None, None, None)
    with pytest.raises(ValueError, match=message):
        setup.check_own(*own)


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


def test_keys_of_a_seed_are_independent():
    keys = [*setup.seed_keys(0), *setup.seed_keys(1)]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 8
    for first, second in zip(setup.seed_keys(5), setup.seed_keys(5), strict=True):
        assert (jax.random.key_data(first) == jax.random.key_data(second)).all()


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
        expected = dj.partition.iid(DATASET.train_labels, 8, setup.seed_keys(seed).partition)
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
