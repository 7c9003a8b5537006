"""On whose images units are compared: a small study from end to end, and its page's arithmetic."""

import dataclasses

import numpy as np
import pytest
from helpers import small_studies

from dimat_jax.simulation import checks
from experiments import matching_data
from experiments.reports import matching_data as matching_data_report

TINY = dataclasses.replace(
    matching_data.STUDIES["smoke"].base,
    agents=3,
    width=0.05,
    examples_per_agent=40,
    pretrain_epochs=1,
    rounds=1,
    statistics_images=16,
)


def test_every_setting_is_a_run_that_there_is():
    for study in matching_data.STUDIES.values():
        for partition in study.partitions:
            for data, images in study.sources:
                config = matching_data.config_of(study, partition, 0)
                checks.check_options(
                    dataclasses.replace(config, matching_data=data, matching_images=images)
                )
                held = study.base.examples_per_agent
                assert isinstance(held, int) and images <= held  # else there are fewer own ones
        assert study.sources[0] == ("shared", max(study.images))


def test_a_study_from_end_to_end(tmp_path):
    study = matching_data.Study(TINY, ("iid",), (5, 30), 1, 20)
    cells, text = small_studies.run(matching_data, study, tmp_path)
    (found,) = cells.values()
    rows = {matching_data_report.what_of(row): row for row in found}
    assert len(found) == len(rows) == 4 + 3
    # What is before a merge is the same for all; alone there is none.
    assert len({row["before"] for row in found}) == 1
    alone = rows[matching_data_report.ALONE]
    assert alone["after"] is None and alone["bytes_sent"] == 0
    # An image of 8 × 8 bytes and its label, from each agent to two others, beside the networks.
    networks = rows["wa", None, None]["bytes_sent"]
    assert rows["dimat", "own", 30]["bytes_sent"] == networks
    few, many = (rows["dimat", "shared", n]["bytes_sent"] - networks for n in (5, 30))
    assert many == pytest.approx(6 * few) and few >= 5 * 64 * 2 / 3
    assert rows["dimat", "shared", 30]["agreement"] == 1
    assert 0 <= rows["dimat", "own", 5]["agreement"] < 1
    assert rows["wa", None, None]["cycles"] == 0 and "agreement" not in rows["wa", None, None]
    assert "30 shared images" in text and "weight matching" in text


def test_agreement_is_the_share_of_units_in_the_same_place():
    one = [{"a": np.array([[0, 1, 2], [2, 1, 0]]), "b": np.array([[0, 1], [0, 1]])}]
    other = [{"a": np.array([[0, 1, 2], [0, 1, 2]]), "b": np.array([[1, 0], [0, 1]])}]
    assert matching_data.agreement(one, one) == 1
    assert matching_data.agreement(one, other) == pytest.approx(6 / 10)


def made_up():
    """Shared images are worth 10 points, alone is 5 behind, over two rounds."""
    rows = []
    methods = [
        ("dimat", "shared", 30, 0.5),
        ("dimat", "own", 30, 0.4),
        ("local_only", None, None, 0.45),
    ]
    for method, data, images, accuracy in methods:
        for seed in range(3):
            for round in (1, 2):
                merged = method == "dimat"
                rows.append(
                    {
                        "method": method,
                        "data": data,
                        "images": images,
                        "seed": seed,
                        "round": round,
                        "before": 0.45,
                        "after": accuracy + 0.01 * seed if merged else None,
                        "trained": accuracy + 0.01 * seed,
                        "bytes_sent": 1e6 * round * merged,
                    }
                )
                if merged and round == 1:
                    rows[-1] |= {"agreement": 0.8, "cycles": 0.25, "there_and_back": 0.1}
                    rows[-1] |= {"fixed": 0.5}
    return rows


def test_a_table_compares_with_the_most_shared_images_and_with_agents_alone():
    shared, own, alone = matching_data_report.table(made_up()).rows
    assert shared[:6] == ["30 shared images", "51.0 ± 1.0", "51.0 ± 1.0", "51.0 ± 1.0", "-", "-"]
    assert shared[6].startswith("**+5.0") and shared[7:10] == ["2.00", "80.0 ± 0.0", "25.0 ± 0.0"]
    assert own[0] == "30 own images" and own[4].startswith("**-10.0")
    assert own[6].startswith("**-5.0") and own[-1] == "0.50 ± 0.00"
    assert alone[:3] == ["alone", "-", "-"] and alone[4] == alone[6] == "-"
    assert alone[5].startswith("**-5.0") and alone[7:] == ["0.00", "-", "-", "-", "-"]
