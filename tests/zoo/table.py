"""Writes the table of `docs/models.md`: ``PYTHONPATH=tests python -m zoo.table docs/models.md``."""

import pathlib
import sys
import time
from collections import Counter

from zoo.exhibits import Exhibit
from zoo.museum import EXHIBITS

import dimat_jax as dj
from dimat_jax.report.tables import Table, to_markdown
from dimat_jax.symmetries.groups import Symmetries, shape_of

INTRODUCTION = """\
# Public models

Architectures as their packages have them, small and with random weights: the permutation groups
that `dj.find_symmetries` finds, all as they were counted by hand. `pytest -m museum`
(`pip install -e '.[test,museum]'`) tests that, and that random permutations of all groups leave the
outputs as they are, and that weight matching finds planted permutations again. A group `3 × 8` is a
permutation of eight units for each of three heads, say.

Not among them: T5, mT5, LongT5, BLOOM and RegNetX of Transformers, whose Flax code fails by itself
under the versions of JAX that are supported here.
"""


def groups_of(symmetries: Symmetries) -> str:
    """The groups' shapes, those that are alike counted."""
    found = Counter(shape_of(symmetries, name) for name in symmetries.groups)
    shapes = {" × ".join(map(str, shape)): times for shape, times in found.items()}
    return ", ".join(
        f"{shape} ({times})" if times > 1 else shape for shape, times in shapes.items()
    )


def row(exhibit: Exhibit) -> list[str]:
    """What an exhibit shows."""
    function, variables, inputs = exhibit.make()
    start = time.perf_counter()
    symmetries = dj.find_symmetries(function, variables, *inputs)
    seconds = time.perf_counter() - start
    found = Counter(shape_of(symmetries, name) for name in symmetries.groups)
    if found != Counter(exhibit.groups):
        raise ValueError(f"{exhibit.name} has not the groups that were counted: {found}.")
    # The cause: leaves and lines are those of one installation.
    note = symmetries.notes[0].split(": frozen")[0] if symmetries.notes else ""
    return [
        exhibit.name,
        exhibit.library,
        groups_of(symmetries),
        exhibit.why,
        note,
        f"{seconds:.1f}",
    ]


def main(path: str) -> None:
    """Writes the page."""
    columns = [
        "model",
        "from",
        "groups (how many)",
        "what they are",
        "what freezes more",
        "s",
    ]
    table = Table("", columns, [row(exhibit) for exhibit in EXHIBITS])
    text = f"{INTRODUCTION}\n{to_markdown(table)}\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
