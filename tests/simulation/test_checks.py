"""Everything wrong in what a run is asked for is said before anything compiles."""

import re

import flax.linen as nn
import networkx as nx
import numpy as np
import pytest
from helpers.small_runs import compilations, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from dimat_jax.algorithms import METHODS, Algorithm
from dimat_jax.simulation.checks import all_methods, check_own
from dimat_jax.simulation.setup import prepare

DATASET = noise(examples=80, tests=20, size=8)


@pytest.fixture(scope="module", autouse=True)
def keys_are_compiled():
    """Splitting keys is all that preparing computes; it is compiled before compilations count."""
    prepare(small_config(), dataset=DATASET)


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
    "unknown frame": ({"merge_frame": "first"}, "Unknown merge_frame 'first'. There are: own,"),
    "own frames kept": ({"align_every": 2}, "align_every must be 1, not 2, or merge_frame"),
    "aligned at times": ({"align_every": "twice"}, "align_every must be a whole number, not 'twic"),
    "aligned never": ({"merge_frame": "tree", "align_every": 0}, "align_every must be at least 1"),
    "pushed away": ({"proximal": -1.0}, "proximal must be at least 0, not -1.0"),
    "no step without gossip": ({"gossip_every": 0}, "gossip_every must be at least 1, not 0"),
    "relays with pauses": (
        {"gossip_every": 2, "methods": ("relay_sgd",)},
        "relay_sgd exchanges something in every step, so gossip_every must be 1, not 2",
    ),
    "round rate 0": ({"round_rate": 0.0}, "round_rate must be positive, not 0.0"),
    "large batch": ({"batch_size": 11}, "batch_size is 11, but an agent has 10 examples"),
    "no batch": ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    "negative rounds": ({"rounds": -1}, "rounds must be at least 0, not -1"),
    "one matching image": ({"matching_images": 1}, "matching_images must be at least 2, not 1"),
    "learning rate 0": ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
    "learning rate nan": (
        {"learning_rate": float("nan")},
        "learning_rate must be a finite number, not nan",
    ),
    "width 0": ({"width": 0.0}, "must be positive, not 0.0"),
    "alpha 0": ({"partition": "dirichlet", "alpha": 0.0}, "alpha must be positive, not 0.0"),
    "more devices than agents": (
        {"devices": 4, "agents": 3},
        "devices must be 1 to 3 (8 there are, for 3 agents), not 4",
    ),
    "no agents at once": ({"agents_at_once": 0}, "agents_at_once must be at least 1, not 0"),
    "a batch in parts that do not divide it": (
        {"batch_size": 10, "micro_batch": 4},
        "micro_batch is 4, but batch_size is 10, which it must divide: it must be one of 1, 2, 5,",
    ),
    "no part of a batch": ({"micro_batch": 0}, "micro_batch must be at least 1, not 0"),
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
    check_own(dj.models.mlp(), DATASET, topology.ring(8))
    check_own(None, None, None)
    with pytest.raises(ValueError, match=message):
        check_own(*own)


MINE = Algorithm("Mine", merge=METHODS["wa"].merge)


def test_methods_of_ones_own_stand_beside_the_registrys():
    before = dict(METHODS)
    found = all_methods({"mine": MINE})
    assert found == {**METHODS, "mine": MINE} and list(found)[-1] == "mine"
    assert all_methods(None) == all_methods({}) == dict(METHODS) == before


WRONG = {
    "a name that there is": ({"dimat": MINE}, "There is a method 'dimat' already"),
    "the pretraining's name": ({"pretrain": MINE}, "There is a method 'pretrain' already"),
    "a merge": ({"mine": MINE.merge}, "'mine' is a Merge"),
    "no dict": ([MINE], "methods must be a dict of name to dj.algorithms.Algorithm, not a list"),
    "names": (("dimat",), "not a tuple; names go into the Config"),
    "a number for a name": ({3: MINE}, "3 is a Algorithm"),
    "a merge for gossip": (
        {"mine": MINE._replace(gossip=MINE.merge)},
        "gossip of method 'mine' must be a dj.algorithms.Gossip, not a Merge",
    ),
    "a function for a merge": (
        {"mine": MINE._replace(final=MINE.merge.apply)},
        "final of method 'mine' must be a dj.algorithms.Merge, not a partial",
    ),
}


@pytest.mark.parametrize(("methods", "message"), WRONG.values(), ids=WRONG)
def test_methods_that_are_none_are_refused(methods, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        all_methods(methods)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["a name that there is", "a merge for gossip"])
def test_a_run_refuses_them_before_anything_compiles(wrong):
    methods, message = WRONG[wrong]
    with compilations() as counter, pytest.raises(ValueError, match=re.escape(message)):
        dj.simulate(small_config(), model=linear_softmax(), dataset=DATASET, methods=methods)
    assert counter.count == 0


def test_a_name_that_is_nowhere_is_unknown_though_there_are_methods_of_ones_own():
    with pytest.raises(ValueError, match="Unknown method 'mind'. Did you mean 'mine'?"):
        prepare(small_config(methods=("mind",)), dataset=DATASET, methods={"mine": MINE})


@pytest.mark.parametrize("part", ["gossip", "merge", "final"])
def test_each_part_is_asked_whether_it_can_use_the_graph(part):
    other = "cdsgd" if part == "gossip" else "wa"
    (of_other,) = METHODS[other].parts().values()
    mine = MINE._replace(**{part: of_other})
    graph = topology.from_matrix(np.eye(8) + 0.1 * np.eye(8, k=1))
    with pytest.raises(ValueError, match="not doubly stochastic"):
        prepare(small_config(), dataset=DATASET, graph=graph, methods={"mine": mine})
    small = Algorithm("small", **{part: of_other._replace(graph=lambda _: topology.ring(8))})
    used = prepare(small_config(), dataset=DATASET, methods={"mine": small}).graphs["mine"]
    assert {name: graph.name for name, graph in used.items()} == {part: "ring"}
