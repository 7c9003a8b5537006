"""Runs that were ended go on as if nothing had happened, or say why they cannot."""

import errno
import json
import pathlib

import numpy as np
import pandas as pd
import pytest
from helpers.sessions import timeless
from helpers.small_runs import assert_trees_equal, linear_softmax, noise, small_config

import dimat_jax as dj
from dimat_jax import runs
from dimat_jax.algorithms import METHODS
from dimat_jax.checkpoints import resume, store
from dimat_jax.checkpoints.pack import Packed
from dimat_jax.metrics import read_rows
from dimat_jax.report import folder

DATASET = noise(examples=160, tests=20, size=8)
MLP = dj.models.mlp(num_classes=4, width=0.02, depth=1, norm="batch")


NOBODY = dj.Observer()


class Ended(Exception):
    """What ends a run in these tests, as a kill would: nothing is written after it."""


def run(out, ends_after=None, observer=NOBODY, model=None, **options) -> dj.Result:
    """A run of two methods and two seeds that ends after so many events of its plan, or never."""
    seen = []

    def on_event(session, event, so_far):
        seen.append(event)
        if len(seen) == ends_after:
            raise Ended

    defaults = dict(agents=2, topology="fully_connected", methods=("wa", "dsgd"), seeds=(0, 1))
    config = small_config(**defaults | options, out=out)
    observer = observer._replace(on_event=on_event)
    return dj.simulate(config, model=model or linear_softmax(), dataset=DATASET, observer=observer)


def same(result: dj.Result, expected: dj.Result) -> None:
    """Asserts that two runs gave the same, bit for bit, but for the clock."""
    assert [timeless(r) for r in result.history] == [timeless(r) for r in expected.history]
    assert list(result.finals) == list(expected.finals)
    for name, final in result.finals.items():
        assert_trees_equal(final.variables, expected.finals[name].variables)
        assert_trees_equal(final.measured, expected.finals[name].measured)
        others = expected.finals[name].permutations
        assert_trees_equal([dict(p) for p in final.permutations], [dict(p) for p in others])


