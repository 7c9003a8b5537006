"""What each primitive does to the axes of what it reads: one short function a primitive.

A rule takes the equation and the axes of its inputs, unifies, refines or freezes them, and returns
the axes of its outputs. It is sound if, whatever permutations of the remaining free atoms reorder
the inputs, the primitive's outputs are reordered as their axes say.

To add a primitive, write one function and decorate it with ``@rule("its_name")``, in the file of
its family or anywhere else (`dimat_jax.symmetries.rule`). Primitives are matched by name, since
they move between modules from one JAX release to the next. Those that hold jaxprs (jit, scan, ...)
are walked in `dimat_jax.symmetries.walk`.
"""

from dimat_jax.symmetries.rules import (
    elementwise,
    indexing,
    matrices,
    reductions,
    segments,
    shapes,
)
from dimat_jax.symmetries.rules.contractions import Contraction, Kind, contractions
from dimat_jax.symmetries.rules.elementwise import ELEMENTWISE
from dimat_jax.symmetries.rules.indexing import SCATTER
from dimat_jax.symmetries.rules.table import RULES, Equation, freeze_everything

__all__ = [
    "ELEMENTWISE",
    "RULES",
    "SCATTER",
    "Contraction",
    "Equation",
    "Kind",
    "contractions",
    "elementwise",
    "freeze_everything",
    "indexing",
    "matrices",
    "reductions",
    "segments",
    "shapes",
]
