"""When alignment pays: what is sent, a small study from end to end, and the page's arithmetic."""

import dataclasses

import numpy as np
import pytest
from helpers import small_studies

import dimat_jax as dj
from dimat_jax.simulation import checks
from experiments import when_to_merge, when_to_merge_apart, when_to_merge_spend
from experiments.reports import when_to_merge_budget as budget_report
from experiments.reports import when_to_merge_crossing as crossing_report
from experiments.reports import when_to_merge_map as map_report
from experiments.when_to_merge import Setting
from experiments.when_to_merge_spend import ALIGNED, EARLY, EVENLY, FINAL, LATE, PLAIN, gossip

SMOKE = when_to_merge.STUDIES["smoke"]
TINY = SMOKE._replace(
    base=dataclasses.replace(SMOKE.base, norm=None, agents=2, examples_per_agent=40, rounds=2),
    budget=when_to_merge_spend.Budget(2, (1.0,)),
    settings=(Setting(0.1, "iid", "different"),),
    mapped=(Setting(0.1, "iid", "different"),),
    widths=(0.1,),
    crossing=dataclasses.replace(
        SMOKE.crossing, norm=None, agents=2, examples_per_agent=40, rounds=3
    ),
    pretraining=(1,),
    seeds=1,
    map_seeds=1,
    tests=20,
)


def test_every_setting_is_a_run_that_there_is():
    for study in when_to_merge.STUDIES.values():
        for setting, seed in when_to_merge.cells(study):
            checks.check_options(when_to_merge.config_of(study, setting, seed))
        for epochs in study.pretraining:
            checks.check_options(when_to_merge.crossing_of(study, epochs, 0))
        # The map takes what the budget has measured.
        assert set(study.settings) & {
            m._replace(width=w) for m in study.mapped for w in study.widths
        }
        # All can meet in pairs, and the shares of a schedule are whole rounds.
        assert study.base.agents % 2 == 0 and study.base.rounds % study.budget.every == 0


@pytest.mark.parametrize("name", when_to_merge.STUDIES)
def test_early_evenly_and_late_spend_the_same(name):
    study = when_to_merge.STUDIES[name]
    agents, rounds, budget = study.base.agents, study.base.rounds, study.budget
    graphs = when_to_merge_spend.graphs(agents, rounds, budget, 0)
    sends = {
        way: [len(graph.neighbors(0, round)) for round in range(rounds)]
        for way, graph in graphs.items()
    }
    merges = rounds // budget.every
    most = len(dj.topology.exponential(agents).neighbors(0))
    assert sends[EARLY] == [most] * merges + [0] * (rounds - merges)
    assert sends[LATE] == sends[EARLY][::-1]
    assert sends[EVENLY] == ([most] + [0] * (budget.every - 1)) * merges
    assert sends[gossip(1)] == [1] * rounds
    assert gossip(0) == FINAL


def test_a_study_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(crossing_report, "RESAMPLES", 20)
    cells, text = small_studies.run(when_to_merge, TINY, tmp_path)
    assert set(cells) == {"spend-0.1-iid-different-0", "crossing-1-0"}
    spent = {(r["spent"], r["units"]): r for r in cells["spend-0.1-iid-different-0"]}
    assert len(spent) == 2 * len(when_to_merge_spend.ways(TINY.budget, True))
    # Two agents: one network each way in a merge, and half a network to hand on the first one's.
    assert spent[FINAL, PLAIN]["networks"] == pytest.approx(1)
    assert spent[FINAL, ALIGNED]["networks"] == pytest.approx(1.5)
    assert spent[LATE, PLAIN]["networks"] == pytest.approx(2)
    assert spent[LATE, ALIGNED]["networks"] == pytest.approx(3)
    assert spent[gossip(1), ALIGNED]["networks"] == pytest.approx(4)
    # They train alone until then, each as the other.
    assert spent[FINAL, PLAIN]["own"] == spent[FINAL, ALIGNED]["own"]
    assert spent[FINAL, PLAIN]["distance"] == spent[FINAL, ALIGNED]["distance"]
    crossed = {(r["units"], r["round"]): r for r in cells["crossing-1-0"]}
    assert set(crossed) == {(u, r) for u in ("aligned", "plain", "alone") for r in (1, 2, 3)}
    before = [crossed[units, 1] for units in ("aligned", "plain", "alone")]
    assert len({(row["accuracy"], row["distance"], row["train_loss"]) for row in before}) == 1
    assert all(0 <= row["disagreement"] <= 1 and row["norm"] > 0 for row in crossed.values())
    assert "IID, different initial weights" in text and "p = 1" in text


def test_disagreement_is_of_pairs():
    assert when_to_merge_apart.disagreement(np.array([[0, 1, 2, 3]] * 3)) == 0
    predicted = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert when_to_merge_apart.disagreement(predicted) == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_images_are_means_of_squares():
    images = np.arange(2 * 4 * 4 * 1, dtype=np.uint8).reshape(2, 4, 4, 1)
    labels = np.zeros(2, np.int32)
    small = when_to_merge.shrunk(dj.Dataset(images, labels, images, labels, 2, "mine"), 2)
    assert small.train_images.shape == (2, 2, 2, 1) and small.train_images.dtype == np.uint8
    # Of 0, 1, 4, 5: 2.5, rounded to even.
    assert small.train_images[0, 0, 0, 0] == 2
    assert small.name == "mine, at 2 × 2 pixels"


