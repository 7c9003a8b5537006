"""Bad input of every kind is one sentence, on the command line and from Python.

What is in the tables of ``tests/experiments/test_experiments.py``, ``tests/simulation`` and the
rooms' own tests is not repeated here; ``tests/test_answers.py`` tries values of all kinds.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import topology
from experiments.cifar import main

TINY = """--dataset digits --model mlp --agents 4 --pretrain-epochs 1 --rounds 1 --topology ring
--methods dimat wa""".split()

TYPED = {
    "--agents -3": "agents must be at least 1, not -3.",
    "--agents 1e3": "agents must be a whole number, not '1e3'.",
    "--pretrain-epochs -1": "pretrain_epochs must be at least 0, not -1.",
    "--epochs-per-round -1": "epochs_per_round must be at least 0, not -1.",
    "--evaluate-every 0": "evaluate_every must be at least 1, not 0.",
    "--merged-every -1": "merged_every must be at least 0, not -1.",
    "--checkpoint-every -1": "checkpoint_every must be at least 0, not -1.",
    "--keep-checkpoints 0": "keep_checkpoints must be at least 1, not 0.",
    "--batch-size 2.5": "batch_size must be a whole number, not '2.5'.",
    "--statistics-images 0": "statistics_images must be at least 2, not 0.",
    "--test-examples 0": "test_examples must be at least 1, not 0.",
    "--examples-per-agent 0": "examples_per_agent must be at least 1, not 0.",
    "--examples-per-agent many": "must be a whole number or auto, not 'many'.",
    "--width nan": "width must be a finite number, not nan.",
    "--width -1": "width must be positive, not -1.0.",
    "--width 1e9": "The run needs at least 1.05e+04 ZB for its agents and their data, and this",
    "--model resnet20 --width 1e7": "reduce width to ",
    "--partition dirichlet --alpha -1": "alpha must be positive, not -1.0.",
    "--weight-decay -0.1": "weight_decay must be at least 0, not -0.1.",
    "--clip 0": "clip must be positive, not 0.0.",
    "--clip inf": "clip must be a finite number, not inf.",
    "--label-smoothing 1.5": "label_smoothing must be at most 1, not 1.5.",
    "--warmup-epochs -1": "warmup_epochs must be at least 0, not -1.",
    "--proximal nan": "proximal must be a finite number, not nan.",
    "--learning-rate inf": "learning_rate must be a finite number, not inf.",
    "--message-loss 1.5": "message_loss must be at most 1, not 1.5.",
    "--message-loss often": "message_loss must be a number, not 'often'.",
    "--stale-messages -0.1": "stale_messages must be at least 0, not -0.1.",
    "--seeds -1": "seeds must be at least 0, not -1.",
    "--seeds 99999999999": "seeds must be at most 4294967295, not 99999999999.",
    "--devices 0": "devices must be at least 1, not 0.",
    "--agents-at-once 1.5": "agents_at_once must be a whole number, not '1.5'.",
    "--topology hypercube --agents 6": "'hypercube' needs 2, 4, 8, 16 ... agents, not 6.",
    "--topology torus --agents 5": "needs rows x columns agents, both at least 2, which 5 is",
    "--topology random_regular --topology-options degree 2.5": "must be a whole number, not 2.5.",
    "--topology erdos_renyi --topology-options p 2": "above 0 and at most 1, not 2.",
    "--topology-options p 1 p 2": "must name each once, not (('p', 1), ('p', 2)).",
    "--method-learning-rate dimat 0": "learning_rate of dimat must be positive, not 0.0.",
    "--method-learning-rate wa 1 wa 2": "must name each once, not (('wa', 1.0), ('wa', 2.0)).",
    "--method-learning-rate wa fast": "method_learning_rate must be a number, not 'fast'.",
    "--round-schedule cosin": "Unknown round_schedule 'cosin'. Did you mean 'cosine'?",
    "--optimizer-after-merge kep": "Unknown optimizer_after_merge 'kep'. Did you mean 'kept'?",
    "--align-every twice": "align_every must be a whole number or once, not 'twice'.",
    "--statistics-data everyone": "Unknown statistics_data 'everyone'. There are: own, shared.",
    "--estimate h200": "Unknown estimate 'h200'. Did you mean 'h100'?",
    "--out": "out needs a value.",
}
"""What stands on a command line → what is said of it, in part."""


@pytest.fixture(autouse=True)
def surroundings(untyped, monkeypatch, tmp_path):
    """As users run it, in a folder and with a cache of these tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_wrong_is_one_sentence_and_exit_code_2(typed, capsys, tmp_path):
    assert main([*TINY, *typed.split()]) == 2
    said = capsys.readouterr().err
    assert TYPED[typed] in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())  # no folder of a run that never was


DATASET, SOFTMAX = noise(examples=80, tests=20, size=8), linear_softmax()
MLP = dj.models.mlp(num_classes=4, width=0.02)
KEY, IMAGES = jax.random.key(0), jnp.ones((2, 4, 4, 1))
WA = dj.algorithms.METHODS["wa"]
NAME = "A name of a method must have at most 100 characters, none of them / or"


def simulate(options=None, **own):
    """A run of two agents."""
    config = small_config(agents=2, **(options or {}))
    return dj.simulate(config, **{"model": SOFTMAX, "dataset": DATASET, "observer": None, **own})


def networks():
    """A network, its groups, and a wider one."""
    ours = MLP.init(KEY, IMAGES)
    wider = dj.models.mlp(num_classes=4, width=0.05).init(KEY, IMAGES)
    return dj.find_symmetries(MLP, ours, IMAGES), ours, wider


def match_wider():
    symmetries, ours, wider = networks()
    return dj.match_weights(symmetries, ours, wider, KEY)


def permute_nobody():
    symmetries, ours, _ = networks()
    return dj.permute(symmetries, {"nobody": jnp.arange(3)}, ours)


def merge_with_one_weight():
    symmetries, ours, _ = networks()
    return dj.merge(symmetries, [ours, ours], [0.5], [{}, {}])


CALLED = {
    "a dict for a Config": (
        lambda: dj.simulate({"agents": 4}),
        "config must be a dj.Config, as dj.Config(agents=4), not {'agents': 4}.",
    ),
    "to go on without a folder": (
        lambda: simulate({"resume": True}),
        "resume needs out: the folder of the run that is to go on.",
    ),
    "a number for a folder": (lambda: simulate({"out": 5}), "out must be a path, not 5."),
    "a number for data": (lambda: simulate({"data_dir": 3}), "data_dir must be a path, not 3."),
    "rates as a dict": (
        lambda: simulate({"method_learning_rate": {"wa": 1.0}}),
        "must be a tuple, (('name', 1),) for a single one, not {'wa': 1.0}.",
    ),
    "pairs that are none": (
        lambda: simulate({"method_learning_rate": (("wa",),)}),
        "method_learning_rate must be of pairs, ('name', 1), not of ('wa',).",
    ),
    "a rate of nobody": (
        lambda: simulate({"method_learning_rate": (("waa", 1.0),)}),
        "Unknown method of method_learning_rate 'waa'. Did you mean 'wa'?",
    ),
    "a number for faults": (lambda: simulate(faults=0.1), "faults must be a dj.Faults, not 0.1."),
    "a tuple for events": (lambda: simulate(events=((1, 0),)), "events must be a dj.Events, not"),
    "a loss by agent": (
        lambda: simulate(faults=dj.Faults(message_loss={3: 0.1})),
        "message_loss must be a tuple of (agent, agent), not of 3.",
    ),
    "a function for an observer": (lambda: simulate(observer=print), "must be a dj.Observer,"),
    "a method in a folder": (lambda: simulate(methods={"a/b": WA}), NAME),
    "a hidden method": (lambda: simulate(methods={".a": WA}), NAME),
    "a method without a name": (lambda: simulate(methods={"": WA}), NAME),
    "a method with a NUL": (lambda: simulate(methods={"a\0": WA}), NAME),
    "a method of a long name": (lambda: simulate(methods={"a" * 101: WA}), NAME),
    "a model beside a task": (
        lambda: simulate(task=dj.classification(SOFTMAX)),
        "task says what agents learn: model must be left out beside it.",
    ),
    "a name for an optimizer": (
        lambda: simulate(optimizer="adam"),
        "must be an optax.GradientTransformation, not 'adam'; a name goes into the Config.",
    ),
    "a graph of other agents": (
        lambda: simulate(topology=topology.ring(3)),
        "The topology has 3 agents, the run 2.",
    ),
    "a seed that it has not": (
        lambda: dj.make_session(small_config(agents=2), model=SOFTMAX, dataset=DATASET).start(7),
        "seed must be one of (0,), not 7.",
    ),
    "no run": (lambda: dj.load_run("nowhere"), "config.json cannot be read: "),
    "a number for a run": (lambda: dj.load_run(3), "path must be a path, not 3."),
    "no such device": (
        lambda: dj.estimate(small_config(), "tpu9"),
        "Unknown device 'tpu9'. There are: h100,",
    ),
    "a matrix that is none": (
        lambda: topology.from_matrix(np.ones((2, 3)) / 3),
        "A mixing matrix is [agents, agents] or [period, agents, agents], not [2, 3].",
    ),
    "a wider network": (match_wider, "has shape (5,) in the target but (13,) in the source."),
    "no such group": (permute_nobody, "There is no permutation group 'nobody'; the groups are:"),
    "too few weights": (
        merge_with_one_weight,
        "needs as many networks as weights and permutations, at least one, not 2, 1 and 2.",
    ),
    "a seed for a key": (
        lambda: dj.random_permutations(0, networks()[0]),
        "key must be a PRNG key, as jax.random.key(0), not 0.",
    ),
    "a model for a module": (
        lambda: dj.from_linen(MLP),
        "module must be a Linen module (of Flax), not a Model.",
    ),
    "a name for a network": (
        lambda: dj.find_symmetries("mlp", {}, IMAGES),
        "model_or_function must be a dj.Model or a function, not 'mlp'.",
    ),
}
"""What is called wrongly, and what is said of it, in part."""


@pytest.mark.parametrize("call, message", CALLED.values(), ids=CALLED)
def test_what_is_called_wrongly_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_data_file_that_cannot_be_read_is_named(capsys, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").mkdir()
    options = ["--dataset", "cifar10", "--data-dir", str(tmp_path / "data")]
    assert main([*TINY, *options]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said and said.startswith("error: ") and said.count("\n") == 1
