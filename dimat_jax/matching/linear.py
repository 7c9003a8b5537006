"""Linear assignment on the host: the only place where a solver is called."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

TIE_BREAK = 1e-9
"""Relative weight of the preference for order: below float32's resolution, above float64's."""


def assign_units(
    scores: Float[np.ndarray, "*outer units units"],
) -> Int[np.ndarray, "*outer units"]:
    """Solves linear assignments, maximising.

    Among equal scores units keep their order, so that the identity wins where it can: dead units,
    whose scores are all 0, are matched in index order.

    Args:
      scores: Score of each unit of the target (rows) with each one of the source.

    Returns:
      For each unit of the target its unit of the source.
    """
    # A preference for small moves, smaller than any real difference of scores: among units whose
    # scores are equal, as those of dead ones are, the one of the same index wins.
    units = scores.shape[-1]
    distance = np.square(np.subtract.outer(np.arange(units), np.arange(units)) / units)
    assigned = []
    for table in scores.reshape(-1, units, units):
        preference = TIE_BREAK * np.abs(table).max() * distance
        assigned.append(linear_sum_assignment(table - preference, maximize=True)[1])
    return np.stack(assigned).astype(np.int32).reshape(scores.shape[:-1])


def best_total(scores: Float[np.ndarray, "*outer units units"]) -> Float[np.ndarray, "*outer"]:
    """The largest total that a permutation reaches."""
    chosen = np.take_along_axis(scores, assign_units(scores)[..., None], -1)
    return np.asarray(chosen.sum((-2, -1)))
