"""Kills runs at random moments by SIGKILL, and asks whether what goes on ends as if nothing had.

    PYTHONPATH=.:tests python -m helpers.killer 30 --seed 1 -- --agents 4 --dataset digits ...
    PYTHONPATH=.:tests python -m helpers.killer --caches 100

Runs are those of ``python -m experiments.cifar``, with the options after ``--`` or, without any,
short ones. Each is killed, and gone on with by ``--resume``, until it ends; its rows but for the
clock and the bytes of its final weights have to be those of a run that was never killed. Half of
the kills come at any moment, start-up included, and half while a folder or file is being written.

``--caches`` kills small processes that fill the two caches, of decoded images and of compiled
programs. Whoever reads these next has to get what would have been there, without a word.

The exit code is 1 if anything differs or anybody has said ``Traceback``. Unix only: it forks.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.datasets import Dataset, cache
from dimat_jax.execution.compile_cache import keep_compilations

SHORT = """--agents 4 --topology ring --dataset digits --model mlp --width 0.1 --pretrain-epochs 2
--rounds 3 --methods dimat wa --merge-at-end""".split()
"""Two methods that merge, one of which aligns: about ten seconds, most of them start-up."""
CLOCK = ("seconds", "images_per_second")
UNFINISHED = ".*.unfinished"
PROGRAMS, IMAGES = 6, 3
"""How many entries of each cache a process makes."""


class Outcome(NamedTuple):
    """What a run leaves that has to be the same: rows but for the clock, bytes of its networks."""

    rows: list[dict[str, Any]]
    weights: dict[str, bytes]


class Ended(NamedTuple):
    """How a process ended: by its exit code, negative for a signal, and what it said."""

    code: int
    said: str


def outcome_of(folder: pathlib.Path) -> Outcome:
    """Reads what a run has left in its folder."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    timeless = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    networks = sorted((folder / "weights").rglob("*.safetensors"))
    return Outcome(timeless, {str(f.relative_to(folder)): f.read_bytes() for f in networks})


def compiling(folder: pathlib.Path) -> float:
    """How many seconds of a run its programs took."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"].get("compile", 0.0) for line in lines)


def differences(found: Outcome, expected: Outcome) -> list[str]:
    """What is not the same, in words."""
    said = []
    if len(found.rows) != len(expected.rows):
        said.append(f"{len(found.rows)} rows instead of {len(expected.rows)}")
    for number, (row, other) in enumerate(zip(found.rows, expected.rows, strict=False), 1):
        if row != other:
            names = [name for name in {**row, **other} if row.get(name) != other.get(name)]
            said.append(f"row {number} differs in {', '.join(names)}")
    for name in sorted({*found.weights, *expected.weights}):
        if found.weights.get(name) != expected.weights.get(name):
            said.append(f"{name} differs")
    return said


# Runs.


def run_until(
    options: list[str], out: pathlib.Path, ends: Callable[[float], bool] = lambda seconds: False
) -> Ended:
    """Runs the command in a folder, going on with what is there.

    Args:
      options: of its command line.
      out: the folder of the run.
      ends: ``(seconds since its start) -> whether to kill it now``.
    """
    command = [sys.executable, "-m", "experiments.cifar", *options, "--out", str(out), "--resume"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if ends(time.monotonic() - started):
                process.kill()
            time.sleep(0.002)
        said.seek(0)
        return Ended(process.returncode, said.read())


def moment(rng: random.Random, out: pathlib.Path, seconds: float) -> Callable[[float], bool]:
    """Draws when a run is killed: at any time, or soon after something begins to be written.

    Args:
      rng: draws.
      out: the folder of the run.
      seconds: how long a run takes that is not killed.
    """
    if rng.random() < 0.5:
        at = rng.uniform(0, seconds)
        return lambda now: now >= at
    which, then = rng.randint(1, 6), rng.choice([0.0, rng.uniform(0, 0.05)])
    before = {(str(path), inode(path)) for path in unfinished_in(out)}  # Left by the last kill.
    seen: set[tuple[str, int]] = set()

    def ends(now: float) -> bool:
        seen.update({(str(path), inode(path)) for path in unfinished_in(out)} - before)
        if len(seen) >= which and then:
            time.sleep(then)
        return len(seen) >= which

    return ends


def inode(path: pathlib.Path) -> int:
    """What tells a file from the next one of the same name."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def unfinished_in(out: pathlib.Path) -> list[pathlib.Path]:
    """What is being written in the folder of a run, or was when it was killed."""
    folders = (out, out / "checkpoints", out / "weights")
    return [path for folder in folders for path in folder.glob(UNFINISHED)]


def where_of(out: pathlib.Path) -> str:
    """How far a run had come when it was killed."""
    if not (out / "metrics.jsonl").exists():
        return "before its folder was made"
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    whole = sorted(p.name for p in (out / "checkpoints").glob("[0-9]*"))
    writing = [str(path.relative_to(out)) for path in unfinished_in(out)]
    return f"rows {len(lines)}, checkpoints {' '.join(whole) or 'none'}" + (
        f", writing {' '.join(writing)}" if writing else ""
    )


