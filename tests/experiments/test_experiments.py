"""The command: what it leaves behind, and how it answers bad input."""

import importlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types
from typing import NamedTuple

import pytest
from helpers.small_runs import compilations, noise, small_config
from rich.console import Console

import dimat_jax as dj
from dimat_jax.config import PRESETS, Config
from dimat_jax.execution import kernels
from dimat_jax.simulation import setup
from experiments import banner as banner_of
from experiments import common
from experiments.cifar import main

TINY = """--dataset digits --model mlp --agents 4 --pretrain-epochs 1 --rounds 1 --topology ring
--no-merge-at-end --merge-frame own --align-every 1 --methods dimat wa""".split()
FIELDS = """method seed round epoch phase test_accuracy test_accuracy_std test_accuracy_agents
test_accuracy_classes merged_accuracy test_loss test_loss_std test_loss_agents merged_loss
train_loss consensus_distance
consensus_distance_aligned units_moved bytes_sent images_per_second seconds""".split()
CLOCK = {"images_per_second", "seconds"}


class Run(NamedTuple):
    """A run of the command: its folder, its exit code and what it said."""

    folder: pathlib.Path
    code: int
    said: str

    def rows(self):
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def read(self, name):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Decoded data go into a folder of these tests' own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """The same tiny run twice, the second with its results in the default place."""
    results = []
    for number in range(2):
        said, here = io.StringIO(), tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(here)
            monkeypatch.setattr(sys, "stdout", said)
            code = main([*TINY, "--width", "0.1", *(["--out", "mine"] if number == 0 else [])])
        folder = here / "mine" if number == 0 else next((here / "runs").iterdir())
        results.append(Run(folder, code, said.getvalue()))
    return results


def test_a_run_leaves_its_results_in_a_folder(runs):
    for run in runs:
        assert run.code == 0
        names = {path.name for path in run.folder.iterdir()}
        assert names == {
            "config.json",
            "metrics.jsonl",
            "summary.json",
            "tables.md",
            "accuracy.png",
            "checkpoints",
            "weights",
            ".lock",
        }
        assert (run.folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
        assert "merge 1" in (run.folder / "tables.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"digits-mlp-ring-4-\d{8}-\d{6}", runs[1].folder.name)


def test_rows_have_the_agreed_fields_in_order_of_time(runs):
    rows = runs[0].rows()
    assert all(sorted(row) == sorted(FIELDS) for row in rows)
    assert [(row["method"], row["phase"], row["epoch"]) for row in rows] == [
        ("pretrain", "pretrain", 1),
        ("dimat", "merge", 1),
        ("dimat", "train", 2),
        ("wa", "merge", 1),
        ("wa", "train", 2),
    ]
    assert rows[0]["test_accuracy"] > 0.2  # of ten classes: it has learned something


def test_identical_runs_differ_in_nothing_but_the_clock(runs):
    first, second = (
        [{name: value for name, value in row.items() if name not in CLOCK} for row in run.rows()]
        for run in runs
    )
    assert first == second
    first, second = (run.read("config.json") for run in runs)
    assert first["config"].pop("out") == "mine"
    assert second["config"].pop("out").startswith(os.path.join("runs", "digits-mlp-ring-4-"))
    assert first == second


def test_results_name_the_data_and_the_options_used(runs):
    assert runs[0].read("config.json")["devices"] == ["cpu"] * 4
    for name in ("config.json", "summary.json"):
        found = runs[0].read(name)
        assert found["dataset"] == "digits"
        assert (found["config"]["agents"], found["config"]["model"]) == (4, "mlp")
        assert found["config"]["batch_size"] > 0  # what was chosen, not what was left out
        assert found["versions"]["jax"]
    summary, rows = runs[0].read("summary.json"), runs[0].rows()
    first_merge = {row["method"]: row["test_accuracy"] for row in rows if row["phase"] == "merge"}
    for method in ("dimat", "wa"):
        found = summary["accuracy"][method]["first_merge"]["mean"]
        assert found == pytest.approx(first_merge[method])


def test_the_terminal_says_what_runs_how_far_it_is_and_who_wins(runs):
    said = runs[0].said
    for text in ("digits, iid, 359 of the 1,437 training examples", "mlp, width 0.1", "4, ring"):
        assert text in said
    assert "all 360 at the end" in said and "seed 0, DIMAT, round 1, after merge" in said
    assert re.search(
        r"DIMAT against WA: [+-]\d+\.\d points after the first merge.*; of one seed\.", said
    )
    assert "Written to mine" in said
    assert "|\n\nWhat it cost" in said  # a blank line between the tables
    assert "\n\nAhead by so many points, of one seed\n\n" in said
    assert said.splitlines()[0].endswith("  0 %  importing JAX")
    assert "reading the data set digits" in said
    assert not re.search(r"\b(dimat|wa)\b", said.split("results  mine")[1])  # labels, not names


@pytest.fixture
def banner():
    """What is said of a plan before it runs."""

    def say(plan):
        said = io.StringIO()
        banner_of.print_banner(Console(file=said, width=200), plan)
        return said.getvalue()

    return say


def test_the_banner_is_true_of_few_images_and_of_what_was_handed_over(banner):
    own = dj.models.mlp(num_classes=4, width=0.03)
    said = banner(setup.prepare(small_config(rounds=1), own, noise(size=8)))
    assert "model  own, 3 permutation groups" in said and "width" not in said
    assert "1 epoch apart, then 1 round of a merge and 1 epoch;" in said
    assert "units compared on 32 images of an agent's own, statistics from 32" in said
    few = dict(matching_images=100, statistics_images=39, seeds=(0, 1))  # an agent has 40
    said = banner(setup.prepare(small_config(**few), own, noise(size=8)))
    assert "units compared on 40 images of an agent's own, statistics from 39" in said
    shared = dict(matching_images=130, matching_data="shared", recompute_statistics=False)
    said = banner(setup.prepare(small_config(**shared), own, noise(size=8)))
    assert "units compared on 129 images of all\n" in said  # in batches of one size


def test_the_banner_says_whether_compiled_kernels_are_used_on_a_cpu(banner, monkeypatch):
    plan = setup.prepare(small_config(), dataset=noise(size=8))

    def kernels_line(version, switch="1"):
        monkeypatch.setattr(kernels, "installed_version", lambda: version)
        monkeypatch.setenv(kernels.SWITCH, switch)
        (line,) = [line for line in banner(plan).splitlines() if line.startswith("   kernels")]
        return line.strip()

    assert kernels_line(kernels.VERSION) == f"kernels  dimat_jax_cpu {kernels.VERSION}"
    assert "none: pip install ./cpu_kernels" in kernels_line(None)
    assert f"none: dimat_jax_cpu 0.3.0 is switched off by {kernels.SWITCH}=0" in kernels_line(
        "0.3.0", "0"
    )
    assert f"0.0.1 is not the {kernels.VERSION} that" in kernels_line("0.0.1")
    device = types.SimpleNamespace(platform="gpu")
    mesh = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device]))
    gpu = types.SimpleNamespace(execution=types.SimpleNamespace(mesh=mesh))
    assert banner_of.about_kernels(gpu) is None


