"""Agents that join and leave: a small study from end to end, and the arithmetic of its page."""

import dataclasses

import pytest
from helpers import small_studies

from dimat_jax.simulation import checks, faults
from experiments import dynamic
from experiments.dynamic import ALONE, GRAPHS, NOTHING, SCENARIOS, STATIC, Setting
from experiments.reports import dynamic as dynamic_report

SMOKE = dynamic.STUDIES["smoke"]
FRESH = next(scenario for scenario in SCENARIOS if scenario.joins == "fresh")
LEAVE = next(scenario for scenario in SCENARIOS if scenario.leaves)
TINY = SMOKE._replace(
    base=dataclasses.replace(
        SMOKE.base, examples_per_agent=20, batch_size=10, pretrain_epochs=1, rounds=3
    ),
    settings=(
        Setting(GRAPHS[STATIC], FRESH),
        Setting(GRAPHS["random matching"], NOTHING),
    ),
    seeds=1,
    tests=40,
    first=2,
    last=2,
)


def test_every_setting_is_a_run_that_there_is():
    for study in dynamic.STUDIES.values():
        assert len({dynamic.name_of(s, 0) for s in study.settings}) == len(study.settings)
        assert 1 < study.first <= study.last < study.base.rounds
        for setting in study.settings:
            checks.check_options(dynamic.config_of(study, setting, 0))
            happens = dynamic.network_of(study, setting.scenario, 0)
            faults.check_schedule(faults.Schedule(*happens), study.base.agents)
            assert setting.graph.static is None or setting.graph.static in GRAPHS
    settings = dynamic.STUDIES["cpu"].settings
    assert {setting.graph.label for setting in settings} == set(GRAPHS)
    assert {setting.scenario for setting in settings} == set(SCENARIOS)


def test_what_happens_is_what_a_scenario_says():
    study = dynamic.STUDIES["cpu"]
    agents, here = study.base.agents, {}
    for scenario in SCENARIOS:
        schedule = faults.Schedule(*dynamic.network_of(study, scenario, 0))
        here[scenario.label] = [
            int(faults.there(schedule, agents, round).sum())
            for round in (study.first - 1, study.first, study.last, study.last + 1)
        ]
        arriving = [
            faults.arriving(schedule, agents, 0, round).sum() - agents
            for round in (study.first - 1, study.first, study.last + 1)
        ]
        pairs = agents * (agents - 1)
        if not scenario.message_loss:
            assert arriving[0] == arriving[2] == pairs
            assert (arriving[1] == pairs) == (scenario.fail == 0)
            assert (arriving[1] == 0) == (scenario.fail == 1)
    assert here["nothing happens"] == here["all edges fail"] == [8, 8, 8, 8]
    assert here["two join, fresh"] == here["two join, as copies"] == [6, 8, 8, 8]
    assert here["two leave"] == [8, 6, 6, 6] and here["two away, then stale"] == [8, 6, 6, 8]


def test_a_study_from_end_to_end(tmp_path):
    cells, text = small_studies.run(dynamic, TINY, tmp_path)
    assert set(cells) == {dynamic.name_of(setting, 0) for setting in TINY.settings}
    joins = cells["exponential-two-join-fresh-0"]
    assert {row["method"] for row in joins} == {"dimat", "wa", ALONE}
    for row in joins:
        assert (row["moving"] is None) == (row["round"] < TINY.first)
        assert row["neighbours"] == 2 and 0 <= row["accuracy"] <= 1
    matching = cells["random-matching-nothing-happens-0"]
    assert {row["method"] for row in matching} == {"dimat", "wa"}
    assert [row["phase"] for row in matching] == 6 * ["merge", "train"]
    assert all(row["neighbours"] == 1 for row in matching)
    assert "two join, fresh" in text and "random matching" in text


