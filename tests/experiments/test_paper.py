"""The paper's comparison and its learning rates: cells, resuming, tables, bad input."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from helpers.small_runs import noise

from dimat_jax import runs, topology
from dimat_jax.algorithms import METHODS
from dimat_jax.config import Config
from dimat_jax.execution import devices
from dimat_jax.simulation import checks, setup
from experiments import grid, paper, presets, tune
from experiments.grid import Cell, Outcome, Setting
from experiments.reports import paper as paper_report

SETTING = Setting("digits", "iid", "ring", 2, "mlp", 0.03, "pretrained")
CELLS = (
    Cell(SETTING, 0, ("dimat", "dsgd", "final_wa")),
    Cell(SETTING._replace(regime="common"), 1, ("wa", "final_wa")),
)
BASE = Config(
    examples_per_agent=40,
    batch_size=20,
    pretrain_epochs=1,
    rounds=1,
    matching_images=16,
    statistics_images=16,
    test_examples=50,
)
TINY = presets.Study(BASE, CELLS, 60, "all of it")


def rates_file(folder, **rates):
    path = folder / "rates.json"
    path.write_text(json.dumps({"rates": {"iid": rates, "by_class": {}}}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny comparison, in which DSGD diverges from pretrained agents; its command line."""
    out = tmp_path_factory.mktemp("paper")
    tuned = rates_file(out, dsgd=1e30)
    options = ["--preset", "smoke", "--out", str(out), "--tuned", str(tuned)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setitem(presets.STUDIES, "smoke", TINY)
        assert paper.main(options) == 0
        yield out, options


def result(out, cell):
    text = (out / "cells" / cell.name / "result.json").read_text(encoding="utf-8")
    return Outcome(**json.loads(text))


def test_a_method_that_diverges_is_noted_and_the_others_run(finished):
    out, _ = finished
    for cell, first, diverged in ((CELLS[0], "dimat", ["dsgd"]), (CELLS[1], "wa", [])):
        found = result(out, cell)
        assert found.diverged == diverged
        assert set(found.all_tests) == {first, "final_wa"}
        assert {row["method"] for row in found.rows} == {"pretrain", first, "final_wa"}
        assert all(len(values) == 2 for values in found.all_tests.values())
        assert found.dataset.endswith("(first 60 test images)")
        # 60 test images: accuracies are multiples of 1/60.
        shares = 60 * np.array([*found.all_tests.values()])
        np.testing.assert_allclose(shares, shares.round(), atol=1e-4)


def test_the_report_says_what_the_cells_gave(finished):
    out, _ = finished
    text = (out / "paper.md").read_text(encoding="utf-8")
    for cell in CELLS:
        mean = 100 * np.mean(result(out, cell).all_tests["final_wa"])
        row = next(
            line
            for line in text.split(f"## {paper_report.title(cell.setting)}")[1].splitlines()
            if line.startswith("| Final WA")
        )
        assert f" {mean:.1f} ± " in row
    assert text.count("diverged | ") == 3 and "Other than in the paper: all of it." in text
    assert "## Which method is strongest" in text
    for name in ("digits-iid-ring-2-mlp-0.03-pretrained", "digits-iid-ring-2-mlp-0.03-common"):
        assert f"paper-{name}.png" in text
        assert (out / f"paper-{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "paper.csv").open(encoding="utf-8")))
    ends = {(r["regime"], r["label"]): r for r in rows if r["after"] == "end, all tests"}
    assert set(ends) == {
        ("pretrained", "DIMAT"),
        ("pretrained", "Final WA"),
        ("common", "WA"),
        ("common", "Final WA"),
    }
    for cell in CELLS:
        mean = np.mean(result(out, cell).all_tests["final_wa"])
        assert float(ends[cell.setting.regime, "Final WA"]["mean"]) == pytest.approx(mean, abs=1e-4)
    # The epoch of pretraining is spent in a round of its own.
    stages = {r["after"] for r in rows if r["regime"] == "common" and r["label"] == "WA"}
    assert {"merge 2", "train 2", "last training"} < stages


def test_finished_cells_are_not_run_again(finished, monkeypatch, capsys):
    out, options = finished
    stamp = (out / "cells" / CELLS[0].name / "result.json").stat().st_mtime_ns

    def fail(*_, **__):
        raise AssertionError("a finished cell runs again")

    monkeypatch.setattr(runs, "simulate", fail)
    assert paper.main(options) == 0
    assert (out / "cells" / CELLS[0].name / "result.json").stat().st_mtime_ns == stamp
    assert paper.main([*options, "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count(": took ") == 2 and "Left: about 0 s" in said
    # Another configuration's results do not count, nor does a file that was not finished.
    half = out / "cells" / CELLS[1].name / "result.partial"
    half.write_text("{", encoding="utf-8")
    config = grid.config_of(BASE, CELLS[1], grid.read_rates(out / "rates.json"))
    assert grid.load_outcome(half.parent, config) is not None
    other = dataclasses.replace(config, rounds=7)
    assert grid.load_outcome(half.parent, other) is None
    assert grid.load_outcome(out / "nowhere", config) is None


def test_both_regimes_train_for_as_many_epochs():
    for study in presets.STUDIES.values():
        for cell in study.cells:
            config = grid.config_of(study.base, cell, {})
            epochs = config.pretrain_epochs + config.rounds * config.epochs_per_round
            base = study.base
            assert epochs == base.pretrain_epochs + base.rounds * base.epochs_per_round
            assert config.init == ("same" if cell.setting.regime == "common" else "different")


def test_the_presets_are_what_they_say():
    cpu = presets.STUDIES["cpu"].cells
    assert len({cell.name for cell in cpu}) == len(cpu)
    seeds: dict[Setting, int] = {}
    for cell in cpu:
        seeds[cell.setting] = seeds.get(cell.setting, 0) + 1
    usual = {s: n for s, n in seeds.items() if s == Setting(*s[:7])}
    beside = [s for s in seeds if s.topology in ("digraph", "random_peers")]
    beside += [s for s in seeds if s not in usual]
    assert {seeds[s] for s in beside} == {3}
    assert {(s.norm, s.alpha, s.gossip_every) for s in beside} >= {
        ("group", None, 1),
        (None, 0.1, 1),
        (None, 0.5, 1),
        (None, None, 16),
    }
    apart = {s: n for s, n in usual.items() if s.regime == "pretrained" and s not in beside}
    assert {(s.topology, s.partition): n for s, n in apart.items() if s.agents == 5} == {
        (t, p): 3 for t in ("ring", "fully_connected") for p in ("iid", "by_class")
    }
    assert [(s.topology, s.partition, n) for s, n in apart.items() if s.agents == 10] == [
        ("ring", "iid", 1)
    ]
    full = presets.STUDIES["full"].cells
    assert len(full) == len({cell.name for cell in full})
    settings = {cell.setting for cell in full}
    assert {s.agents for s in settings} == {2, 5, 10, 20}
    assert {s.model for s in settings} == {"resnet20", "vgg16", "resnet50"}
    assert {s.topology for s in settings} >= {"bipartite", "disconnected"}
    assert {s.partition for s in settings} >= {"pretrain_iid_finetune_by_class"}
    for study in presets.STUDIES.values():
        for cell in {cell.setting: cell for cell in study.cells}.values():
            config = grid.config_of(study.base, cell, study.rates or {})
            checks.check_options(config)
            graph = topology.make(config.topology, config.agents)
            setup.choose_graphs(config, graph, {name: METHODS[name] for name in config.methods})
    frames = {
        c.topology: c.merge_frame
        for c in (grid.config_of(presets.STUDIES["full"].base, cell, {}) for cell in full)
    }
    assert frames.pop("fully_connected") == "reference" and set(frames.values()) == {"own"}


def test_the_cpu_presets_fit_into_their_time():
    study = presets.STUDIES["cpu"]
    configs = [grid.config_of(study.base, cell, {}) for cell in study.cells]
    whole = sum(presets.expected_seconds(config, study.most_tests) for config in configs)
    assert 10 * 60 < whole < 90 * 60
    # CGA takes a gradient for each neighbour as well: five instead of one.
    one, cga = (dataclasses.replace(configs[1], methods=(m,)) for m in ("cdsgd", "cga"))
    trained = 5 * 4 * 800 / presets.IMAGES_PER_SECOND["convnet"]
    more = presets.expected_seconds(cga, 2000) - presets.expected_seconds(one, 2000)
    assert configs[1].topology == "fully_connected" and more == pytest.approx(4 * trained)


def test_a_settings_name_and_title_say_what_is_special_about_it():
    assert SETTING.name == "digits-iid-ring-2-mlp-0.03-pretrained"
    special = SETTING._replace(alpha=0.1, norm="group", gossip_every=16)
    assert special.name == f"{SETTING.name}-alpha0.1-normgroup-gossip16"
    said = paper_report.title(special)
    assert "Dirichlet 0.1" in said and "GroupNorm" in said and "every 16 steps" in said
    config = grid.config_of(BASE, Cell(special, 0, ("dimat",)), {})
    assert (config.alpha, config.norm, config.gossip_every) == (0.1, "group", 16)
    assert grid.config_of(BASE, CELLS[0], {}).alpha == BASE.alpha


def test_agents_know_their_own_shard():
    def row(seed, accuracy):
        # Agents 0 and 1 on classes 0 to 3: 0 and 2 are of agent 0's shard, 1 and 3 of agent 1's.
        classes = [[accuracy, 0.0, 0.2, 0.0], [0.1, 0.5, 0.3, 0.7]]
        found = dict(method="dimat", seed=seed, round=1, epoch=2, phase="train", bytes_sent=0.0)
        return found | {"test_accuracy_classes": classes}

    runs = {
        seed: Outcome({}, "made up", [row(seed, accuracy)], {"dimat": [0.5, 0.5]}, [], 1.0)
        for seed, accuracy in ((0, 0.4), (1, 0.8))
    }
    assert paper_report.shards_table(runs).rows == [["DIMAT", "50.0", "10.0", "40 0; 20 60"]]


def test_distances_are_said_as_they_are_and_modulo_permutation():
    def rows(method, *distances):
        return [
            dict(method=method, seed=0, round=n, epoch=n, phase="train")
            | {"consensus_distance": raw, "consensus_distance_aligned": aligned}
            for n, (raw, aligned) in enumerate(distances, start=1)
        ]

    found = rows("dimat", (9.0, 4.0), (8.0, 3.5)) + rows("wa", (9.0, None), (1.25, None))
    runs = {0: Outcome({}, "made up", found, {"dimat": [0.5], "wa": [0.5]}, [], 1.0)}
    table = paper_report.distances_table(runs)
    assert table.columns == ["method", "round 1", "round 2"]
    assert table.rows == [["DIMAT", "9.0 / 4.0", "8.0 / 3.5"], ["WA", "9.0", "1.2"]]


def outcome(seed, ends, diverged=()):
    """Results with made-up accuracies: method → at the end; half of it after the first round."""

    def row(method, round, phase, accuracy):
        agents = [accuracy, accuracy]
        return dict(method=method, seed=seed, round=round, epoch=2, phase=phase, bytes_sent=2e6) | {
            "test_accuracy": accuracy,
            "test_accuracy_agents": agents,
            "merged_accuracy": accuracy if phase != "train" else 2 * accuracy,
        }

    rows = [row("pretrain", 0, "pretrain", 0.3)]
    for m, a in ends.items():
        rows += [row(m, 1, "merge", 0.9 * a)] * (m in ("dimat", "wa")) + [row(m, 1, "train", a / 2)]
    tests = {m: [a, a] for m, a in ends.items()}
    return Outcome({}, "made up", rows, tests, list(diverged), 1.0)


def test_methods_are_ahead_of_agents_alone_in_pairs_of_one_seed():
    of_seeds = {
        0: outcome(0, {"local_only": 0.5, "dimat": 0.61, "wa": 0.4, "cga": 0.7}),
        1: outcome(1, {"local_only": 0.6, "dimat": 0.7, "wa": 0.8}, ["cga"]),
        2: outcome(2, {"local_only": 0.7, "dimat": 0.81, "wa": 0.6}, ["cga"]),
    }
    found = paper_report.line(of_seeds, "dimat")
    assert found.over_end.mean == pytest.approx(0.32 / 3) and found.over_end.seeds == 3
    expected = scipy.stats.ttest_1samp([0.11, 0.1, 0.11], 0).confidence_interval(0.95)
    np.testing.assert_allclose(found.over_end.interval, expected)
    assert found.over_trained.mean == pytest.approx(0.16 / 3)
    np.testing.assert_allclose(found.end, [0.61, 0.61, 0.7, 0.7, 0.81, 0.81])
    np.testing.assert_allclose(found.mean_model, [0.61, 0.7, 0.81])
    assert found.bytes_sent == 2e6
    assert paper_report.line(of_seeds, "local_only").over_end is None
    said = paper_report.verdict(of_seeds)
    assert "At the end ahead of agents alone: DIMAT; behind them: none;" in said
    assert "the other 2 of 3 cannot be told apart" in said  # CGA has one seed only
    one = paper_report.verdict({0: of_seeds[0]})
    assert one.count("ahead of agents alone: none; behind them: none;") == 2
    table = paper_report.table_of(SETTING, of_seeds)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["DIMAT", "CGA (1 of 3 seeds)", "Alone", "WA"]
    assert rows["DIMAT"][2:4] == ["35.3 ± 4.5", "70.7 ± 9.0"]
    assert rows["DIMAT"][6] == "**+10.7 (+9.2 to +12.1)**"
    assert rows["WA"][6].startswith("+0.0 (")
    assert rows["CGA (1 of 3 seeds)"][6] == "+20.0" and rows["Alone"][5:7] == ["-", "-"]
    assert paper_report.pretraining(of_seeds) == "Pretraining: 30.0 ± 0.0. "


def test_the_report_says_which_method_is_strongest_and_by_how_much():
    ends = {"local_only": 0.5, "dimat": 0.6, "cga": 0.8, "centralized": 0.9}
    settings = {
        SETTING: {0: outcome(0, ends)},
        SETTING._replace(agents=3): {0: outcome(0, {"dimat": 0.4}, ["cga"])},
    }
    first, second = paper_report.strongest(settings).rows
    assert first[1:] == ["CGA", "+15.0", "CGA", "+30.0", "+10.0"]
    assert second[1:] == ["DIMAT", "-", "DIMAT", "-", "-"]


def test_published_figures_stand_beside_the_same_setting_alone(tmp_path):
    same = Setting("cifar100", "iid", "fully_connected", 5, "resnet20", 8.0, "pretrained")
    column = [
        [row[-1] for row in paper_report.table_of(s, {0: outcome(0, {"dimat": 0.7})}).rows]
        for s in (same, same._replace(width=1.0), same._replace(regime="common"))
    ]
    assert column == [["73.99"], ["-"], ["-"]]
    paper_report.write_csv(tmp_path / "paper.csv", {same: {0: outcome(0, {"dimat": 0.7})}})
    rows = list(csv.DictReader((tmp_path / "paper.csv").open(encoding="utf-8")))
    assert {row["after"]: row["published"] for row in rows if row["published"]} == {
        "end, all tests": "73.99"
    }


def test_held_out_images_are_training_images_that_no_agent_sees():
    data = noise(examples=50, tests=8, size=4)
    held = tune.hold_out(data, 20)
    assert (len(held.train_labels), len(held.test_labels)) == (30, 20)
    both = np.concatenate([held.train_images, held.test_images]).reshape(50, -1)
    given = data.train_images.reshape(50, -1)
    np.testing.assert_array_equal(np.sort(both, 0), np.sort(given, 0))
    labels = {image.tobytes(): y for image, y in zip(given, data.train_labels, strict=True)}
    found = zip(held.test_images, held.test_labels, strict=True)
    assert all(labels[image.tobytes()] == label for image, label in found)
    with pytest.raises(ValueError, match="below the 50 training images, not 50"):
        tune.hold_out(data, 50)


def test_every_method_gets_as_many_trials_and_the_best_rate():
    assert set(tune.tuned()) | set(tune.same_rate()) == set(METHODS)
    assert set(tune.tuned()).isdisjoint(tune.same_rate())
    assert set(tune.same_rate().values()) <= set(tune.tuned())
    grids = {method: tune.rates_of("cpu", method) for method in tune.tuned()}
    assert all(len(grid) == tune.TRIALS for grid in grids.values())
    expected = [0.0006, 0.0018, 0.0054, 0.0162, 0.0486, 0.1458, 0.4374]
    assert grids["wa"] == grids["final_dimat"] == expected
    assert grids["cdsgd"][0] == 0.006 and grids["cga"][-1] == 1.458
    assert tune.rates_of("full", "wa")[0] == 0.00003 and tune.rates_of("full", "cga")[0] == 0.002
    assert set(tune.methods_of("common")) == set(presets.FROM_COMMON) & set(tune.tuned())
    trials = dict.fromkeys(tune.tuned(), [0.1, 0.4, None, 0.2, 0.2, 0.1, 0.1]) | {
        "d2": [None] * 7,
        "wa": [0.3, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1],
        "cga": [None, 0.0, *[None] * 5],
    }
    rates = tune.chosen_rates("cpu", {"iid": trials})["iid"]
    assert rates["cdsgd"] == 0.018 and rates["wa"] == rates["fedavg"] == 0.0006
    assert rates["dimat"] == rates["wm"] == 0.0018 and rates["cga"] == 0.006 and "d2" not in rates
    text = tune.report(tune.Options(), {"iid": trials}, [outcome(0, {"wa": 0.3})])
    assert "0.018: **40.0**" in text and "0.054: diverged" in text
    assert "a rate beyond may be better: WA (iid, 0.0006)." in text


def test_agents_from_scratch_take_rates_of_their_own_where_there_are_any():
    common = CELLS[1]
    for rates, expected in (
        ({"iid": {"wa": 0.1}}, 0.1),
        ({"iid": {"wa": 0.1}, "iid, common": {"wa": 0.2}}, 0.2),
    ):
        config = grid.config_of(BASE, common, rates)
        assert config.method_learning_rate == (("wa", expected),)
        apart = grid.config_of(BASE, common._replace(setting=SETTING), rates)
        assert apart.method_learning_rate == (("wa", 0.1),)


def test_trials_are_stored_and_their_rates_read_back(tmp_path, monkeypatch):
    seen = []

    def fake(config, *, dataset, observer):
        """Bigger rates are better, up to 0.1."""
        seen.append(config)
        rates, methods = dict(config.method_learning_rate), config.methods
        ends = {m: rates[m] if rates[m] < 0.1 else 0.0 for m in methods}
        made = outcome(0, ends)
        finals = {
            (m, 0): type("Final", (), {"measured": {"accuracy": np.array(v)}})
            for m, v in made.all_tests.items()
        }
        return type("Result", (), {"history": made.rows, "finals": finals})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "simulate", fake)
    options = ["--preset", "smoke", "--out", str(tmp_path / "tune")]
    for _ in range(2):
        assert tune.main(options) == 0
    assert len(seen) == 4 * tune.TRIALS  # the second time nothing ran
    assert {(config.partition, config.pretrain_epochs > 0) for config in seen} == {
        (partition, apart) for partition in ("iid", "by_class") for apart in (True, False)
    }
    rates = grid.read_rates(tmp_path / "tune" / "tuned.json")
    assert rates["iid"] == rates["by_class"] and set(rates["iid"]) == set(METHODS)
    assert rates["iid, common"]["cdsgd"] == 0.054
    assert (rates["iid"]["cdsgd"], rates["iid"]["dimat"]) == (0.054, 0.0486)
    assert grid.read_edges(tmp_path / "tune" / "tuned.json") == []  # all lie within their grids


BAD = {
    "no rates": ("--tuned nowhere.json", "nowhere.json is no table of learning rates"),
    "bad rates": ("--tuned bad.json", "bad.json is no table of learning rates"),
    "a misspelt method": ("--tuned dimta.json", "Did you mean 'dimat'"),
    "a rate that is none": ("--tuned nan.json", "a learning rate must be positive, not nan"),
    "a file for a folder": ("--out bad.json", "bad.json cannot be a folder of results"),
    "a file for the report": ("--report bad.json", "bad.json cannot be a folder of results"),
    "no data": ("--data-dir nowhere", "CIFAR-10 is not in nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "bad.json").write_text('{"rates": 3}', encoding="utf-8")
    for name, method, rate in (("dimta", "dimta", 0.1), ("nan", "dimat", float("nan"))):
        text = json.dumps({"rates": {"iid": {method: rate}}})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(paper, "TUNED", rates_file(tmp_path))
    assert paper.main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    for wrong, why in (
        ("--rounds 0", "rounds must be at least 1, not 0"),
        ("--out bad.json", "bad.json cannot be a folder of results"),
        ("--table bad.json/table.md", "bad.json cannot be a folder of results"),
        ("--table .", "is a folder, and cannot be a file of results"),
    ):
        assert tune.main(wrong.split()) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1


def test_every_cell_of_one_process_finds_devices_for_all_cores(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "prepare_devices", lambda *given: asked.append(given))
    monkeypatch.setattr(devices, "virtual_devices", {5: 5, 10: 2}.get)
    monkeypatch.setattr(paper_report, "write_report", lambda *_: None)
    made = [Cell(SETTING._replace(agents=n), 0, ("wa",)) for n in (5, 10)]
    todo = [(cell, BASE, outcome(0, {"wa": 0.5})) for cell in made]
    monkeypatch.setattr(paper, "finished", lambda options: todo)
    paper.compare(paper.Options(out=tmp_path))
    assert asked == [(10, 5)]


@pytest.mark.parametrize("command", ["paper", "tune"])
def test_help_answers_without_jax(command):
    code = (
        f"import sys\nfrom experiments import {command}\n"
        f"try: {command}.main(['--help'])\nexcept SystemExit as e: code = e.code\n"
        "sys.exit(code or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout
