import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dimat_jax.execution import processes

ROOT = pathlib.Path(__file__).parents[2]
RUN = """--agents 4 --topology ring --dataset digits --examples-per-agent 100 --model mlp
--pretrain-epochs 1 --rounds 2 --methods dimat sgp --devices 4 --merged-every 1""".split()


def start(out, *options, process=None, of=1, port=0):
    """Starts a run in float64, or one of several processes of it."""
    several = [] if process is None else ["--coordinator", f"127.0.0.1:{port}"]
    if several:
        several += ["--num-processes", str(of), "--process-id", str(process)]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cifar", *RUN, "--out", str(out), *several, *options],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_several(number, out, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(out, *options, process=i, of=number, port=port) for i in range(number)]


def outputs_of(running, code=0):
    found = []
    for process in running:
        printed, said = process.communicate(timeout=500)
        assert process.returncode == code, said
        assert "Traceback" not in said
        found.append((printed, said))
    return found


def rows_of(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return rows


def assert_same_run(one, other):
    rows, others = rows_of(one), rows_of(other)
    assert len(rows) == len(others) > 5
    for row, found in zip(rows, others, strict=True):
        for name, value in row.items():
            if isinstance(value, str | None):
                assert found[name] == value
            else:
                np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-12, err_msg=name)
    files = sorted((one / "weights").rglob("agent-*.safetensors"))
    assert len(files) >= 8
    for file in files:
        found = load_file(other / file.relative_to(one))
        for name, array in load_file(file).items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-8)


def test_two_processes_give_what_one_gives(tmp_path):
    running = [start(tmp_path / "one"), *start_several(2, tmp_path / "two")]
    _, first, second = outputs_of(running)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    # One of them talks.
    assert "Written to" in first[0]
    assert not re.sub(r"\[Gloo\].*\n", "", second[0])


@pytest.mark.slow
def test_four_processes_and_convolutions(tmp_path):
    options = (
        "--model convnet --width 0.25 --methods dimat wm dsgd wa --topology exponential".split()
    )
    outputs_of([start(tmp_path / "one", *options)])
    outputs_of(start_several(4, tmp_path / "four", *options))
    assert_same_run(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [1, 2])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path, goes_on):
    outputs_of([start(tmp_path / "one", "--rounds", "6")])
    out = tmp_path / "two"
    running = start_several(2, out, "--rounds", "6")
    metrics, until = out / "metrics.jsonl", time.monotonic() + 400
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
        assert time.monotonic() < until
        time.sleep(0.1)
    running[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    [(_, said)] = outputs_of(running[:1], code=4)
    assert time.monotonic() - killed < 90
    assert "Another process of this run has ended" in said and "--resume" in said
    running[1].communicate()
    again = start_several(2, out, "--rounds", "6", "--resume")
    if goes_on == 1:
        for process in again:
            process.kill()
            process.communicate()
        again = [start(out, "--rounds", "6", "--resume")]
    printed = outputs_of(again)[0][0]
    assert "Goes on from the checkpoint" in printed
    assert_same_run(tmp_path / "one", out)


def test_one_process_agrees_with_itself():
    assert not processes.are_several() and processes.is_first()
    assert processes.told("said") == ["said"]
    assert processes.any_of(True) and not processes.any_of(False)
    assert processes.decided(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="no"):
        processes.together(lambda: (_ for _ in ()).throw(ValueError("no")))
    processes.wait()


@pytest.mark.parametrize(
    "given, sentence",
    [
        (("localhost:1", None, None), "num_processes and process_id are missing"),
        ((None, 2, 0), "coordinator is missing"),
        (("localhost", 2, 0), "coordinator must be host:port, not 'localhost'"),
        (("localhost:1", 5, 0), "num_processes must be at most 4, not 5"),
        (("localhost:1", 2, 2), "process_id must be at most 1, not 2"),
        (("localhost:1", 2, -1), "process_id must be at least 0, not -1"),
    ],
)
def test_processes_that_cannot_be(given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        processes.connect_processes(4, *given)
    assert not jax.distributed.is_initialized()
