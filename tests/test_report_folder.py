"""The report's files in a run's folder."""

import json
import pathlib

from report_rows import run

from dimat_jax.report.folder import write_report


def test_the_folder_gets_summary_tables_and_picture(tmp_path):
    config = {"agents": 4, "out": pathlib.Path("runs/x")}
    summary = write_report(tmp_path, run(), "shapes (synthetic)", config, {}, "convnet, ring")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["dataset"] == "shapes (synthetic)"
    assert written["accuracy"] == summary["accuracy"]
    assert written["config"]["out"] == "runs/x"
    text = (tmp_path / "tables.md").read_text()
    assert text.startswith("# shapes (synthetic)\n")
    assert "| merge 1     | 44.5 ± 1.5 | 19.5 ± 1.5 |" in text
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "accuracy.png",
        "summary.json",
        "tables.md",
    ]
