"""Small runs give the rows that were recorded (`golden/record.py`), to 1e-6."""

import numpy as np
import pytest
from golden.record import CASES, FOLDER, recorded, rows

OFTEN = ("mlp",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n in CASES]
)
def test_the_rows_are_those_recorded(name):
    found, expected = rows(name), recorded(name)
    assert len(found) == len(expected)
    for row, before in zip(found, expected, strict=True):
        assert before.keys() <= row.keys()
        for key, value in before.items():
            if isinstance(value, str | None):
                assert row[key] == value, key
            else:
                np.testing.assert_allclose(row[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_every_file_belongs_to_a_case():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(CASES)
