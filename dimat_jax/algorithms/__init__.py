"""The methods by name. Adding one: add a file, and its name here."""

from dimat_jax.algorithms.base import Algorithm, Merged, MergeRound
from dimat_jax.algorithms.merging import dimat, merging, wa

METHODS: dict[str, Algorithm] = {"dimat": dimat, "wa": wa}
"""What ``--methods`` takes."""

__all__ = ["METHODS", "Algorithm", "Merged", "MergeRound", "dimat", "merging", "wa"]
