"""Aligning two networks: activation matching and weight matching over any model's groups.

May import `symmetries` and what is before it.
"""

from dimat_jax.matching.activations import (
    Moments,
    combine_moments,
    cross_moments,
    match_activations,
    scores,
    warn_of_unread,
)
from dimat_jax.matching.assignment import assign
from dimat_jax.matching.universe import match_universe, universe_objective
from dimat_jax.matching.weights import match_weights, matching_objective

__all__ = [
    "Moments",
    "assign",
    "combine_moments",
    "cross_moments",
    "match_activations",
    "match_universe",
    "match_weights",
    "matching_objective",
    "scores",
    "universe_objective",
    "warn_of_unread",
]
