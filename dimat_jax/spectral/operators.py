"""A merge as a linear map, of units of a group or of whole networks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Int

from dimat_jax.symmetries import Symmetries, compose, invert, permute
from dimat_jax.symmetries.permutations import with_outer

Sparse = Any
"""A `scipy.sparse.csr_array`: type checkers know neither its indexing nor its shape."""

LinearOperator: Any = scipy.sparse.linalg.LinearOperator


class MergeOperator(NamedTuple):
    """One merge as a linear map: ``x_i ← Σ_s weights[i, s] x_j[moves[i, s]]``, j = sources[i, s].

    Attributes:
      sources: whom agent i hears in slot s; slot 0 is the agent itself.
      weights: π_ij of those; 0 in unused slots.
      moves: the permutation P_ij of the entries: units of a group, or parameters.
    """

    sources: Int[np.ndarray, "agents slots"]
    weights: Float[np.ndarray, "agents slots"]
    moves: Int[np.ndarray, "agents slots entries"]

    @property
    def shape(self) -> tuple[int, int]:
        """Agents, and entries of each."""
        return self.moves.shape[0], self.moves.shape[2]


def pairs_of_frames(
    symmetries: Symmetries, sources: Int[np.ndarray, "agents slots"], frames: Mapping[str, Any]
) -> list[dict[str, np.ndarray]]:
    """The alignments of pairs that frames amount to: P_ij = Q_i⁻¹ Q_j.

    Args:
      symmetries: the model's permutation groups.
      sources: ``[agents, slots]``, slot 0 the agent itself.
      frames: Q, group name → int32 ``[agents, *outer, size]``, each agent into one frame of all.

    Returns:
      For each slot after the agent's own: group name → int32 ``[agents, *outer, size]``, each P.
    """
    frames = {name: np.asarray(p) for name, p in frames.items()}
    own = [
        with_outer(symmetries, {n: p[i] for n, p in frames.items()}) for i in range(len(sources))
    ]
    back = [invert(q) for q in own]
    return [
        _stacked([compose(own[j], back[i]) for i, j in enumerate(of_slot)])
        for of_slot in sources.T[1:].tolist()
    ]


def of_groups(
    symmetries: Symmetries,
    sources: Int[np.ndarray, "agents slots"],
    weights: Float[np.ndarray, "agents slots"],
    permutations: Sequence[Mapping[str, Any]],
) -> dict[str, MergeOperator]:
    """A merge's operator on each permutation group; of one that varies along others on all of it.

    Args:
      symmetries: the model's permutation groups.
      sources: ``[agents, slots]``, slot 0 the agent itself, as `topology.neighbor_slots` has it.
      weights: π_ij of those, ``[agents, slots]``.
      permutations: for each slot after the agent's own the alignment of that source to the agent,
        group name → int32 ``[agents, *outer, size]``, as a merge uses it; none where nothing is
        aligned.

    Returns:
      Group name → operator, whose entries are a group's units, outermost first.

    Raises:
      ValueError: for permutations of another number of slots.
    """
    _check_slots(sources, weights, permutations)
    sizes = {**symmetries.positions, **{n: g.size for n, g in symmetries.groups.items()}}
    found = {}
    for name, group in symmetries.groups.items():
        shape = (*(sizes[outer] for outer in group.outer), group.size)
        # What stands at [h, k] was at [p_outer[h], p[h, k]].
        grid = np.ogrid[tuple(slice(size) for size in (len(sources), *shape))]
        units = math.prod(shape)
        moves = [np.broadcast_to(np.arange(units), (len(sources), units))]
        for of_slot in permutations or [{}] * (sources.shape[1] - 1):
            at = [
                np.asarray(of_slot[axis])[_rows(symmetries, axis, grid, group.outer)]
                if axis in of_slot
                else index
                for axis, index in zip((*group.outer, name), grid[1:], strict=True)
            ]
            whole = [np.broadcast_to(index, (len(sources), *shape)) for index in at]
            moves.append(np.ravel_multi_index(whole, shape).reshape(len(sources), -1))
        found[name] = MergeOperator(sources, weights, np.stack(moves, 1))
    return found


def _rows(
    symmetries: Symmetries, name: str, grid: Sequence[np.ndarray], outer: tuple[str, ...]
) -> tuple[np.ndarray, ...]:
    """Where a group's permutation is read for each unit of a group that varies along it."""
    along = dict(zip(outer, grid[1:-1], strict=True))
    group = symmetries.groups[name]
    return (grid[0], *(along[axis] for axis in group.outer), along.get(name, grid[-1]))


