"""Ctrl-C and SIGTERM, twice and once; runs side by side."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "experiments.cifar"]
TINY = """--agents 4 --dataset digits --model mlp --width 0.1 --pretrain-epochs 1 --rounds 500
--topology ring --methods wa dimat""".split()


def start(*options, cwd=None, before=None):
    return subprocess.Popen(
        [*COMMAND, *TINY, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        preexec_fn=before,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def wait_for_rows(folder, number=3):
    for _ in range(600):
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= number:
            return
        time.sleep(0.2)
    raise AssertionError("no rows")


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_run_after_a_checkpoint_and_says_how_to_go_on(tmp_path, number, code):
    out = tmp_path / "out"
    process = start("--out", str(out))
    wait_for_rows(out)
    process.send_signal(number)
    said, error = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in said + error
    assert f"{number.name}: finishing what is under way" in said
    assert error.startswith("Interrupted in seed 0, WA, round ") and error.count("\n") == 1
    command = shlex.split(error.split("Go on with: ")[1])
    assert command[:3] == ["python", "-m", "experiments.cifar"] and command[-1] == "--resume"
    assert command[3:] == [*TINY, "--out", str(out), "--resume"]
    last = json.loads(sorted((out / "checkpoints").glob("*/about.json"))[-1].read_text())
    assert last["rows"] == len((out / "metrics.jsonl").read_text().splitlines())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] is False and summary["stopped"].startswith("Interrupted in seed 0")
    assert (out / "tables.md").exists()


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(tmp_path):
    out = tmp_path / "out"
    process = start("--out", str(out))
    wait_for_rows(out)
    process.send_signal(signal.SIGINT)
    said = ""
    while "finishing what is under way" not in said:
        assert process.stdout is not None
        said += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    more, error = process.communicate(timeout=120)
    said += more
    assert process.returncode == 143 and "Traceback" not in said + error
    assert "Go on with: " in error and error.count("\n") == 1


@pytest.mark.slow
def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path):
    options = ["--rounds", "1", "--methods", "wa"]
    processes = [start(*options, "--seeds", str(seed), cwd=tmp_path) for seed in range(3)]
    for process in processes:
        assert process.wait(timeout=240) == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    seeds = set()
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len({row["seed"] for row in rows}) == 1
        seeds |= {row["seed"] for row in rows}
    assert seeds == {0, 1, 2}


@pytest.mark.slow
def test_files_that_cannot_grow_end_a_run_in_a_sentence_with_what_there_was(tmp_path):
    """As on a full disk, but for the reason."""
    out, rounds = tmp_path / "out", ["--rounds", "3", "--out", str(tmp_path / "out")]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(*rounds, before=limited)
    said, error = process.communicate(timeout=240)
    assert process.returncode == 2 and "Traceback" not in said + error
    assert f"error: The results cannot be written to {out}: " in error and error.count("\n") == 1
    process = start(*rounds, "--resume")
    said, error = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in said + error
    assert json.loads((out / "summary.json").read_text())["complete"] is True
