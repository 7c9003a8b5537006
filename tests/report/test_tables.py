"""Tables: the right numbers in the right cells, on a terminal and elsewhere."""

import io

import numpy as np
import pytest
from helpers.report_rows import row, run
from rich.console import Console

from dimat_jax.report import tables


def cells(table):
    """(row name, column) → cell."""
    return {
        (line[0], column): cell
        for line in table.rows
        for column, cell in zip(table.columns[1:], line[1:], strict=True)
    }


def test_accuracy_is_mean_and_std_over_agents_and_seeds_together():
    found = cells(tables.accuracy_table(run(seeds=(0, 1), agents=4)))
    agents = np.concatenate([np.arange(4) + 2 * seed for seed in (0, 1)])
    assert found["pretraining", "dimat"] == f"{40 + agents.mean():.1f} ± {agents.std():.1f}"
    assert found["pretraining", "wa"] == found["pretraining", "dimat"]
    assert found["merge 1", "dimat"] == f"{42 + agents.mean():.1f} ± {agents.std():.1f}"
    assert found["merge 1", "wa"] == f"{17 + agents.mean():.1f} ± {agents.std():.1f}"
    assert found["train 3", "wa"] == f"{47 + agents.mean():.1f} ± {agents.std():.1f}"
    assert len(found) == 7 * 2


def test_the_title_says_which_std_and_how_many_seeds():
    assert tables.accuracy_table(run()).title.endswith("mean ± std over all agents of 2 seeds")
    assert tables.accuracy_table(run(seeds=(3,))).title.endswith("of 1 seed")


def test_what_a_method_lacks_is_a_dash():
    rows = [*run(rounds=1), row("alone", 0, 1, 3, "train", [0.5])]
    found = cells(tables.accuracy_table(rows))
    assert found["merge 1", "alone"] == "-"
    assert found["train 1", "alone"] == "50.0 ± 0.0"


@pytest.mark.parametrize(("most", "kept"), [(4, [1, 2, 29, 30]), (5, [1, 2, 3, 29, 30])])
def test_rounds_in_the_middle_can_be_left_out(most, kept):
    table = tables.accuracy_table(run(rounds=30), most_rounds=most)
    stages = [line[0] for line in table.rows]
    expected = [f"{phase} {round}" for round in kept for phase in ("merge", "train")]
    middle = 1 + 2 * (most - most // 2)
    assert stages[0] == "pretraining" and stages[middle] == "…"
    assert stages[1:middle] + stages[middle + 1 :] == expected
    assert tables.accuracy_table(run(rounds=3), most_rounds=3) == tables.accuracy_table(run())


def test_costs_are_sums_over_rows_and_means_over_seeds():
    found = cells(tables.cost_table(run(seeds=(0, 1, 2), rounds=3)))
    assert found["compile, s", "pretrain"] == "6.00"
    assert found["images/s", "pretrain"] == "1,000"
    assert found["MB sent", "dimat"] == "6.0"
    assert found["train, s", "dimat"] == "3.00"
    assert found["match, s", "dimat"] == "1.50"
    assert found["assign, s", "dimat"] == "0.75"
    assert found["mix, s", "wa"] == "0.38"
    assert found["match, s", "wa"] == "-"
    assert found["images/s", "wa"] == "500"


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