def made_up(way, units, merged, sent, width=0.1, seeds=3):
    """Rows of one way to spend messages, which differ a little by seed."""
    same = {"spent": way, "units": units, "bytes_sent": sent, "networks": sent, "own": 0.2}
    same |= {"merged_before": 0.25}
    same |= {"width": width, "partition": "iid", "init": "different"}
    same |= {"distance": 1.0, "distance_aligned": 1.0}
    return [{**same, "seed": seed, "merged": merged + 0.01 * seed} for seed in range(seeds)]


def test_alignment_is_compared_at_its_bytes():
    rows = [*made_up(FINAL, PLAIN, 0.1, 3.0), *made_up(FINAL, ALIGNED, 0.3, 4.0)]
    rows += [*made_up(gossip(0.2), PLAIN, 0.35, 3.9), *made_up(gossip(0.2), ALIGNED, 0.36, 5.0)]
    ways = [FINAL, gossip(0.2)]
    at_same = budget_report.gain(rows, FINAL)
    assert at_same.mean == pytest.approx(0.2) and at_same.interval == pytest.approx((0.2, 0.2))
    at_bytes = map_report.over_best_plain(rows, FINAL, ways)
    assert at_bytes.mean == pytest.approx(-0.05)
    assert map_report.over_best_plain(rows, gossip(0.2), ways).mean == pytest.approx(0.01)
    assert map_report.over_best_plain(rows, "another", ways) is None
    setting = Setting(0.1, "iid", "different")
    said = budget_report.verdict(setting, rows)
    assert said.startswith("IID, different initial weights: the merged model of aligned agents is")
    assert f"surely better with {FINAL}; {gossip(0.2)}" in said and "worse" not in said


def test_the_budget_has_agents_alone_above_all():
    rows = [*made_up(FINAL, PLAIN, 0.1, 3e6), *made_up(FINAL, ALIGNED, 0.3, 4e6)]
    table = budget_report.budget_table(SMOKE, rows)
    first, plain, aligned = (dict(zip(table.columns, row, strict=True)) for row in table.rows[:3])
    assert first["spent"] == budget_report.ALONE and first["agents"] == "20.0 ± 0.0"
    assert first["MB"] == "0" and first["merged model"] == "-"
    assert plain["merged model"] == "11.0 ± 1.0" and plain["MB"] == "3.0"
    assert aligned["aligned − plain: merged model"] == "**+20.0 (+20.0 to +20.0)**"
    assert aligned["not aligned again"] == "25.0 ± 0.0" and plain["not aligned again"] == "-"
    assert aligned["aligned − plain: agents"] == "+0.0 (+0.0 to +0.0)"
    assert aligned["merged model over Alone"] == "**+11.0 (+8.5 to +13.5)**"


@pytest.mark.parametrize(
    ("plain", "expected"), [([1, 1, 1], None), ([3, 1, 3], 9), ([1, 2, 2], 5), ([2, 2, 2], 1)]
)
def test_plain_averaging_overtakes_where_it_stays_ahead(plain, expected):
    aligned, rounds = [2, 2, 2], (1, 5, 9)
    pair = (dict(zip(rounds, values, strict=True)) for values in (aligned, plain))
    assert crossing_report.overtaken(*pair) == expected


def crossed(seeds=3):
    """Plain averaging lies behind in the first round and ahead from the second on."""
    rows = []
    for epochs in (0, 5):
        for seed in range(seeds):
            for round, lead in ((1, -0.1), (10, 0.02), (20, 0.05)):
                for units, sign in ((PLAIN, 1), (ALIGNED, 0), ("alone", 0)):
                    after = 0.3 + sign * (lead + 0.001 * seed)
                    row = {"epochs": epochs, "seed": seed, "round": round, "units": units}
                    row |= dict.fromkeys(("accuracy", "norm", "train_loss"), 0.5)
                    row |= {"disagreement": 0.5 - after, "distance": after, "after": after}
                    rows.append({**row, "distance_aligned": 1.0, "merged": after, "trained": 0.3})
    rows[0]["train_loss"] = None
    return rows


def test_the_crossing_says_from_which_round_on_and_what_goes_with_it(monkeypatch):
    monkeypatch.setattr(crossing_report, "RESAMPLES", 100)
    rows = crossed()
    table = crossing_report.crossing_table(rows)
    assert len(table.rows) == 4
    for row in table.rows:
        assert row[2:5] == ["10", "10, 10, 10", "10"]
        assert row[5].startswith("**-9.9 (") and row[6].startswith("**+5.1 (")
    reasons = {row[0]: row[1] for row in crossing_report.reasons_table(rows).rows}
    assert reasons["distance from consensus"] == "**+1.00 (+1.00 to +1.00)**"
    assert reasons["disagreement of predictions"] == "**-1.00 (-1.00 to -1.00)**"
    # What is the same for both goes with nothing.
    assert reasons["length of the parameters"] == "-"
    stages = crossing_report.stages_table(rows).rows
    assert len(stages) == 2 * 3 * 3 and stages[2][2] == "alone" and stages[2][9] == "-"