def of_parameters(
    symmetries: Symmetries,
    sources: Int[np.ndarray, "agents slots"],
    weights: Float[np.ndarray, "agents slots"],
    permutations: Sequence[Mapping[str, Any]],
    parameters: Any,
) -> MergeOperator:
    """A merge's operator on all parameters of a network.

    Args:
      symmetries: the model's permutation groups.
      sources: as in `of_groups`, and so are `weights` and `permutations`.
      weights: ``[agents, slots]``.
      permutations: for each slot after the agent's own; none where nothing is aligned.
      parameters: one agent's, or their shapes: the pytree that the groups were found in, or a part
        of it that has all of their leaves.

    Returns:
      The operator. Its entries are the parameters, leaf after leaf.

    Raises:
      ValueError: for permutations of another number of slots, or such as `permute` refuses.
    """
    _check_slots(sources, weights, permutations)
    leaves, structure = jax.tree.flatten(parameters)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])
    numbered = structure.unflatten(
        [
            np.arange(end - np.prod(leaf.shape), end, dtype=np.int32).reshape(leaf.shape)
            for leaf, end in zip(leaves, ends, strict=True)
        ]
    )

    @jax.jit
    @jax.vmap
    def move(of_agent: Any) -> Any:
        moved = permute(symmetries, of_agent, numbered)
        return jax.numpy.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])

    own = np.broadcast_to(np.arange(ends[-1], dtype=np.int32), (len(sources), ends[-1]))
    others = [np.asarray(move(of_slot)) for of_slot in permutations]
    return MergeOperator(
        sources, weights, np.stack([own, *(others or [own] * (sources.shape[1] - 1))], 1)
    )


def _check_slots(sources: Any, weights: Any, permutations: Sequence[Any]) -> None:
    slots = sources.shape[1] - 1
    if sources.shape != weights.shape:
        raise ValueError(f"weights must be as sources, {sources.shape}, not {weights.shape}.")
    if permutations and len(permutations) != slots:
        raise ValueError(
            f"There must be permutations of each of the {slots} slots after the agent's own, not "
            f"of {len(permutations)}: those of frames go through pairs_of_frames."
        )


def _stacked(permutations: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(p[name]) for p in permutations]) for name in permutations[0]}


def matrix_of(operator: MergeOperator) -> Sparse:
    """W as a sparse matrix over agents × entries, agents outermost."""
    agents, entries = operator.shape
    columns = operator.sources[:, :, None].astype(np.int64) * entries + operator.moves
    rows = np.broadcast_to(
        np.arange(agents)[:, None, None] * entries + np.arange(entries), columns.shape
    )
    data = np.broadcast_to(operator.weights[:, :, None], columns.shape)
    used = data != 0
    size = agents * entries
    return scipy.sparse.coo_array((data[used], (rows[used], columns[used])), (size, size)).tocsr()


def linear_map(operator: MergeOperator) -> Any:
    """W without its matrix, a SciPy `LinearOperator`: what a merge does, and its transpose."""
    agents, entries = operator.shape
    slots = [
        (i, int(j), weight, moves)
        for i in range(agents)
        for j, weight, moves in zip(
            operator.sources[i], operator.weights[i], operator.moves[i], strict=True
        )
        if weight
    ]

    def merge(x: np.ndarray) -> np.ndarray:
        given, mixed = x.reshape(agents, entries), np.zeros((agents, entries))
        for i, j, weight, moves in slots:
            mixed[i] += weight * given[j][moves]
        return mixed.ravel()

    def transposed(x: np.ndarray) -> np.ndarray:
        given, mixed = x.reshape(agents, entries), np.zeros((agents, entries))
        for i, j, weight, moves in slots:
            mixed[j][moves] += weight * given[i]  # no entry twice: it is a permutation
        return mixed.ravel()

    size = agents * entries
    return LinearOperator((size, size), matvec=merge, rmatvec=transposed, dtype=np.float64)