def kill_runs(kills: int, rng: random.Random, options: list[str], base: pathlib.Path) -> list[str]:
    """Kills runs so many times; returns what was wrong."""
    started = time.monotonic()
    whole = run_until(options, base / "whole")
    if whole.code:
        return [f"a run that nobody killed ended with {whole.code}: {whole.said}"]
    # The others find its programs in the cache.
    seconds = time.monotonic() - started - compiling(base / "whole")
    expected, faults, killed, runs = outcome_of(base / "whole"), [], 0, 0
    print(
        f"a run takes {seconds:.1f} s without compiling, and gives {len(expected.rows)} rows",
        flush=True,
    )
    while killed < kills:
        runs, out = runs + 1, base / f"run{runs}"
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            ends = moment(rng, out, seconds) if killed < kills else lambda now: False
            code, said = run_until(options, out, ends)
            if "Traceback" in said:
                faults.append(f"run {runs}: {said}")
            if code == -signal.SIGKILL:
                killed += 1
                print(f"run {runs}, kill {killed}: {where_of(out)}", flush=True)
        if code:
            faults.append(f"run {runs} ended with {code}: {said}")
            continue  # Its folder stays, to be looked at.
        found = differences(outcome_of(out), expected)
        found += [f"{path.name} is left" for path in unfinished_in(out)]
        faults += [f"run {runs}: {fault}" for fault in found]
        print(f"run {runs}: {'; '.join(found) or 'the same'}", flush=True)
        if not found:
            shutil.rmtree(out)
    print(f"{killed} kills of {runs} runs: {len(faults)} faults", flush=True)
    return faults


# Caches.


def images(number: int) -> Dataset:
    """A data set of 6 MB, which takes a while to be written."""
    rng = np.random.default_rng(number)
    many, few = (rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8) for n in (1800, 200))
    labels = [rng.integers(0, 10, len(of)).astype(np.int32) for of in (many, few)]
    return Dataset(many, labels[0], few, labels[1], 10, f"images {number}")


def fill_images() -> list[Any]:
    """Has every data set be in the cache; returns what is read there."""
    named = [("images", number) for number in range(IMAGES)]
    found = [cache.cached(name, [n], lambda n=n: images(n)) for name, n in named]
    return [[np.asarray(array).tobytes() for array in dataset[:4]] for dataset in found]


def fill_programs() -> list[Any]:
    """Compiles a few programs, or finds them in the cache; returns what they compute."""
    jax.config.update("jax_platforms", "cpu")
    keep_compilations()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    x = jnp.asarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    programs = [
        jax.jit(lambda x, n=n: jnp.sort(jnp.tanh(x @ x) * n, axis=0)) for n in range(PROGRAMS)
    ]
    return [np.asarray(program(x)).tobytes() for program in programs]


def forked(
    action: Callable[[], list[Any]], folder: pathlib.Path, seconds: float | None = None
) -> Ended:
    """Does something in a process of its own, whose caches are in a folder.

    Args:
      action: what to do; what it returns is in what the process has said, as digits.
      folder: of the caches.
      seconds: when it is killed; None: it is not.
    """
    said = folder.with_suffix(".said")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1), os.dup2(descriptor, 2)
            os.environ["XDG_CACHE_HOME"] = str(folder)
            warnings.simplefilter("always")
            print(hash_of(action()), flush=True)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)  # pyrefly: ignore
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # If it has ended it waits for its parent: no harm.
    _, status = os.waitpid(child, 0)
    return Ended(
        os.waitstatus_to_exitcode(status), said.read_text(encoding="utf-8", errors="replace")
    )


def hash_of(found: list[Any]) -> str:
    """What tells two results apart."""
    return hashlib.sha256(repr(found).encode()).hexdigest()


def kill_caches(kills: int, rng: random.Random, base: pathlib.Path) -> list[str]:
    """Kills processes that fill a cache, of each kind in turn; returns what was wrong."""
    actions, faults = (fill_images, fill_programs), []
    expected, took = {}, {}
    for action in actions:
        started = time.monotonic()
        expected[action] = forked(action, base / action.__name__)
        took[action] = time.monotonic() - started
        print(f"{action.__name__} takes {took[action]:.2f} s", flush=True)
    for number in range(kills):
        action, folder = actions[number % 2], base / f"cache{number}"
        for _ in range(rng.randint(1, 2)):
            killed = forked(action, folder, rng.uniform(0, 1.1 * took[action]))
            if "Traceback" in killed.said or "Warning" in killed.said:
                faults.append(f"cache {number}, killed: {killed.said}")
        for time_of in ("first", "second"):
            found = forked(action, folder)
            if found != expected[action]:
                faults.append(f"cache {number}, read for the {time_of} time: {found.said}")
        faults += [f"cache {number}: {path} is left" for path in folder.rglob(UNFINISHED)]
        if not faults:
            shutil.rmtree(folder)
        if number % 10 == 9:
            print(f"{number + 1} caches, {len(faults)} faults", flush=True)
    print(f"{kills} caches were read after kills: {len(faults)} faults", flush=True)
    return faults


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    own, options = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, options = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=0, help="of runs")
    parser.add_argument("--caches", type=int, default=0, help="caches that are killed into")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(own)
    base, rng = pathlib.Path(tempfile.mkdtemp(prefix="killed-")), random.Random(given.seed)
    faults = []
    if given.caches:
        faults += kill_caches(given.caches, rng, base)
    if given.kills:
        faults += kill_runs(given.kills, rng, options or SHORT, base)
    for fault in faults:
        print(f"FAULT: {fault}")
    if not faults:
        shutil.rmtree(base)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
