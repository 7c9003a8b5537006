"""Groups that are matched jointly: tensors that carry several of them, as heads x head size.

The score of a pair of units then depends on several permutations. They are chosen group by group,
those that vary along another group after it, by coordinate descent.

An example: 4 heads of 16 units each, the units varying along the heads. Two networks' activations
[tokens, 4, 16] give a table ``values[h, e, k, f]`` of shape [4, 16, 4, 16]: how well unit e of the
target's head h goes with unit f of the source's head k. Wanted are a permutation p of the heads
and, for each target head h, one q[h] of the units, with the largest
Σ_h Σ_e values[h, e, p[h], q[h, e]].

1. `group_scores` for the heads, [4, 4]: for each pair h, k the total of the best assignment of the
   16 units, so 16 linear assignments. Assigning heads by it gives p.
2. `fix` applies p: values[h, :, p[h], :], shape [4, 16, 16], the heads now one fixed axis.
3. `group_scores` for the units is that array, and its 4 linear assignments give q [4, 16].

That is exact, because the units of different heads do not meet. With groups that do not vary along
each other (two streams' units in one tensor) step 1 is an upper bound only, and `solve` goes on to
`improve` one group given the others until none gets better.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dimat_jax.matching.linear import assign_units, best_total

TOLERANCE = 1e-9
"""A permutation counts as better if the total grows by more than this fraction of it."""

Outer = Mapping[str, tuple[str, ...]]
"""`Group.outer` of each group: the groups and positions along which its permutation varies."""

Chosen = dict[str, Int[np.ndarray, "..."]]
"""Permutations `[*outer, units]` of the groups chosen so far."""


ScoreFunction = Callable[[str, Chosen], Float[np.ndarray, "*outer units units"]]
"""Scores of one group's units, target by source, given the permutations chosen so far."""


class Table(NamedTuple):
    """Scores of the units of some groups that are matched jointly.

    Attributes:
      fixed: Names of the leading axes: positions, and groups whose permutation is chosen already.
      groups: The groups still to choose.
      values: `[*fixed, *target units by group, *source units by group]`.
    """

    fixed: tuple[str, ...]
    groups: tuple[str, ...]
    values: Float[np.ndarray, "..."]


def _reduce(values: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Sums leading, named axes that are not wanted, and brings the others into the wanted order."""
    values = values.sum(tuple(i for i, name in enumerate(names) if name not in wanted))
    left = [name for name in names if name in wanted]
    order = [left.index(name) for name in wanted]
    return values.transpose(*order, *range(len(order), values.ndim))


def fix(table: Table, group: str, permutation: np.ndarray, outer: Outer) -> Table:
    """Applies a permutation to the source: the group's two axes become one fixed axis."""
    # Target axis to the front, source axis to the back, and there the chosen source unit is taken.
    axis, lead, width = table.groups.index(group), len(table.fixed), len(table.groups)
    values = np.moveaxis(table.values, (lead + axis, lead + width + axis), (lead, -1))
    # The permutation's axes are in the order of `outer`, the table's in that in which groups were
    # fixed: transposed to it, and with axes of size 1 for what the group does not vary along.
    names, varying = (*table.fixed, group), (*outer[group], group)
    index = permutation.transpose([varying.index(name) for name in names if name in varying])
    index = np.expand_dims(index, [i for i, name in enumerate(names) if name not in varying])
    index = index.reshape(index.shape + (1,) * (values.ndim - index.ndim))
    chosen = np.take_along_axis(values, index, -1)[..., 0]
    return Table(names, tuple(other for other in table.groups if other != group), chosen)


def group_scores(table: Table, group: str, outer: Outer) -> Float[np.ndarray, "..."]:
    """Scores `[*outer, units, units]` of one group of a table.

    Groups of the table that are not chosen yet count with the best that they could reach for each
    pair of units: exact for a group that varies along this one, an upper bound for others.
    """
    axis, width = table.groups.index(group), len(table.groups)
    # Axes along which no group of the table varies can be summed first: it is linear in them.
    needed = {name for other in table.groups for name in outer[other]}
    names = [name for name in table.fixed if name in needed]
    values = _reduce(table.values, table.fixed, names)
    lead = len(names)
    values = np.moveaxis(values, (lead + axis, lead + width + axis), (lead, lead + 1))
    # What is left are target units, then source units, of all other groups: two halves.
    if width > 1:
        rest = int(np.sqrt(np.prod(values.shape[lead + 2 :])))
        values = best_total(values.reshape(*values.shape[: lead + 2], rest, rest))
    return _reduce(values, names, outer[group])


def fix_all(table: Table, chosen: Chosen, outer: Outer) -> Table:
    """Fixes every group of the table that is chosen, outer ones first."""
    for group in sorted(set(table.groups) & set(chosen), key=lambda name: len(outer[name])):
        table = fix(table, group, chosen[group], outer)
    return table


def choose_in_turn(groups: Sequence[str], chosen: Chosen, scores: ScoreFunction) -> Chosen:
    """Chooses the named groups in turn, given those chosen already."""
    for group in groups:
        chosen = {**chosen, group: assign_units(scores(group, chosen))}
    return chosen


def improve(
    group: str,
    chosen: Chosen,
    outer: Outer,
    scores: ScoreFunction,
    total: Callable[[Chosen], float],
) -> Chosen:
    """Chooses a group again, and with it those that vary along it, if the total grows by that."""
    again = sorted(
        (name for name in chosen if name == group or group in outer[name]),
        key=lambda name: len(outer[name]),
    )
    others = {name: chosen[name] for name in chosen if name not in again}
    proposal = choose_in_turn(again, others, scores)
    before = total(chosen)
    return proposal if total(proposal) > before + TOLERANCE * abs(before) else chosen


def solve(tables: Sequence[Table], groups: Sequence[str], outer: Outer) -> Chosen:
    """Maximises the sum of scores over the permutations of groups that share tables.

    Each group is chosen in turn together with those that vary along it, until none improves. Two
    levels (heads, and each head's own units) are solved exactly by the first turn.

    Args:
      tables: Scores, one table for each set of groups that tensors carry jointly.
      groups: All groups on the tables, each after those that it varies along.
      outer: Along what each group's permutation varies.

    Returns:
      The permutation of each group.
    """

    def scores(group: str, chosen: Chosen) -> Float[np.ndarray, "*outer units units"]:
        fixed = (fix_all(table, chosen, outer) for table in tables if group in table.groups)
        return reduce(np.add, [group_scores(table, group, outer) for table in fixed])

    def total(chosen: Chosen) -> float:
        return sum(float(fix_all(table, chosen, outer).values.sum()) for table in tables)

    # The total grows by more than a fraction of it each time, and has a bound: this ends.
    chosen = choose_in_turn(groups, {}, scores)
    improving = len(groups) > 1
    while improving:
        before = chosen
        for group in groups:
            chosen = improve(group, chosen, outer, scores, total)
        improving = chosen is not before
    return chosen
