"""Tables: the right numbers in the right cells, on a terminal and elsewhere."""

import io

import numpy as np
import pytest
from helpers.report_rows import row, run
from rich.console import Console

from dimat_jax.report import tables
from dimat_jax.report.leads import Comparison, Lead


def cells(table):
    """(row name, column) → cell."""
    return {
        (line[0], column): cell
        for line in table.rows
        for column, cell in zip(table.columns[1:], line[1:], strict=True)
    }


def test_accuracy_is_mean_and_spread_over_agents_and_seeds_together():
    found = cells(tables.accuracy_table(run(seeds=(0, 1), agents=4)))
    agents = np.concatenate([np.arange(4) + 2 * seed for seed in (0, 1)])
    spread = f"{agents.std(ddof=1):.1f}"
    assert found["pretraining", "dimat"] == f"{40 + agents.mean():.1f} ± {spread}"
    assert found["pretraining", "wa"] == found["pretraining", "dimat"]
    assert found["merge 1", "dimat"] == f"{42 + agents.mean():.1f} ± {spread}"
    assert found["merge 1", "wa"] == f"{17 + agents.mean():.1f} ± {spread}"
    assert found["train 3", "wa"] == f"{47 + agents.mean():.1f} ± {spread}"
    assert len(found) == 7 * 2


def test_the_title_says_which_std_and_how_many_seeds():
    assert tables.accuracy_table(run()).title.endswith("mean ± std over all agents of 2 seeds")
    assert tables.accuracy_table(run(seeds=(3,))).title.endswith("of 1 seed")


def test_what_a_method_lacks_is_a_dash():
    rows = [*run(rounds=1), row("alone", 0, 1, 3, "train", [0.5])]
    found = cells(tables.accuracy_table(rows))
    assert found["merge 1", "alone"] == "-"
    assert found["train 1", "alone"] == "50.0"  # of a single agent


@pytest.mark.parametrize(("most", "kept"), [(4, [1, 2, 29, 30]), (5, [1, 2, 3, 29, 30])])
def test_rounds_in_the_middle_can_be_left_out(most, kept):
    table = tables.accuracy_table(run(rounds=30), most_rounds=most)
    stages = [line[0] for line in table.rows]
    expected = [f"{phase} {round}" for round in kept for phase in ("merge", "train")]
    middle = 1 + 2 * (most - most // 2)
    assert stages[0] == "pretraining" and stages[middle] == "…"
    assert stages[1:middle] + stages[middle + 1 :] == expected
    assert tables.accuracy_table(run(rounds=3), most_rounds=3) == tables.accuracy_table(run())


def test_methods_are_called_by_their_labels():
    labels = {"dimat": "DIMAT", "pretrain": "pretraining"}
    assert tables.accuracy_table(run(), labels=labels).columns == ["after", "DIMAT", "wa"]
    assert tables.cost_table(run(), labels).columns == ["cost", "pretraining", "DIMAT", "wa"]


def test_the_merged_model_has_a_table_where_it_was_measured():
    assert tables.merged_table(run()) is None
    assert tables.merged_table([dict(line, merged_accuracy=None) for line in run()]) is None
    rows = [
        dict(line, merged_accuracy=0.6 + 0.1 * line["seed"] if line["phase"] == "merge" else None)
        for line in run()
    ]
    table = tables.merged_table(rows, {"wa": "WA"})
    assert [line[0] for line in table.rows] == ["merge 1", "merge 2", "merge 3"]
    assert cells(table)["merge 1", "WA"] == f"65.0 ± {100 * np.std([0.6, 0.7], ddof=1):.1f}"
    one = tables.merged_table([line for line in rows if line["seed"] == 0])
    assert cells(one)["merge 3", "dimat"] == "60.0" and "1 seed" in one.title


def test_the_table_of_leads_has_an_interval_where_there_are_seeds_for_one():
    lead = Lead(0.25, (0.2, 0.3), 3)
    pairs = [
        Comparison("dimat", "local_only", {"first_merge": lead, "final": Lead(-0.01, None, 1)}),
        Comparison("dimat", "wa", {"all_tests": lead}),
    ]
    table = tables.lead_table(pairs, {"dimat": "DIMAT", "local_only": "Alone"})
    assert table.title == "Ahead by so many points, mean and 95% interval over 3 seeds"
    first, last = "after the first merge", "at the end, on all tests"
    found = cells(table)
    assert found["DIMAT over Alone", first] == "+25.0 [+20.0, +30.0]"
    assert found["DIMAT over Alone", "at the end"] == "-1.0 (1 seed)"
    assert found["DIMAT over wa", first] == "-"
    assert found["DIMAT over wa", last] == "+25.0 [+20.0, +30.0]"
    one = tables.lead_table([Comparison("a", "b", {"final": Lead(0.01, None, 1)})])
    assert one.title == "Ahead by so many points, of one seed"
    assert cells(one)["a over b", "at the end"] == "+1.0"
    assert tables.lead_table([]) is tables.lead_table([Comparison("a", "b", {})]) is None


def test_costs_are_sums_over_rows_and_means_over_seeds():
    found = cells(tables.cost_table(run(seeds=(0, 1, 2), rounds=3)))
    assert found["compile, s", "pretrain"] == "6.00"
    assert found["examples/s", "pretrain"] == "1,000"
    assert found["MB sent", "dimat"] == "6.0"
    assert found["train, s", "dimat"] == "3.00"
    assert found["match, s", "dimat"] == "1.50"
    assert found["assign, s", "dimat"] == "0.75"
    assert found["mix, s", "wa"] == "0.38"
    assert found["match, s", "wa"] == "-"
    assert found["examples/s", "wa"] == "500"


def test_a_part_of_another_name_gets_a_line():
    table = tables.cost_table([row("cga", 0, 1, 1, "train", [0.5], seconds={"program": 2.0})])
    assert cells(table)["program, s", "cga"] == "2.00"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0.0, "0.0"), (40.0, "0.00004"), (12_345.0, "0.0123"), (999_900.0, "1"), (2e9, "2,000.0")],
)
def test_few_bytes_have_three_digits(count, text):
    assert tables.megabytes(count) == text


@pytest.mark.parametrize("methods", [2, 9])
def test_nothing_is_cut_on_a_narrow_terminal(methods):
    rows = [
        row(f"method_{i}", 0, 1, 1, "train", [0.5], 12_345_678.0, seconds={"train": 12345.67})
        for i in range(methods)
    ]
    for table in (tables.cost_table(rows), tables.accuracy_table(rows)):
        file = io.StringIO()
        tables.show(table, Console(file=file, force_terminal=True, width=80))
        assert "…" not in file.getvalue()
        if methods == 2:
            assert all(cell in file.getvalue() for line in table.rows for cell in line)


def test_markdown_is_aligned_and_complete():
    table = tables.Table("t", ["after", "dimat"], [["merge 1", "1.0"], ["x", "10.0"]])
    assert tables.to_markdown(table).splitlines() == [
        "| after   | dimat |",
        "|---------|------:|",
        "| merge 1 |   1.0 |",
        "| x       |  10.0 |",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown_is_also_returned(terminal):
    file = io.StringIO()
    table = tables.accuracy_table(run())
    text = tables.show(table, Console(file=file, force_terminal=terminal, width=100))
    assert text == f"{table.title}\n\n{tables.to_markdown(table)}\n"
    assert all(cell in file.getvalue() for line in table.rows for cell in line)
    assert ("━" in file.getvalue()) == terminal
    assert (file.getvalue() == text) == (not terminal)