def often(values, number):
    """The first few for every run of the tests; the others are slow."""
    slow = [[pytest.mark.slow] * (i >= number) for i in range(len(values))]
    return [pytest.param(v, marks=m) for v, m in zip(values, slow, strict=True)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, uninterrupted."""
    return run(tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.parametrize(
    "ends_after",
    often([14, 29, 1, 3, 8, 22], 2),
)
def test_a_run_that_was_ended_goes_on_bit_for_bit(tmp_path, whole, ends_after):
    with pytest.raises(Ended):
        run(tmp_path, ends_after)
    same(run(tmp_path, resume=True), whole)
    assert [timeless(r) for r in read_rows(tmp_path / "metrics.jsonl")] == [
        timeless(r) for r in whole.history
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods, ends",
    [
        (("dimat",), (11, 3, 5)),
        (tuple(METHODS), (90, 40, 55)),
    ],
    ids=["one", "all"],
)
def test_every_method_goes_on_bit_for_bit_however_often_it_is_ended(tmp_path, methods, ends):
    options = dict(
        methods=methods,
        agents=4,
        topology="ring",
        seeds=(0,),
        model=MLP,
        merge_at_end=True,
        optimizer="adam",
        optimizer_after_merge="averaged",
        proximal=0.01,
        matching_images=16,
    )
    expected = run(tmp_path / "whole", **options)
    for ends_after in ends:
        with pytest.raises(Ended):
            run(tmp_path / "out", ends_after, resume=True, **options)
    same(run(tmp_path / "out", resume=True, **options), expected)


@pytest.mark.slow
def test_where_a_run_goes_on_is_said(tmp_path):
    notes = []
    observer = dj.Observer(on_note=notes.append)
    with pytest.raises(Ended):
        run(tmp_path / "out", 10, observer, resume=True)
    run(tmp_path / "out", None, observer, resume=True)
    run(tmp_path / "out", None, observer, resume=True)
    assert len(notes) == 3
    assert notes[0] == f"There is no run in {tmp_path / 'out'}: it starts from the beginning."
    assert notes[1].startswith("Goes on from the checkpoint after seed 0, WA, round 1: ")
    assert notes[2] == f"The run in {tmp_path / 'out'} has ended already: nothing was left to do."


def test_a_run_that_has_ended_is_read_and_left_as_it_is(tmp_path, whole):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    same(run(tmp_path, resume=True), whole)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rows_newer_than_the_checkpoint_and_half_rows_are_dropped(tmp_path, whole):
    with pytest.raises(Ended):
        run(tmp_path, 14)
    metrics = tmp_path / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text + text.splitlines(True)[-1] + '{"method": "wa", "se')
    same(run(tmp_path, resume=True), whole)
    assert len(read_rows(metrics)) == len(whole.history)


def damage_arrays(path):
    (largest,) = sorted(path.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)[-1:]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


DAMAGE = {
    "one bit": damage_arrays,
    "cut short": lambda path: (path / "about.json").write_text("{"),
    "no checksums": lambda path: (path / "sha256.json").unlink(),
    "a file missing": lambda path: (path / "arrays" / "_METADATA").unlink(),
    "one file more": lambda path: (path / "more").write_text(""),
}


@pytest.mark.parametrize("damage", often(DAMAGE, 2))
def test_a_damaged_checkpoint_is_left_out_loudly(tmp_path, whole, damage):
    with pytest.raises(Ended):
        run(tmp_path, 14)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    DAMAGE[damage](newest)
    with pytest.warns(UserWarning, match=f"A checkpoint is damaged, and left out: .*{newest.name}"):
        same(run(tmp_path, resume=True), whole)


def test_without_a_usable_checkpoint_a_run_starts_over_and_says_so(tmp_path, whole):
    with pytest.raises(Ended):
        run(tmp_path, 14)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "about.json").write_text("[]")
    notes = []
    with pytest.warns(UserWarning, match="A checkpoint is damaged"):
        same(run(tmp_path, None, dj.Observer(on_note=notes.append), resume=True), whole)
    assert notes == [f"No checkpoint in {tmp_path} can be used: it starts from the beginning."]


@pytest.mark.slow
def test_a_checkpoint_stands_on_pretraining_and_on_what_ended_before_it(tmp_path, whole):
    with pytest.raises(Ended):
        run(tmp_path, 14)
    (agent,) = (tmp_path / "weights" / "wa-seed0").glob("agent-00000*")
    agent.write_bytes(agent.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="wa-seed0.*has changed since it was written"):
        same(run(tmp_path, resume=True), whole)


def test_a_half_written_checkpoint_is_none(tmp_path, whole):
    with pytest.raises(Ended):
        run(tmp_path, 14)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    left = newest.with_name(".000099.unfinished")
    newest.rename(left)
    same(run(tmp_path, resume=True), whole)
    assert not left.exists()


def test_the_newest_the_best_and_the_end_of_pretraining_are_kept(tmp_path):
    with pytest.raises(Ended):
        run(tmp_path, 20, rounds=6, seeds=(0,), evaluate_every=1, keep_checkpoints=3)
    numbers = store.numbers_in(tmp_path / "checkpoints")
    scores = {n: store.load(tmp_path / "checkpoints", n)["score"] for n in numbers}
    rows = read_rows(tmp_path / "metrics.jsonl")
    best = max(r["test_accuracy"] for r in rows if r["phase"] in ("pretrain", "train"))
    assert max(scores.values()) == best
    assert len(numbers) <= 5 and numbers[0] == 4  # START, TRAIN, RECOMPUTE, MEASURE.


def test_a_checkpoint_of_the_next_seed_leaves_what_the_last_one_stands_on(tmp_path):
    def save(number, pretrained, score):
        array = {"0": np.zeros(2, np.float32)}
        store.save(tmp_path, number, Packed(array, {}), {"pretrained": pretrained, "score": score})

    for number, pretrained, score in ((4, None, 0.5), (9, 4, 0.9), (14, 4, 0.6)):
        save(number, pretrained, score)
        store.prune(tmp_path, 2)
    assert store.numbers_in(tmp_path) == [4, 9, 14]
    save(18, None, 0.4)  # Pretraining of the second seed has ended.
    store.prune(tmp_path, 2)
    # The newest two, the best, and what two of these stand on.
    assert store.numbers_in(tmp_path) == [4, 9, 14, 18]
    save(23, 18, 0.3)
    store.prune(tmp_path, 1)
    assert store.numbers_in(tmp_path) == [4, 9, 18, 23]
    save(28, 18, 0.95)
    store.prune(tmp_path, 1)
    assert store.numbers_in(tmp_path) == [18, 28]


@pytest.mark.slow
def test_a_report_that_has_been_lost_is_written_again(tmp_path, whole):
    run(tmp_path)
    (tmp_path / "tables.md").unlink()
    same(run(tmp_path, resume=True), whole)
    assert "merge 1" in (tmp_path / "tables.md").read_text()


def test_no_checkpoints_where_none_are_wanted(tmp_path, whole):
    with pytest.raises(Ended):
        run(tmp_path, 14, checkpoint_every=0)
    assert not (tmp_path / "checkpoints").exists()
    same(run(tmp_path, resume=True, checkpoint_every=0), whole)
    assert (tmp_path / "weights" / "dsgd-seed1" / "agent-00001.safetensors").exists()


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    with pytest.raises(Ended):
        run(tmp_path, 8)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match="batch_size was 8 and is 4; rounds was 2 and is 3"
    ) as said:
        run(tmp_path, resume=True, rounds=3, batch_size=4)
    assert "\n" not in str(said.value) and str(tmp_path) in str(said.value)
    with pytest.raises(ValueError, match="already holds a run.*--resume"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"The checkpoint is of another run: agents\.variables"):
        run(tmp_path, resume=True, model=MLP)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    run(tmp_path, resume=True, keep_checkpoints=1, devices=1, agents_at_once=1)


def test_resuming_takes_a_folder():
    with pytest.raises(ValueError, match="resume needs out"):
        run(None, resume=True)


def test_a_folder_is_of_one_run_at_a_time(tmp_path):
    def another(setup):
        with pytest.raises(ValueError, match="is being written by another run"):
            run(tmp_path / "out", resume=True)

    run(tmp_path / "out", None, dj.Observer(on_start=another))
    with pytest.raises(ValueError, match="unknown"), folder.held(tmp_path / "new"):
        raise ValueError("unknown")
    assert not (tmp_path / "new").exists()


FULL = OSError(errno.ENOSPC, "No space left on device")
WRITES = {
    "a checkpoint": (store, "save", 3),
    "a row": (runs, "append_row", 5),
    "final networks": (resume, "save_final", 2),
    "the configuration": (folder, "write_json", 1),
    "the summary": (folder, "write_json", 2),
}


@pytest.mark.parametrize("what", often(WRITES, 2))
def test_a_full_disk_is_said_in_a_sentence_and_loses_nothing(tmp_path, whole, monkeypatch, what):
    module, name, last = WRITES[what]
    written, calls = getattr(module, name), []

    def full(*given):
        calls.append(1)
        if len(calls) >= last:
            raise FULL
        return written(*given)

    monkeypatch.setattr(module, name, full)
    with pytest.raises(ValueError, match=f"cannot be written to {tmp_path}: No space left"):
        run(tmp_path)
    monkeypatch.setattr(module, name, written)
    same(run(tmp_path, resume=True), whole)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def read_only(path, *given, **named):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=f"cannot be written to {out}: Read-only file system"):
        run(out)


def test_a_method_that_diverged_stays_so_and_the_others_go_on(tmp_path):
    options = dict(
        methods=("dsgd", "wa"), seeds=(0,), method_learning_rate=(("dsgd", 1e38),), width=0.05
    )
    with pytest.raises(Ended):
        run(tmp_path, 9, **options)
    result = run(tmp_path, resume=True, **options)
    assert list(result.diverged) == [("dsgd", 0)] and list(result.finals) == [("wa", 0)]
    (row,) = [row for row in result.history if "diverged" in row]
    assert row["method"] == "dsgd" and row["test_accuracy"] is None and row["round"] == 1
    assert "seed 0, DSGD, round 1: epoch 1 of 1" in row["diverged"]
    assert "learning rate, 1e+38" in row["diverged"]
    again = run(tmp_path, resume=True, **options)
    assert again.diverged == result.diverged
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] is True and summary["diverged"][0]["method"] == "dsgd"
    assert "Diverged: seed 0, DSGD" in (tmp_path / "tables.md").read_text()


def test_a_run_that_was_loaded_is_what_it_gave(tmp_path):
    out = tmp_path / "out"
    result = run(out, model=MLP, methods=("dimat", "dsgd"), width=0.03)
    found = dj.load_run(str(out))
    assert isinstance(found.rows, pd.DataFrame)
    assert found.config == result.setup.config and found.dataset == "noise"
    assert found.summary is not None and found.summary["complete"] is True
    assert list(found.variables) == list(sorted(result.finals))
    for name, variables in found.variables.items():
        assert_trees_equal(variables, result.finals[name].variables)
    last = result.history[-1]
    at = found.rows.query("method == 'dsgd' and seed == 1 and round == 2 and phase == 'train'")
    assert (
        at.query("metric == 'test_accuracy' and agent == 1").value.item()
        == (last["test_accuracy_agents"][1])
    )
    mean = at[(at.metric == "test_accuracy") & at.agent.isna()].value.item()
    assert mean == last["test_accuracy"]
    of_class = at[(at.metric == "test_accuracy_class_3") & (at.agent == 0)].value.item()
    assert of_class == last["test_accuracy_classes"][0][3]
    assert set(at.metric) >= {"seconds_train", "bytes_sent", "test_loss", "test_loss_std"}


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json cannot be read"):
        dj.load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"agents": 4, "unheard_of": 1}}')
    with pytest.raises(ValueError, match="does not describe a run"):
        dj.load_run(tmp_path)
    out = pathlib.Path(tmp_path / "out")
    run(out, seeds=(0,), methods=("wa",))
    (out / "weights" / "wa-seed0" / "agent-00001.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=r"agent-00001\.safetensors has changed"):
        dj.load_run(out)