def test_recovery_is_when_accuracy_is_back_to_stay():
    level = dict.fromkeys(range(1, 8), 0.5)

    def recovery(*values):
        return dynamic_report.recovery(dict(enumerate(values, 1)), 3, level)

    assert recovery(0.2, 0.5, 0.5, 0.5, 0.5) == 0  # What came before does not count.
    assert recovery(0.5, 0.5, 0.495, 0.5, 0.5) == 0  # Within the margin.
    assert recovery(0.5, 0.5, 0.3, 0.5, 0.5) == 1
    assert recovery(0.5, 0.5, 0.5, 0.3, 0.5) == 2
    assert recovery(0.5, 0.5, 0.3, 0.5, 0.3) is None
    rising = {3: 0.4, 4: 0.6}
    assert dynamic_report.recovery({3: 0.4, 4: 0.58}, 3, rising) is None


def made_up(scenario, shift, graph=STATIC, methods=("dimat", "wa", ALONE)):
    """Rows in which accuracy is 40 %, and from the event on other by so much, but for Alone."""
    base = {"graph": graph, "scenario": scenario.label, "neighbours": 3.0, "bytes_sent": 2e6}
    return [
        {
            **base,
            **{"method": method, "round": round, "phase": phase, "seed": seed},
            "accuracy": 0.4 + changed + 0.01 * seed,
            "moving": 0.3 + changed if round >= 2 or not scenario.joins else None,
            "others": 0.4 + changed,
            "distance": 1.0 - changed,
        }
        for method in methods
        for round in range(1, 4)
        for phase in ("merge", "train")
        for seed in range(3)
        if method != ALONE or phase == "train"
        for changed in [shift if round >= 2 and method != ALONE else 0.0]
    ]


def test_events_are_compared_with_the_run_without():
    study = TINY._replace(settings=(Setting(GRAPHS[STATIC], LEAVE),))
    rows = made_up(NOTHING, 0.0) + made_up(LEAVE, -0.1)
    found = {tuple(r[:2]): r[2:] for r in dynamic_report.table_of_events(study, rows).rows}
    line = found[LEAVE.label, "DIMAT"]
    assert line[:5] == ["41.0", "31.0", "31.0", "31.0", "31.0"] and line[5].startswith("**-10.0")
    assert line[6:9] == ["1.00", "1.10", "1.10"] and line[9:] == ["> 1, > 1, > 1"] * 2
    alone = found[LEAVE.label, "Alone"]
    assert alone[1] == "-" and alone[9:] == ["0, 0, 0"] * 2
    assert found[NOTHING.label, "WA"][5] == found[NOTHING.label, "WA"][9] == "-"


def test_newcomers_are_compared_with_each_other_and_with_those_alone():
    rows = made_up(NOTHING, 0.0) + made_up(FRESH, 0.2)
    found = {tuple(r[:2]): r[2:] for r in dynamic_report.table_of_newcomers(TINY, rows).rows}
    assert found[FRESH.label, "DIMAT"][:5] == ["50.0"] * 5
    assert found[FRESH.label, "DIMAT"][5:8] == ["+0.0 (+0.0 to +0.0)"] * 2 + [
        found[FRESH.label, "WA"][7]
    ]
    assert found[FRESH.label, "WA"][5] == "-" and found[FRESH.label, "WA"][7].startswith("**+20.0")
    assert found[FRESH.label, "DIMAT"][8] == "60.0"
    assert found[FRESH.label, "DIMAT"][9].startswith("**+20.0")


def test_graphs_that_change_are_compared_with_those_that_stay():
    rows = made_up(NOTHING, 0.0) + made_up(NOTHING, 0.05, "epidemic, 3", ("dimat", "wa"))
    found = {tuple(r[:2]): r[2:] for r in dynamic_report.table_of_graphs(TINY, rows).rows}
    assert set(found) == {(g, m) for g in (STATIC, "epidemic, 3") for m in ("DIMAT", "WA")}
    line = found["epidemic, 3", "WA"]
    assert line[:3] == ["3.0", "46.0", "46.0"] and line[3].startswith("**+5.0")
    assert line[4] == STATIC and line[-1] == "2.0"
    assert float(line[6]) == pytest.approx(0.95) and found[STATIC, "WA"][3:5] == ["-", "-"]
