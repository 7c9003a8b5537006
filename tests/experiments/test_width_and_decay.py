"""Width and weight decay: a small study from end to end, and the arithmetic of its page."""

import numpy as np
import pytest
from helpers import small_studies

from dimat_jax.simulation import checks
from experiments import grid, techniques, width_and_decay
from experiments.reports import width_and_decay as width_and_decay_report

TINY = width_and_decay.Study(
    "digits",
    (width_and_decay.Setting("mlp", 0.05, 1, 100, 3e-3),),
    1,
    50,
    32,
)


def test_every_setting_is_a_run_that_there_is():
    for study in width_and_decay.STUDIES.values():
        for setting in study.settings:
            network = width_and_decay.network_of(study, setting)
            config = techniques.config_of(width_and_decay.options_of(study), network)
            checks.check_options(config)
            assert config.norm == "batch" and config.optimizer == "momentum"
            assert config.weight_decay == setting.decay
            assert config.learning_rate == width_and_decay.RATE
        assert len(set(study.settings)) == len(study.settings)
        assert {setting.decay for setting in study.settings} <= set(width_and_decay.DECAYS)


def test_a_study_from_end_to_end(tmp_path):
    cells, text = small_studies.run(width_and_decay, TINY, tmp_path)
    (rows,) = cells.values()
    assert [row["technique"] for row in rows] == list(width_and_decay.TECHNIQUES)
    assert len({row["ends_accuracy"] for row in rows}) == 1
    for row in rows:
        for who in ("ends", "midpoint"):
            assert 0 <= row[f"{who}_accuracy"] <= 1
            assert row[f"{who}_calibrated_loss"] <= row[f"{who}_loss"]
        # Alignment moves weights, and changes no network.
        assert row["norm"] == pytest.approx(rows[0]["norm"])
    assert rows[2]["distance"] < rows[0]["distance"]
    assert "mlp × 0.05" in text


def test_the_best_temperature_is_that_of_each_network():
    # Logits that are twice as sure as they may be, and half as sure; both are right in 3 of 4.
    labels = np.array([0, 0, 0, 1])
    right = np.log(3) * np.array([[1.0, 0]] * 4)  # of 3 to 1, as it is
    found = width_and_decay.calibrated(np.stack([2 * right, right / 2]), labels)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found["accuracy"] == 0.75
    assert found["calibrated_loss"] == pytest.approx(entropy)
    assert found["loss"] > entropy + 0.03


def test_logits_are_those_of_the_model():
    dataset = grid.load_data(TINY.dataset, None, None)
    session = width_and_decay.session_of(TINY, TINY.settings[0], dataset)
    state = session.start(0)
    found = width_and_decay.make_logits(session)(state.agents.variables)
    tests = session.parts.tests
    labels = np.asarray(tests.examples["labels"])[tests.weights > 0]
    accuracies, losses = techniques.scores(session, state.agents.variables)
    measured = width_and_decay.calibrated(found, labels)
    assert measured["accuracy"] == pytest.approx(accuracies.mean())
    assert measured["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_weights_at_right_angles_are_root_2_apart():
    variables = {"params": {"a": np.array([[3.0, 0], [0, 3]]), "b": np.zeros((2, 4))}}
    assert width_and_decay.apart(variables) == pytest.approx({"norm": 3, "distance": 2**0.5})


def made_up():
    """Plain averaging is level with activation matching in the wide network, far behind else."""
    rows = []
    barriers = {
        0.25: {"averaging": 0.4, "activation matching": 0.1, "weight matching": 0.2},
        1.0: {"averaging": 0.1, "activation matching": 0.1, "weight matching": 0.2},
    }
    for width, techniques_ in barriers.items():
        for technique, barrier in techniques_.items():
            for seed in range(3):
                # What differs by seed is the same for all, but for the technique that is level.
                wobble = 0.01 * (seed - 1) * (technique == "activation matching")
                rows.append(
                    {
                        "model": "vgg11",
                        "width": width,
                        "decay": 3e-3,
                        "seed": seed,
                        "technique": technique,
                        "ends_accuracy": 0.6 + 0.01 * seed,
                        "midpoint_accuracy": 0.6 + 0.01 * seed - barrier + wobble,
                        "ends_loss": 1.0,
                        "midpoint_loss": 1.5,
                        "ends_calibrated_loss": 1.0,
                        "midpoint_calibrated_loss": 1.2,
                        "norm": 10.0,
                        "distance": 1.4,
                    }
                )
    return rows


def test_barriers_and_what_alignment_takes_off():
    rows = made_up()
    assert width_and_decay_report.accuracy_barrier(rows[0]) == pytest.approx(0.4)
    assert width_and_decay_report.loss_barrier(rows[0]) == pytest.approx(0.5)
    assert width_and_decay_report.loss_barrier(rows[0], calibrated=True) == pytest.approx(0.2)
    narrow, wide = width_and_decay_report.table(rows).rows
    assert narrow[:5] == ["vgg11 × 0.25", "0.003", "61.0 ± 1.0", "40.0 ± 0.0", "10.0 ± 1.0"]
    assert narrow[6] == "**+30.0 (+27.5 to +32.5)**" and wide[6] == "+0.0 (-2.5 to +2.5)"
    assert wide[7].startswith("**-10.0") and "weight matching 7.0" in wide[8]
    (change,) = width_and_decay_report.changes(rows).rows
    assert change[1] == "width 0.25 to 1, at a decay of 0.003"
    assert change[2].startswith("**-30.0") and not change[3].startswith("**")
    said = width_and_decay_report.verdict(rows)
    assert said.startswith(
        "Activation matching has a lower barrier than plain averaging in 1 of 2 settings, a higher "
        "one in 0, and none that is certain in 1; weight matching"
    )
    assert "10.0 points, is that of vgg11 × 1 at a decay of 0.003" in said
