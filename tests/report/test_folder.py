"""The folder of a run: what is made, checked and reported there."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from helpers.report_rows import run
from helpers.small_runs import noise, small_config
from matplotlib.figure import Figure

from dimat_jax.config import Config
from dimat_jax.report import folder
from dimat_jax.simulation.result import Final, Result
from dimat_jax.simulation.setup import prepare

NAME = "shapes (synthetic)"


@pytest.fixture
def setup(tmp_path):
    """What a run works with, whose folder is still empty."""
    plan = prepare(
        small_config(agents=4, seeds=(0, 1), out=tmp_path / "out"), dataset=noise(size=8)
    )
    return plan._replace(data=plan.data._replace(name=NAME))


def test_an_opened_folder_names_all_that_runs_and_holds_no_older_results(setup, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("summary.json", "tables.md", "accuracy.png", "metrics.jsonl", "mine.txt"):
        (out / name).write_text("older", encoding="utf-8")
    folder.open_folder(setup)
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.jsonl", "mine.txt"}
    assert (out / "metrics.jsonl").read_text(encoding="utf-8") == ""
    found = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert found["dataset"] == NAME
    assert found["config"]["agents"] == 4 and found["versions"]["jax"] and "commit" in found


def test_a_run_is_not_overwritten_unasked(tmp_path):
    folder.check_folder(tmp_path, overwrite=False)
    folder.check_folder(tmp_path / "new", overwrite=False)
    (tmp_path / "metrics.jsonl").write_text("a run", encoding="utf-8")
    with pytest.raises(ValueError, match="already holds a run"):
        folder.check_folder(tmp_path, overwrite=False)
    folder.check_folder(tmp_path, overwrite=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="is a file"):
        folder.check_folder(tmp_path / "metrics.jsonl", overwrite=True)


@pytest.mark.parametrize("name", folder.FILES)
def test_not_a_single_file_of_a_run_is_overwritten_unasked(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"already holds a run \({name}\)"):
        folder.check_folder(tmp_path, overwrite=False)
    (tmp_path / name).rename(tmp_path / "mine.txt")
    folder.check_folder(tmp_path, overwrite=False)


@pytest.mark.parametrize("place", ["file/out", "n" * 300])
def test_a_folder_that_cannot_be_made_is_bad_input(setup, tmp_path, place):
    (tmp_path / "file").touch()
    out = tmp_path / place
    with pytest.raises(ValueError, match=f"The results cannot be written to {out}: [A-Z].*[.]$"):
        folder.check_folder(out, overwrite=False)
        config = dataclasses.replace(setup.config, out=out)
        folder.open_folder(setup._replace(config=config))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_folder_gets_summary_tables_and_picture(setup, tmp_path):
    final = Final({}, {"accuracy": np.array([0.25, 0.75])}, [])
    finals = {(method, seed): final for method in ("dimat", "wa") for seed in (0, 1)}
    folder.open_folder(setup)
    summary = folder.write_report(Result(run(), {}, setup.symmetries, finals, setup))
    out = tmp_path / "out"
    written = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert written["dataset"] == NAME
    assert written["accuracy"] == summary["accuracy"]
    assert written["all_tests"]["wa"] == {"mean": 0.5, "std": pytest.approx((1 / 12) ** 0.5)}
    assert written["complete"] is True
    assert written["config"]["out"] == str(out)
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert text.startswith("# shapes (synthetic)\n")
    assert "| after       |      DIMAT |         WA |" in text
    assert "| merge 1     | 44.5 ± 1.6 | 19.5 ± 1.6 |" in text
    assert "| DIMAT over WA |  +25.0 [+25.0, +25.0] |" in text
    assert "merged model" not in text
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_have_the_merged_model_where_it_was_measured(setup):
    rows = [dict(line, merged_accuracy=0.5) for line in run()]
    folder.open_folder(setup)
    folder.write_report(Result(rows, {}, setup.symmetries, {}, setup))
    text = (setup.config.out / "tables.md").read_text(encoding="utf-8")
    assert text.count("\n\nTest accuracy in % of the merged model") == 1


@pytest.mark.parametrize("rows", [[], run()[:1], run(seeds=(0,))[:4]])
def test_of_a_run_that_was_stopped_is_reported_what_there_is(setup, rows):
    folder.open_folder(setup)
    result = Result(rows, None, setup.symmetries, {}, setup)
    folder.write_report(result, "interrupted in seed 0, pretraining")
    out = setup.config.out
    written = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert written["complete"] is False
    assert written["stopped"] == "interrupted in seed 0, pretraining"
    assert (out / "accuracy.png").exists() == (out / "tables.md").exists() == bool(rows)
    if rows:
        text = (out / "tables.md").read_text(encoding="utf-8")
        assert "\n\ninterrupted in seed 0, pretraining\n\n" in text


@pytest.mark.parametrize(
    ("described", "loud"),
    [({}, False), ({"synthetic": True}, True), ({"stand_in_for": "CIFAR-10"}, True)],
)
def test_the_picture_is_loud_about_data_that_are_made_up(setup, described, loud, monkeypatch):
    drawn = []
    monkeypatch.setattr(folder, "accuracy_figure", lambda *args: drawn.append(args) or Figure())
    plan = setup._replace(data=setup.data._replace(**described))
    final = Final({}, {"accuracy": np.array([0.25, 0.75])}, [])
    finals = {(method, seed): final for method in ("dimat", "wa") for seed in (0, 1)}
    folder.open_folder(plan)
    folder.write_report(Result(run(), {}, plan.symmetries, finals, plan))
    assert [args[3] for args in drawn] == [loud]


def test_a_run_without_a_folder_cannot_be_reported(setup):
    with pytest.raises(ValueError, match="needs a folder"):
        folder.open_folder(setup._replace(config=Config()))


def test_a_configuration_is_plain_json():
    config = Config(out=pathlib.Path("a") / "b")
    assert json.loads(json.dumps(folder.plain(config)))["out"] == os.path.join("a", "b")
