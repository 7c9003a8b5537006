"""What a run is said to need before it starts."""

import dataclasses

import jax
import pytest
from helpers.small_runs import noise, small_config

import dimat_jax as dj
from dimat_jax.algorithms import METHODS, Merge
from dimat_jax.estimate import estimate as estimating
from dimat_jax.estimate import parts
from dimat_jax.estimate.accelerators import ACCELERATORS, NotInstalled, accelerator
from dimat_jax.execution.placement import choose_execution
from dimat_jax.report.estimates import duration, memory_table, time_table, verdict
from dimat_jax.simulation.setup import prepare
from experiments import common

DATASET = noise(examples=320, tests=23, size=8)


@pytest.fixture
def nothing_compiles(monkeypatch):
    """A machine without the packages that compile for accelerators."""

    def missing(name, devices):
        raise NotInstalled("no wheels here")

    monkeypatch.setattr(estimating, "described_devices", missing)


def estimate(device="h100", **options):
    compiles = options.pop("compiles", False)
    return dj.estimate(small_config(**options), device, dataset=DATASET, compiles=compiles)


def test_without_a_compiler_temporaries_are_not_known_and_it_says_so(nothing_compiles):
    found = dj.estimate(small_config(), "h100", dataset=DATASET)
    assert found.temporaries is None and found.fits is None
    assert all(part.memory is None for part in found.parts)
    assert "no wheels here" in verdict(found)
    assert any("not known" in row[0] for row in memory_table(found).rows)


def test_agents_data_and_optimizers_are_counted_by_their_shapes(nothing_compiles):
    found = estimate(optimizer="adam")
    weights = sum(x.size for x in jax.tree.leaves(found_variables()))
    # Adam has two moments and a counter; then step, rate, loss, divergence and a key of 8 bytes.
    assert found.held.agents == 8 * (4 * 3 * weights + 4 + 4 * 4 + 8)
    assert found.held.pretrained == found.held.agents
    image = 8 * 8 * 3 + 4
    assert found.held.data == 2 * 320 * image + 23 * image
    assert found.held.gradients == 8 * 4 * weights


def found_variables():
    return prepare(small_config(), None, DATASET).abstract[0]


def test_an_epoch_takes_three_times_the_operations_of_its_forward_passes(nothing_compiles):
    found = {part.name: part for part in estimate().parts}
    rows = 8 * 5 * 8  # agents, steps, batch
    tests = 8 * 23
    forward = found["evaluation"].operations / tests
    # Of the first layer no gradient of its images is taken.
    assert 2 * forward < found["training epoch"].operations / rows <= 3 * forward


def test_a_run_takes_as_long_as_its_parts_together(nothing_compiles):
    found = estimate(methods=("wa", "local_only"))
    of = {part.name: part.seconds for part in found.parts}
    # Pretraining and two rounds of two methods; two merges; after each of these, an evaluation.
    measured = 1 + (2 + 2) + 2
    expected = 5 * of["training epoch"] + 2 * found.merge_seconds + measured * of["evaluation"]
    assert found.run_seconds == pytest.approx(expected)
    assert found.merge_seconds > 0


def test_a_run_that_is_too_large_says_what_to_reduce(nothing_compiles):
    found = estimate(width=1000.0)
    assert found.fits is False
    assert any(option.startswith("width to") for option in found.reduce)
    assert "does not fit" in verdict(found)


def test_temporaries_that_do_not_fit_ask_for_fewer_agents_and_examples_at_once():
    setup = prepare(small_config(devices=1), None, DATASET)
    setup = setup._replace(execution=setup.execution._replace(lanes_at_once=8))
    held = estimating.held_by(setup)
    found = estimating.advice(setup, held, total=1000, temporaries=900, memory=600)
    assert found == ("agents_at_once to 4", "micro_batch to 4")
    setup = setup._replace(config=dataclasses.replace(setup.config, micro_batch=4))
    found = estimating.advice(setup, held, total=1000, temporaries=900, memory=600)
    assert found == ("agents_at_once to 4", "micro_batch to 2")


def test_this_machine_is_estimated_too():
    found = estimate("cpu", compiles=True, model="mlp", methods=("wa", "cdsgd"))
    assert found.temporaries is not None and found.fits
    assert {part.name for part in found.parts} >= {"training epoch", "cdsgd's epoch", "mixing"}


@pytest.mark.parametrize("device", [*ACCELERATORS, "cpu"])
def test_every_device_has_its_numbers_and_their_source(device):
    about = accelerator(device)
    assert about.operations > 1e9 and about.memory > 1e9 and about.source
    assert (about.bandwidth is None) == (device == "cpu")


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="h100"):
        dj.estimate(small_config(), "h10", dataset=DATASET)


def test_no_data_set_is_read_of_which_the_shapes_are_known():
    images = estimating.stand_in(dj.Config(preset="paper"))
    assert images is not None and images.train_images.shape == (50_000, 32, 32, 3)
    assert images.num_classes == 100
    assert estimating.stand_in(dj.Config(dataset="digits")) is None


@pytest.mark.parametrize("method", [n for n, a in METHODS.items() if a.merge or a.final])
def test_the_calls_of_every_merge_are_counted(method):
    config = small_config(agents=4, topology="ring", methods=(method,))
    setup = prepare(config, None, DATASET)
    described = choose_execution(4, False, described=jax.devices()[:1])
    dry = parts.dry_run(setup._replace(execution=described), False, {})
    for name, part in setup.methods[method].parts().items():
        if isinstance(part, Merge):
            assert parts.merge_counts(dry, method, name)["add"] >= 0


def test_a_ring_fetches_two_neighbours_and_adds_three_networks():
    setup = prepare(small_config(agents=4, methods=("wa", "dimat")), None, DATASET)
    described = choose_execution(4, False, described=jax.devices()[:1])
    dry = parts.dry_run(setup._replace(execution=described), False, {})
    assert parts.merge_counts(dry, "wa", "merge") == {"gather": 2, "add": 3}
    dimat = parts.merge_counts(dry, "dimat", "merge")
    assert dimat == {"gather": 2, "add": 3, "permute": 2, "matching 2": 1}


def test_tables_name_every_part(nothing_compiles):
    found = estimate()
    assert [row[0] for row in time_table(found).rows][: len(found.parts)] == [
        part.name for part in found.parts
    ]
    assert duration(90) == "1.5 min" and duration(2e-5) == "20 µs" and duration(7200) == "2 h"


def test_the_command_line_estimates_and_runs_nothing(nothing_compiles, capsys, tmp_path):
    out = tmp_path / "run"
    given = "--agents 4 --dataset digits --model mlp --estimate v5e --out".split()
    assert common.run("cifar", "", [*given, str(out)]) == 0
    text = capsys.readouterr().out
    assert "Memory of one device" in text and "roofline" in text and "It may fit" in text
    assert not out.exists()
    assert common.run("cifar", "", ["--estimate", "h10"]) == 2


def test_an_estimate_is_no_part_of_a_configuration():
    assert "estimate" not in {field.name for field in dataclasses.fields(dj.Config)}
