"""What both matchers can maximise."""

from typing import Literal, get_args

from dimat_jax.registry import choose

Cost = Literal["correlation", "covariance", "inner_product"]

CONSTANT = 1e-5
"""What deviates from its mean by less than this fraction of it is taken for constant."""


def check_cost(cost: str) -> None:
    """Raises a ValueError for an unknown cost."""
    choose("cost", cost, get_args(Cost))
