"""Spectra of a run's merges: a small study from end to end, and rank correlations."""

import dataclasses

import numpy as np
import pytest
from helpers import small_studies

import dimat_jax as dj
from dimat_jax.simulation import checks
from experiments import grid, spectral_gap, studies
from experiments.reports import spectral_gap as spectral_gap_report

TINY = dataclasses.replace(
    spectral_gap.STUDIES["smoke"].base,
    agents=3,
    examples_per_agent=40,
    pretrain_epochs=1,
    rounds=1,
    matching_images=16,
    statistics_images=16,
)


def test_every_setting_is_a_run_that_there_is():
    for study in spectral_gap.STUDIES.values():
        for setting in study.settings:
            config = spectral_gap.config_of(study, setting, 0)
            checks.check_options(dataclasses.replace(config, methods=("local_only",)))
        assert len(set(study.settings)) == len(study.settings)


def test_a_study_from_end_to_end(tmp_path):
    setting = spectral_gap.Setting("mlp", 0.1, "iid", "ring")
    study = spectral_gap.Study(TINY, (setting,), 1, 20)
    cells, text = small_studies.run(spectral_gap, study, tmp_path)
    (found,) = cells.values()
    rows = {row["method"]: row for row in found}
    assert list(rows) == ["local_only", "own frames", "one frame", "averaging"]
    alone = rows.pop("local_only")
    assert "gap" not in alone and alone["before"] == rows["averaging"]["before"]
    for row in rows.values():
        assert row["gap_of_graph"] == 1 and row["stochasticity_error"] < 1e-6
        assert 0 <= row["merged"] <= 1 and row["before"] == rows["averaging"]["before"]
    # On a triangle of 1/3 everyone averages with everyone: consistent ones agree at once.
    for name in ("one frame", "averaging"):
        assert rows[name]["gap"] == pytest.approx(1) and rows[name]["fixed"] == pytest.approx(1)
        assert rows[name]["cycles"] == rows[name]["there_and_back"] == 0
        assert rows[name]["neighbors"] == pytest.approx(3)
    whole = rows["own frames"]["whole"]
    assert 0 < whole["fixed_dimension"] <= whole["parameters"]
    assert rows["own frames"]["fixed"] < 1 and rows["own frames"]["cycles"] > 0
    assert "one frame" in text and "agents alone" in text


def test_a_seed_among_others_is_as_it_is_alone():
    dataset = grid.load_data(TINY.dataset, None, 20)
    setting = spectral_gap.Setting("mlp", 0.1, "iid", "ring")

    def second(*seeds):
        config = spectral_gap.config_of(spectral_gap.Study(TINY, (), 1, 20), setting, *seeds)
        config = dataclasses.replace(config, methods=("local_only",))
        session = dj.make_session(config, dataset=dataset, methods=spectral_gap.methods())
        return spectral_gap.spectra(session, studies.pretrain(session, 1))

    among, alone = second(0, 1, 2), second(1)
    assert [row["method"] for row in among] == ["local_only", *spectral_gap.methods()]
    for row in alone:
        row.pop("whole", None)  # of the first seed only
    assert among == alone


def test_differences_are_between_methods_in_the_same_setting_and_round():
    names = dict(model="mlp", width=1.0, partition="iid")
    rows = [
        {**names, "topology": graph, "seed": seed, "method": method, "round": round, **accuracies}
        for graph, lead in (("ring", 0.1), ("exponential", 0.3))
        for seed in (0, 1)
        for round in (1, 2)
        for method, accuracies in (
            ("local_only", {"trained": 0.5}),
            ("own frames", {"merged": 0.2 + lead * round + 0.01 * seed, "trained": 0.4}),
            ("averaging", {"merged": 0.2 + 0.01 * seed, "trained": 0.1 + lead}),
        )
    ]
    found = {row[0]: row[1:] for row in spectral_gap_report.differences("All", rows).rows}
    first, last, trained = found["own frames over averaging"]
    assert (first, last) == ("+20.0 (+10.0 to +30.0)", "+40.0 (+20.0 to +60.0)")
    assert trained == "+10.0 (+0.0 to +20.0)"
    assert found["own frames over agents alone"] == ["-", "-", "-10.0 (-10.0 to -10.0)"]
    assert set(found["own frames over one frame"]) == {"-"}


def made_up(number, seed=0):
    """Merges in which what is gained goes exactly with the gap, and against what cycles move."""
    rng = np.random.default_rng(seed)
    values = rng.random((number, 2))
    names = dict(model="mlp", width=1.0, partition="iid", topology="ring")
    same = dict(eigenvalue=0.5, gap_of_graph=0.1, neighbors=2.0)
    return [
        {
            **names,
            **same,
            "seed": i // 4,
            "gap": gap,
            "fixed": other,
            "cycles": 1 - gap,
            "before": 0.1,
            "merged": 0.1 + gap**3,
            "trained": other,
            "alone": 0.3,
        }
        for i, (gap, other) in enumerate(values)
    ]


def test_rank_correlations_are_of_ranks_and_come_with_intervals():
    table = spectral_gap_report.correlations("All", made_up(40))
    gained = {row[0]: row[1] for row in table.rows}
    assert gained["gap of W"] == "**+1.00 (+1.00 to +1.00)**"
    assert gained["units that cycles move"] == "**-1.00 (-1.00 to -1.00)**"
    assert gained["gap of Π"] == "-"
    assert not gained["fixed space, per unit"].startswith("**")
    trained = {row[0]: row[3] for row in table.rows}
    assert trained["fixed space, per unit"] == "**+1.00 (+1.00 to +1.00)**"
