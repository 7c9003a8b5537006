"""Merging many agents: a small study from end to end, and what its page says of made-up rows."""

import dataclasses

import numpy as np
import pytest
from helpers import small_studies

from dimat_jax.simulation import checks
from experiments import scaling_agents
from experiments.reports import scaling_agents as scaling_agents_report
from experiments.scaling_agents import AT_ONCE, EACH, RUNNING, TOTAL, Setting

TINY = scaling_agents.STUDIES["smoke"]._replace(
    base=dataclasses.replace(
        scaling_agents.STUDIES["smoke"].base,
        batch_size=10,
        pretrain_epochs=2,
        matching_images=16,
        statistics_images=32,
    ),
    agents=(2,),
    total=40,
    each=20,
    seeds=1,
    ordered={"activation matching": (2,)},
    tests=40,
)


def test_every_setting_is_a_run_that_there_is():
    for study in scaling_agents.STUDIES.values():
        settings = scaling_agents.settings_of(study)
        assert len(set(settings)) == len(settings) == 2 * len(study.agents)
        for setting in settings:
            config = scaling_agents.config_of(study, setting)
            checks.check_options(config)
            images = scaling_agents.images_of(study, setting)
            assert images >= config.batch_size
            # CIFAR-10 has 50,000 training images, the digits 1,437.
            most = 50_000 if study.base.dataset == "cifar10" else 1_437
            assert images * setting.agents <= most
            assert (images * setting.agents == study.total) or setting.data == EACH


def test_a_universe_is_found_for_few_agents_and_orders_tried_for_those_named():
    study = scaling_agents.STUDIES["cpu"]
    of = {
        agents: scaling_agents.described(study, Setting(agents, EACH), 0) for agents in study.agents
    }
    most = max(agents for agents in study.agents if of[agents]["universe"])
    assert most == study.most_universe
    for name, numbers in study.ordered.items():
        assert {n for n in of if name in of[n]["ordered"]} == set(numbers)
    assert not scaling_agents.described(study, Setting(4, TOTAL), 0)["ordered"]


def test_a_study_from_end_to_end(tmp_path):
    cells, text = small_studies.run(scaling_agents, TINY, tmp_path)
    assert set(cells) == {f"2-fixed-{data}-0" for data in ("in-all", "for-each")}
    for rows in cells.values():
        assert [row["kind"] for row in rows].count("alone") == 1
        merged = [row for row in rows if row["kind"] == "merged"]
        assert len(merged) == 8 and "cycle-consistent" in {row["method"] for row in merged}
        assert all(len(row["variance"]) == 3 and 0 <= row["accuracy"] <= 1 for row in merged)
        kept = {(row["method"], row["correction"]): row["variance"] for row in merged}
        # REPAIR gives preactivations the deviation of the parents', which averaging lost.
        for method in ("averaging", "activation matching"):
            assert max(kept[method, "none"]) < 1
            assert min(np.subtract(kept[method, "REPAIR"], kept[method, "none"])) > 0
    orders = [row for row in cells["2-fixed-for-each-0"] if row["kind"] == "order"]
    assert [(row["way"], row["correction"]) for row in orders] == [
        (way, correction) for way in (RUNNING, AT_ONCE) for correction in ("none", "REPAIR")
    ]
    assert all(len(row["accuracies"]) == len(row["losses"]) == 2 for row in orders)
    assert not [row for row in cells["2-fixed-in-all-0"] if row["kind"] == "order"]
    assert "Where merging stops working" in text and RUNNING in text


def test_networks_merged_in_order_are_their_mean_where_they_are_alike():
    """Copies of one network in other orders of units: aligned to whatever, all are that network."""
    import jax

    import dimat_jax as dj
    from dimat_jax.algorithms.merging import by_weights, unaligned

    config = scaling_agents.config_of(TINY, Setting(4, EACH))
    session = dj.make_session(config)
    merger, state = session.parts.merger, session.start(0)
    round = scaling_agents.round_of(session, state)
    own = merger.gather(state.agents.variables, np.zeros(4, np.int32))
    keys = jax.random.split(jax.random.key(3), 4)
    permutations = jax.vmap(lambda key: dj.random_permutations(key, session.setup.symmetries))(keys)
    moved = merger.permute(permutations, own)
    orders = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
    for running in (True, False):
        found, _ = scaling_agents.in_order(session, moved, round, by_weights, orders, running)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, moved)
    mean, _ = scaling_agents.in_order(session, moved, round, unaligned, orders, True)
    expected = jax.tree.map(lambda x: np.broadcast_to(np.mean(x, 0), x.shape), moved)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), mean, expected)


def made_up(gains, data=TOTAL):
    """Rows of three seeds in which a merged network is so far ahead of agents alone."""
    rows = []
    for agents, gain in gains.items():
        for seed in range(3):
            of = {"agents": agents, "data": data, "seed": seed}
            alone, loss = 0.3 + 0.01 * seed, 2.0
            rows.append({"kind": "alone", "accuracy": alone, "loss": loss, **of})
            for correction, more in (("none", 0.0), ("REPAIR", 0.1)):
                merged = {"kind": "merged", "method": "averaging", "correction": correction}
                accuracy = alone + gain + more + 0.001 * seed
                variance = [0.5, 1 / agents]
                found = {"accuracy": accuracy, "loss": loss - gain, "variance": variance}
                rows.append({**merged, **found, **of})
    return rows


def test_where_merging_stops_is_where_the_interval_says_so():
    rows = made_up({2: 0.05, 4: 0.001, 8: -0.15})
    table = scaling_agents_report.verdicts(rows)
    said = {tuple(row[:3]): row[3:] for row in table.rows}
    assert said[TOTAL, "averaging", "none"] == ["2", "4", "8", "2, 4"]
    assert said[TOTAL, "averaging", "REPAIR"] == ["2, 4", "-", "8", "2, 4, 8"]
    assert said[EACH, "averaging", "none"] == ["-", "-", "-", "-"]


def test_a_line_has_accuracies_barriers_and_variances():
    study = TINY._replace(agents=(2, 8))
    rows = made_up({2: 0.05, 8: -0.05})
    first, second = scaling_agents_report.table(study, TOTAL, rows).rows
    assert first[:5] == ["2", "20", "1", "31.0", "averaging"]
    assert first[5] == "36.1" and first[6].startswith("**+5.1 (+4.9 to +5.3)")
    assert first[7] == "46.1" and first[9:] == ["-0.05", "-0.05", "0.50 / 0.50"]
    assert second[9:] == ["+0.05", "+0.05", "0.50 / 0.12"]


def test_orders_are_compared_seed_by_seed():
    rows = [
        {
            **{"kind": "order", "agents": 4, "data": EACH, "method": "m", "correction": "none"},
            "way": way,
            "seed": seed,
            "accuracies": [0.3 + shift + 0.1 * seed, 0.4 + shift + 0.1 * seed],
        }
        for way, shift in ((RUNNING, 0.02), (AT_ONCE, 0.0))
        for seed in range(3)
    ]
    one, all_of_them = scaling_agents_report.table_of_orders(rows).rows
    assert one[3:7] == [RUNNING, "47.0", "7.1", "10.0"] and one[7].startswith("**+2.0")
    assert all_of_them[3:] == [AT_ONCE, "45.0", "7.1", "10.0", "-"]
    assert float(one[4]) - float(all_of_them[4]) == pytest.approx(2.0)
