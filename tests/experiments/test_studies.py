"""What the studies share: cells that are measured once, pages whose answers stay."""

import json

import pytest

from experiments import studies


def test_a_cell_is_measured_once_and_again_for_another_description(tmp_path, capsys):
    calls = []

    def measure():
        calls.append(1)
        return [{"accuracy": 0.5, "number": len(calls)}]

    first = studies.cell(tmp_path, "a-0", {"seed": 0, "pair": (1, 2)}, measure)
    again = studies.cell(tmp_path, "a-0", {"seed": 0, "pair": (1, 2)}, measure)
    assert first == again and len(calls) == 1
    assert first[0]["accuracy"] == 0.5 and first[0]["versions"]["jax"]
    other = studies.cell(tmp_path, "a-0", {"seed": 1, "pair": (1, 2)}, measure)
    assert other[0]["number"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a-0.json"]
    assert "a-0: 0 s" in capsys.readouterr().out
    stored = json.loads((tmp_path / "a-0.json").read_text(encoding="utf-8"))
    assert stored["described"] == {"seed": 1, "pair": [1, 2]}


def test_a_cell_that_fails_leaves_nothing(tmp_path):
    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        studies.cell(tmp_path, "a", {}, fails)
    assert not list(tmp_path.iterdir())


def test_what_stands_above_the_mark_stays(tmp_path):
    page = tmp_path / "x.md"
    studies.write_page(page, "one\n")
    assert page.read_text(encoding="utf-8") == f"{studies.MARK}\n\none\n"
    page.write_text(f"# An answer\n\n{studies.MARK}\n\none\n", encoding="utf-8")
    studies.write_page(page, "two\n")
    assert page.read_text(encoding="utf-8") == f"# An answer\n\n{studies.MARK}\n\ntwo\n"


def test_rows_say_where_they_come_from():
    rows = [
        {"commit": commit, "versions": {"jax": "1", "absent": None}} for commit in ("b", "a", "b")
    ]
    assert studies.provenance(rows) == "Commit a, b; jax 1."