def test_a_stand_in_for_the_data_is_named_loudly(banner):
    plan = setup.prepare(small_config(), dataset=noise(size=8))
    for stand_in_for in (None, "CIFAR-10"):  # whatever its name
        described = plan.data._replace(name="my stand-in", stand_in_for=stand_in_for)
        said = banner(plan._replace(data=described))
        assert ("NOT THE REAL DATA: my stand-in" in said) == (stand_in_for is not None)
        assert "data  my stand-in" in said


BAD = {
    "data set": ("--dataset digts", "Unknown data set 'digts'. Did you mean 'digits'?"),
    "model": ("--model mlpp", "Unknown model 'mlpp'. Did you mean 'mlp'?"),
    "topology": ("--topology rign", "Unknown topology 'rign'. Did you mean 'ring'?"),
    "partition": ("--partition iidd", "Unknown partition 'iidd'. Did you mean 'iid'?"),
    "method": ("--methods dimatt wa", "Unknown method 'dimatt'. Did you mean 'dimat'?"),
    "preset": ("--preset papr", "Unknown preset 'papr'. Did you mean 'paper'?"),
    "augmentation": ("--augmentation nnone", "Unknown augmentation 'nnone'. Did you mean 'none'?"),
    "no agents": ("--agents 0", "agents must be at least 1, not 0"),
    "one agent": ("--agents 1", "'ring' needs at least 2 agents, not 1"),
    "many agents": ("--agents 1500", "There are 1500 agents and 1437 examples"),
    "large batch": ("--batch-size 400", "batch_size is 400, but an agent has 359 examples"),
    "devices": ("--devices 5", "devices must be 1 to 4 (8 there are, for 4 agents), not 5"),
    "no width": ("--width 0", "must be positive, not 0"),
    "a seed twice": ("--seeds 1 1", "each once, not (1, 1)"),
    "optimizer": ("--optimizer adm", "Unknown optimizer 'adm'. Did you mean 'adam'?"),
    "norm": ("--norm=bach", "Unknown norm 'bach'. Did you mean 'batch'?"),
    "init": ("--init diferent", "Unknown init 'diferent'. Did you mean 'different'?"),
    "schedule": ("--schedule cosin", "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
    "matching": ("--matching_data shard", "Unknown matching_data 'shard'. Did you mean 'shared'?"),
    "frame": ("--merge-frame tre", "Unknown merge_frame 'tre'. Did you mean 'tree'?"),
    "no number": ("--agents four", "agents must be a whole number, not 'four'."),
    "half a number": ("--rounds 1.5", "rounds must be a whole number, not '1.5'."),
    "no seed's number": ("--seeds 0 one", "seeds must be a whole number, not 'one'."),
    "no rate": ("--learning-rate fast", "learning_rate must be a number, not 'fast'."),
    "an option it lacks": ("--model vit --norm none", "vit takes no norm: its normalisation"),
    "a folder in a file": ("--out /dev/null/out", "cannot be written to /dev/null/out: Not a dir"),
    "a method in capitals": ("--methods DIMAT", "Unknown method 'DIMAT'. Did you mean 'dimat'?"),
    "a title": ("--dataset CIFAR-10", "Unknown data set 'CIFAR-10'. Did you mean 'cifar10'?"),
    "a word too many": ("--rounds 1 more", "'more' belongs to no option: rounds takes one value."),
    "a word after a flag": ("--overwrite yes", "'yes' belongs to no option: overwrite takes no va"),
    "half a pair": ("--topology-options p", "takes pairs of a name and a number: 'p' has none."),
    "no pair's number": ("--topology-options p x", "topology_options must be a number, not 'x'."),
    "an option of no graph": (
        "--topology-options p 1",
        "'ring': got an unexpected keyword argumen",
    ),
    "no regular graph": (
        "--topology random_regular --topology-options degree 9",
        "degree must be between 1 and 3 for 4 agents, not 9",
    ),
    "a graph's own argument": (
        "--topology-options n 3",
        "multiple values for argument 'n'. Its op",
    ),
    "a graph's name for it": ("--topology-options name 3", "unexpected keyword argument 'name'"),
    "a method in a pair": ("--method-learning-rate dimatt 0.1", "Did you mean 'dimat'?"),
    "no value": ("--agents", "agents needs a value."),
    "no seeds": ("--seeds --agents 4", "seeds needs a value."),
    "a negative rate": ("--learning-rate -1", "learning_rate must be positive, not -1.0"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    setup.prepare(small_config(), dataset=noise(size=8))  # keys are split: that compiles
    with compilations() as counter:
        assert main([*TINY, *arguments.split()]) == 2
    assert counter.count == 0
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())  # no folder of a run that never was


def test_an_option_that_there_is_not_is_explained_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--agnts", "4"])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert all(word in said.out + said.err for word in ("--agnts", "--agents"))
    assert "python -m experiments.cifar --help" in said.out + said.err


@pytest.mark.parametrize("command", ["cifar", "paper", "tune", "techniques"])
def test_the_help_is_the_commands_and_without_markup(command, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"experiments.{command}").main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m experiments.{command} [-h]") and "`" not in said


def test_a_word_before_all_options_belongs_to_none(capsys):
    assert main(["digits", *TINY]) == 2
    said = capsys.readouterr().err
    assert said == "error: 'digits' belongs to no option: each begins with --.\n"


def test_options_of_a_graph_stand_on_the_command_line():
    found = common.parse("", "", "--topology-options p 0.4 seed 2 --agents 4".split())
    assert found.topology_options == (("p", 0.4), ("seed", 2))
    assert isinstance(found.topology_options[1][1], int)


def test_wrong_names_are_answered_before_jax_is_imported():
    code = (
        "import sys; from experiments.cifar import main; "
        "assert main(['--methods', 'dimatt']) == 2; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_none_is_a_value_where_it_is_allowed():
    found = common.parse("", "", "--batch-size None --norm None --learning-rate -1".split())
    assert (found.batch_size, found.norm, found.learning_rate) == (None, None, -1.0)
    with pytest.raises(ValueError, match="rounds must be a whole number, not 'None'"):
        common.parse("", "", ["--rounds", "None"])


def test_a_run_without_rounds_is_reported_without_a_blank_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    assert main([*TINY, "--rounds", "0", "--width", "0.1", "--out", str(tmp_path / "out")]) == 0
    assert "\n\n\n" not in said.getvalue()
    assert said.getvalue().count("\n\nOn all test examples at the end: DIMAT") == 1


def test_a_run_is_never_overwritten_unless_asked(capsys, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("a run\n", encoding="utf-8")
    assert main([*TINY, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} already holds a run" in capsys.readouterr().err
    assert main([*TINY, "--out", str(metrics)]) == 2
    assert f"{metrics} is a file" in capsys.readouterr().err
    # Not even by a run that fails before it starts.
    assert main([*TINY, "--out", str(tmp_path), "--overwrite", "--agents", "1"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert metrics.read_text(encoding="utf-8") == "a run\n"


def test_a_loss_that_becomes_nan_ends_the_command(capsys, tmp_path):
    options = ["--learning-rate", "1e10", "--width", "0.05", "--out", str(tmp_path / "out")]
    assert main([*TINY, *options]) == common.DIVERGED
    said = capsys.readouterr().err
    assert re.search(r"^error: The training loss of agent \d was not finite at step \d+: ", said)
    assert "Traceback" not in said and said.count("\n") == 1


def test_a_method_that_diverges_leaves_the_tables_of_what_there_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    options = ["--methods", "dsgd", "wa", "--method-learning-rate", "dsgd", "1e38"]
    options += ["--width", "0.05", "--out", str(tmp_path / "out")]
    assert main([*TINY, *options]) == common.DIVERGED == 3
    assert capsys.readouterr().err == ""
    where = "seed 0, DSGD, round 1: epoch 1 of 1: The training loss of agent"
    assert f"Diverged: {where}" in said.getvalue() and "learning rate, 1e+38" in said.getvalue()
    assert "| merge 1     |" in said.getvalue() and "Written to" in said.getvalue()
    run = Run(tmp_path / "out", 3, "")
    summary = run.read("summary.json")
    assert summary["complete"] is True and summary["stopped"] is None
    assert [(found["method"], found["seed"]) for found in summary["diverged"]] == [("dsgd", 0)]
    assert [row["method"] for row in run.rows() if "diverged" in row] == ["dsgd"]
    assert {row["method"] for row in run.rows()} == {"pretrain", "dsgd", "wa"}
    assert f"Diverged: {where}" in (run.folder / "tables.md").read_text(encoding="utf-8")


def test_an_interrupted_run_shows_what_there_is_says_where_and_exits_with_130(
    capsys, tmp_path, monkeypatch
):
    def interrupt(row, labels):
        if row["method"] == "wa":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr("dimat_jax.report.progress.describe", interrupt)
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    assert main([*TINY, "--width", "0.1", "--out", str(tmp_path / "out")]) == common.INTERRUPTED
    assert common.INTERRUPTED == 130
    error = capsys.readouterr().err
    where = "Interrupted in seed 0, WA, round 1: evaluating on 360 test examples."
    arguments = shlex.join([*TINY, "--width", "0.1", "--out", str(tmp_path / "out")])
    command = f"python -m experiments.cifar {arguments} --resume"
    assert error == f"{where} Go on with: {command}\n"
    assert "| train 1     |" in said.getvalue()
    assert "On all test examples at the end: DIMAT" in said.getvalue()
    found = Run(tmp_path / "out", 130, "")
    summary = found.read("summary.json")
    assert summary["complete"] is False and summary["stopped"] == where
    assert summary["accuracy"]["dimat"]["final"]["mean"] > 0
    assert (found.folder / "accuracy.png").exists() and (found.folder / "tables.md").exists()
    assert [row["method"] for row in found.rows()] == ["pretrain", "dimat", "dimat", "wa"]


def test_an_interruption_before_the_run_is_one_line(capsys):
    def action():
        raise KeyboardInterrupt

    assert common.exit_code(action) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_corrupt_archive_is_bad_input(capsys, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    options = ["--dataset", "cifar10", "--data-dir", str(tmp_path)]
    assert main([*TINY, *options]) == 2
    said = capsys.readouterr().err
    assert "cifar-10-python.tar.gz" in said and said.count("\n") == 1


def test_the_module_is_a_command():
    command = [sys.executable, "-m", "experiments.cifar", *TINY, "--agents", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_arguments_are_on_top_of_their_preset():
    assert common.parse("", "", []) == Config()
    assert common.parse("", "", ["--preset", "paper"]) == PRESETS["paper"]
    found = common.parse("", "", "--agents 3 --preset=paper --seeds 4 2 --methods wa".split())
    assert (found.agents, found.seeds, found.methods) == (3, (4, 2), ("wa",))
    assert (found.model, found.width, found.rounds) == ("resnet20", 8.0, 100)
