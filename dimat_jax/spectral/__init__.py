"""The operator of one merge: what agents can agree on, and how fast they get there.

A merge ``x_i ← Σ_j π_ij P_ij x_j`` is linear in what all agents hold. Its operator W = [π_ij P_ij]
is a matrix over agents × units for one permutation group, and over agents × parameters for whole
networks. If the alignments are cycle-consistent (P_ij = Q_i⁻¹ Q_j for some frames Q) it is similar
to Π ⊗ I: its spectrum is that of Π, each value once for every entry. If they are not, agents agree
on less: the space that W leaves as it is shrinks, and what leaves it fades at a rate of its own.

`operators` makes it from graphs and permutations, `measures` takes it apart. On the host, in
float64, by SciPy's solvers. May import `topology` and `symmetries`.
"""

from dimat_jax.spectral.measures import Inconsistency as Inconsistency
from dimat_jax.spectral.measures import Spectrum as Spectrum
from dimat_jax.spectral.measures import cycle_inconsistency as cycle_inconsistency
from dimat_jax.spectral.measures import effective_neighbors as effective_neighbors
from dimat_jax.spectral.measures import fixed_space as fixed_space
from dimat_jax.spectral.measures import spectrum as spectrum
from dimat_jax.spectral.measures import stochasticity_error as stochasticity_error
from dimat_jax.spectral.operators import MergeOperator as MergeOperator
from dimat_jax.spectral.operators import linear_map as linear_map
from dimat_jax.spectral.operators import matrix_of as matrix_of
from dimat_jax.spectral.operators import of_groups as of_groups
from dimat_jax.spectral.operators import of_parameters as of_parameters
from dimat_jax.spectral.operators import pairs_of_frames as pairs_of_frames
