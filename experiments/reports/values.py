"""Numbers of several seeds as they stand in tables, and how two of them go together."""

from collections.abc import Sequence

import numpy as np

from dimat_jax.report.leads import Lead
from dimat_jax.report.tables import EMPTY


def ahead(found: Lead | None) -> str:
    """A lead in points with its interval; in bold where that has no 0 in it; a dash for none."""
    if found is None:
        return EMPTY
    if found.interval is None:
        return f"{100 * found.mean:+.1f}"
    low, high = found.interval
    text = f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"**{text}**" if sure(found) else text


def sure(found: Lead | None) -> bool:
    """Whether the interval of a lead has no 0 in it."""
    return bool(found and found.interval and found.interval[0] * found.interval[1] > 0)


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation; the mean alone of one value; a dash where there is none."""
    if not values:
        return EMPTY
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's, of the two columns of ``[pairs, 2]``, -1 to 1; NaN where one is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(pairs, axis=0)
    if (np.ptp(ranks, axis=0) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])
