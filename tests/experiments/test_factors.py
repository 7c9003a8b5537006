"""The factors of a merge: what is tried, and the table of what came out."""

import dataclasses

from dimat_jax.simulation import checks
from experiments import factors
from experiments.reports import factors as factors_report


def made_up(seed: int, gain: float) -> list[dict]:
    """The rows of a seed: all end at 0.5, but agents alone at 0.4, and one factor higher."""

    def row(factor: str, method: str) -> dict:
        end = 0.4 if method == "local_only" else 0.5 + gain * (factor == "optimizer kept")
        points = dict.fromkeys(factors_report.POINTS, end + 0.01 * seed)
        whence = {"commit": "abc", "versions": {"jax": "1"}}
        return {"factor": factor, "method": method, "bytes_sent": 2e6, **points, **whence}

    tried = [(f.label, method) for f in factors.FACTORS for method in f.methods]
    return [row(*names) for names in tried]


def test_every_factor_is_a_run_that_there_is():
    for study in factors.STUDIES.values():
        for changes in study.partitions.values():
            config = dataclasses.replace(study.base, **changes)
            for factor in factors.FACTORS:
                checks.check_options(dataclasses.replace(config, **factor.options))
                assert set(factors.methods_of(factor, config)) == {
                    f"{name}_tried" for name in factor.methods
                }
    labels = [factor.label for factor in factors.FACTORS]
    assert len(set(labels)) == len(labels) and labels[0] == "base"


def test_differences_are_paired_by_seed_and_those_that_are_sure_are_bold():
    table = factors_report.table([made_up(0, 0.02), made_up(1, 0.03), made_up(2, 0.025)])
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert rows["base", "DIMAT"][2:] == ["51.0", "-", "**+10.0 (+10.0 to +10.0)**", "2.0"]
    assert rows["base", "Alone"][2:] == ["41.0", "-", "-", "2.0"]
    assert rows["optimizer kept", "WA"][3] == "**+2.5 (+1.3 to +3.7)**"
    # Where a rate is other, agents alone have it, too.
    assert rows["rate × 2.5", "Alone"][3] == "+0.0 (+0.0 to +0.0)"


def test_the_page_names_where_its_numbers_come_from():
    found = {name: [made_up(0, 0.02)] for name in factors.STUDIES["cpu"].partitions}
    page = factors_report.report("cpu", factors.STUDIES["cpu"], found)
    assert "Commit abc; jax 1." in page and "## by class: 5 agents of 1600 images, 1 seeds" in page
    assert "experiments.factors --preset cpu" in page
