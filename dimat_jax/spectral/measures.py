"""What a merge's operator does: what it leaves as it is, and how fast the rest fades."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
from jaxtyping import Int

from dimat_jax.registry import check_number
from dimat_jax.spectral.operators import LinearOperator, MergeOperator, Sparse, matrix_of

DENSE = 128
"""Components of at most so many entries are taken apart whole; larger ones by Lanczos, Arnoldi."""

AT_ONCE = 2**20
"""Entries of dense matrices that are taken apart at once."""

COLUMNS = 1_024
"""Of a power of W so many columns are held at once."""

NEAREST = 6
"""Of a large operator so many singular values, and eigenvalues, are found."""

ROUNDING = 1e-7
"""Nearer to 0 than this a singular value or eigenvalue is 0, as a sum of weights may miss it."""


class Spectrum(NamedTuple):
    """How an operator acts, see `spectrum`.

    Attributes:
      fixed_dimension: of the space that it leaves as it is: on what agents can agree.
      singular_value: the largest on the orthogonal complement of that space: at most so much of a
        disagreement is left after a merge.
      eigenvalue: the largest modulus there: so much is left of it per merge after many. W is not
        normal where P_ji ≠ P_ij⁻¹, and the two differ.
    """

    fixed_dimension: int
    singular_value: float
    eigenvalue: float

    @property
    def gap(self) -> float:
        """The spectral gap, ``1 − singular_value``, as `Topology.spectral_gap` has it."""
        return 1 - self.singular_value


class Inconsistency(NamedTuple):
    """The share of units that come back elsewhere, see `cycle_inconsistency`.

    Attributes:
      there_and_back: over pairs of agents that hear each other: P_ij and then P_ji.
      cycles: over a basis of the graph's cycles; 0 for a tree.
      number: how many cycles that basis has.
    """

    there_and_back: float
    cycles: float
    number: int


def stochasticity_error(operator: MergeOperator) -> float:
    """How far W is from doubly stochastic: the largest distance of a row's or column's sum from 1.

    About 0 where Π is doubly stochastic and every P_ij a permutation.
    """
    matrix = matrix_of(operator)
    return max(float(np.abs(matrix.sum(axis) - 1).max()) for axis in (0, 1))


def fixed_space(operator: MergeOperator) -> Int[np.ndarray, "agents entries"]:
    """On what agents can agree: the space that W leaves as it is.

    W is doubly stochastic, so that ``W x = x`` for exactly those x that are constant on each
    connected component of its graph (Perron–Frobenius: each component is a Markov chain that comes
    back to everywhere).

    Returns:
      The component of each entry of each agent, from 0. Their number is the space's dimension:
      as many as entries where alignments are cycle-consistent and the graph is connected.

    Raises:
      ValueError: if W is not doubly stochastic.
    """
    _check_doubly_stochastic(operator)
    _, labels = scipy.sparse.csgraph.connected_components(matrix_of(operator), directed=False)
    return labels.reshape(operator.shape)


def spectrum(operator: MergeOperator) -> Spectrum:
    """The fixed space, and the slowest of what is not in it.

    Raises:
      ValueError: if W is not doubly stochastic.
    """
    labels = fixed_space(operator).ravel()
    sizes = np.bincount(labels)
    order, starts = np.argsort(labels, kind="stable"), np.cumsum(sizes) - sizes
    blocks = matrix_of(operator)[order][:, order]  # a component beside the other: block-diagonal
    values, moduli = [0.0], [0.0]
    for size in np.unique(sizes).tolist():
        of_size = _distinct(blocks, starts[sizes == size], size)
        at_once = max(1, AT_ONCE // size**2) if size <= DENSE else 1
        for begin in range(0, len(of_size), at_once):
            found = _of_blocks(blocks, of_size[begin : begin + at_once], size)
            values.append(found[0])
            moduli.append(found[1])
    return Spectrum(len(sizes), _rounded(max(values)), _rounded(max(moduli)))


def _distinct(
    matrix: Sparse, starts: Int[np.ndarray, " blocks"], size: int
) -> Int[np.ndarray, " distinct"]:
    """The blocks of one size without those that others repeat, as each place of a kernel does.

    Two are the same where products with random vectors on both sides are.
    """
    left, right = np.random.default_rng(0).standard_normal((2, size, 2))
    rows = starts[:, None] + np.arange(size)
    spread = np.zeros((matrix.shape[0], 2))
    spread[rows] = right
    products = (matrix[rows.ravel()] @ spread).reshape(len(starts), size, 2)
    marks = np.einsum("bsk,sk->bk", products, left).round(9)
    return starts[np.unique(marks, axis=0, return_index=True)[1]]


def _of_blocks(
    matrix: Sparse, starts: Int[np.ndarray, " blocks"], size: int
) -> tuple[float, float]:
    """The largest singular value and eigenvalue modulus of blocks of one size, beside their mean.

    Each is a doubly stochastic matrix that leaves nothing but the mean as it is.
    """
    if size > DENSE:
        (start,) = starts.tolist()
        return _of_large_block(matrix[start : start + size, start : start + size])
    rows = (starts[:, None] + np.arange(size)).ravel()
    chosen = matrix[rows].tocoo()
    dense = np.full((len(rows), size), -1 / size)
    dense[chosen.row, chosen.col - np.repeat(starts, size)[chosen.row]] += chosen.data
    dense = dense.reshape(len(starts), size, size)
    values = np.linalg.norm(dense, 2, axis=(1, 2))
    return float(values.max()), float(np.abs(np.linalg.eigvals(dense)).max())


def _of_large_block(block: Sparse) -> tuple[float, float]:
    """The same of one that is too large for dense algebra, by Lanczos and Arnoldi."""
    transposed, size = block.T.tocsr(), block.shape[0]

    def deviation(of: Sparse) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: of @ x.ravel() - x.mean()

    rest = LinearOperator(
        block.shape, matvec=deviation(block), rmatvec=deviation(transposed), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(size)
    # The largest alone is missed where others are near: they lie on circles.
    how = dict(k=NEAREST, ncv=8 * NEAREST, v0=start - start.mean(), tol=1e-4)
    values = scipy.sparse.linalg.svds(rest, return_singular_vectors=False, **how)
    moduli = np.abs(scipy.sparse.linalg.eigs(rest, return_eigenvectors=False, **how))
    return float(values.max()), float(moduli.max())


def _rounded(value: Any) -> float:
    return 0.0 if value < ROUNDING else min(float(value), 1.0)


def _check_doubly_stochastic(operator: MergeOperator) -> None:
    if (error := stochasticity_error(operator)) > 1e-6:
        raise ValueError(
            f"The operator is not doubly stochastic: a row or column sums to 1 ± {error:.3g}. It "
            "needs weights whose rows and columns sum to 1, and permutations."
        )


def effective_neighbors(operator: MergeOperator, decay: float = 0.9) -> float:
    """The effective number of neighbours (Vogels et al. 2022, arXiv 2206.03093).

    Agents that average noise, ``z ← W (√γ z + ξ)``, hold less of it than one alone with the same
    decay γ: this is by what factor its variance is smaller. 1 for agents alone, up to their
    number for exact averages; γ is how much of what was learned before still counts.

    Args:
      operator: of one merge.
      decay: γ, at least 0 and below 1.

    Returns:
      ``1/(1 − γ) / (Σ_t γ^(t−1) ‖Wᵗ‖²_F / n)``, n the rows of W; for a symmetric W the paper's sum
      over eigenvalues.

    Raises:
      ValueError: for a decay outside its range.
    """
    check_number("decay", decay)
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, not {decay}.")
    matrix = matrix_of(operator)
    size, variance, held = matrix.shape[0], 0.0, 0.0
    powers = 1 if decay == 0 else int(np.ceil(np.log(1e-4 * (1 - decay)) / np.log(decay)))
    for start in range(0, size, COLUMNS):
        columns = np.eye(size, min(COLUMNS, size - start), -start)
        for power in range(powers):
            columns = matrix @ columns
            held = float(np.square(columns).sum())
            variance += decay**power * held
        # Later powers hold as much: what fades has faded, and weighs next to nothing besides.
        variance += decay**powers / (1 - decay) * held
    return 1 / (1 - decay) / (variance / size)


def cycle_inconsistency(operator: MergeOperator) -> Inconsistency:
    """How far alignments are from cycle-consistent: what composing them around cycles moves.

    On an edge along which only one of the two hears the other, its inverse is the way back.
    """
    agents, entries = operator.shape
    moves = {
        (i, int(j)): operator.moves[i, slot]
        for i in range(agents)
        for slot, j in enumerate(operator.sources[i])
        if slot and operator.weights[i, slot]
    }
    both = [(i, j) for i, j in moves if i < j and (j, i) in moves]
    for i, j in list(moves):
        moves.setdefault((j, i), np.argsort(moves[i, j]))

    def moved(cycle: Sequence[int]) -> float:
        # x_a ← P_ab x_b ← P_ab P_bc x_c: entry k is x_c[p_bc[p_ab[k]]].
        steps = [moves[pair] for pair in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
        around = functools.reduce(lambda before, step: step[before], steps)
        return float(np.mean(around != np.arange(entries)))

    cycles = nx.cycle_basis(nx.Graph([pair for pair in moves if pair[0] != pair[1]]))
    return Inconsistency(
        float(np.mean([moved(pair) for pair in both])) if both else 0.0,
        float(np.mean([moved(cycle) for cycle in cycles])) if cycles else 0.0,
        len(cycles),
    )
