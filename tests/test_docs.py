"""The documentation's code runs, and its tables are complete."""

import pathlib
import re

from dimat_jax.algorithms import METHODS

METHODS_PAGE = (pathlib.Path(__file__).parents[1] / "docs/methods.md").read_text(encoding="utf-8")


def test_the_page_lists_every_method():
    rows = re.findall(r"^\| (`[a-z].*?) \|", METHODS_PAGE, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(METHODS)


def test_the_method_of_the_page_runs(monkeypatch):
    monkeypatch.setitem(METHODS, "damped", METHODS["dsgd"])  # so that it is gone afterwards
    code = METHODS_PAGE.split("## A method of one's own")[1]
    blocks = re.findall(r"^```python\n(.*?)^```", code, re.MULTILINE | re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    assert METHODS["damped"] is not METHODS["dsgd"]
    ends = {row["method"]: row for row in names["result"].history if row["phase"] == "train"}
    assert set(ends) == {"dsgd", "damped"}
    # Halfway to the average disagrees more than the average.
    assert ends["damped"]["consensus_distance"] > 1.05 * ends["dsgd"]["consensus_distance"] > 0
