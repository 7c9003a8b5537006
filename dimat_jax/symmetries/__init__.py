"""The permutation symmetries of any JAX model, found from its jaxpr.

May import `jaxprs`, `registry` and `types`: it knows nothing of agents, graphs or training.
"""

from dimat_jax.symmetries.activations import read_activations, read_sites
from dimat_jax.symmetries.arguments import check_symmetries
from dimat_jax.symmetries.discovery import find_symmetries
from dimat_jax.symmetries.groups import Group, GroupKey, Place, Site, Symmetries
from dimat_jax.symmetries.permutations import (
    Permutations,
    compose,
    invert,
    permute,
    random_permutations,
)
from dimat_jax.symmetries.rules.table import rule
from dimat_jax.symmetries.verification import verify

__all__ = [
    "Group",
    "GroupKey",
    "Permutations",
    "Place",
    "Site",
    "Symmetries",
    "check_symmetries",
    "compose",
    "find_symmetries",
    "invert",
    "permute",
    "random_permutations",
    "read_activations",
    "read_sites",
    "rule",
    "verify",
]
