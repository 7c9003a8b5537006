"""Reads a model's activations at its groups' read sites, by evaluating its jaxpr with taps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import Array

from dimat_jax.jaxprs import Path, bind, enter_or_bind, evaluate, scan_of
from dimat_jax.symmetries.axes import Atom, Axis, Factor, Segment, Sum, atoms, resolve, segment_size
from dimat_jax.symmetries.discovery import (
    Analysis,
    analyse,
    group_names,
    position_names,
    symmetries_of,
)
from dimat_jax.symmetries.groups import Symmetries
from dimat_jax.symmetries.rules import Kind
from dimat_jax.symmetries.slices import PerSlice
from dimat_jax.symmetries.walk import Read, Tensor
from dimat_jax.types import Model

Tap = tuple[Path, int]
"""An equation, and which of its operands."""
Key = tuple[str, ...]


def read_activations(
    symmetries: Symmetries, model_or_function: Model | Callable[..., Any]
) -> Callable[..., dict[str, list[Array]]]:
    """Makes a function that returns each group's activations, without changes to the model.

    The returned function can be jitted, vmapped and sharded. See `read_sites` for what is read.

    Args:
      symmetries: the groups, as `find_symmetries` returns them for this function.
      model_or_function: the same function.

    Returns:
      ``(variables, *inputs) -> dict group name → list of [..., size]``, in network order, the last
      site last; the list of a group that is never read is empty. For a group that varies along an
      axis of fixed positions (scanned layers), that axis comes first: ``[*outer, ..., size]``; one
      that varies along another group has that group's axis just before its own.
    """
    sites = read_sites(symmetries, model_or_function)

    def read(variables: Any, *inputs: Any) -> dict[str, list[Array]]:
        found: dict[str, list[Array]] = {name: [] for name in symmetries.groups}
        for key, tensors in sites(variables, *inputs).items():
            for position, name in enumerate(key):
                found[name].extend(_move_last(x, key, position, symmetries) for x in tensors)
        return found

    return read


def _move_last(x: Array, key: Key, position: int, symmetries: Symmetries) -> Array:
    """Moves one group's axis last, after those of the groups that it varies along."""
    outer = [key.index(name) for name in symmetries.groups[key[position]].outer if name in key]
    axes = [i - len(key) for i in (*outer, position)]
    return jnp.moveaxis(x, axes, range(-len(axes), 0))


def read_sites(
    symmetries: Symmetries, model_or_function: Model | Callable[..., Any]
) -> Callable[..., dict[Key, list[Array]]]:
    """Makes a function that returns the tensors at read sites, by the groups they carry jointly.

    A read site is a tensor that depends on the inputs and carries a group's axis where it is
    contracted with a variable or with another activation. A group without such a site is read where
    it is summed or maximised over, else where a variable that carries it is contracted, else where
    something that carries it is read for another axis. One tensor is listed once, however often it
    is read. A concatenated axis gives each group its own slice. A tensor that carries a group on
    two axes (a Gram matrix) is no read site. Inside a scan, values are stacked over its steps,
    which come first; what is read inside a while loop or a branch of a conditional is not returned.

    Args:
      symmetries: the groups, as `find_symmetries` returns them for this function.
      model_or_function: the same function.

    Returns:
      ``(variables, *inputs) -> dict key → list of [..., size_1, size_2, ...]``. A key names all
      groups that the tensor carries, those that others vary along first, and their axes stand last
      in that order. Axes of fixed positions along which one of them varies come first.
    """

    def read(variables: Any, *inputs: Any) -> dict[Key, list[Array]]:
        analysis = analyse(model_or_function, variables, *inputs)
        _check(symmetries, symmetries_of(analysis))
        sites = _sites(symmetries, analysis)
        leaves = jax.tree.leaves((variables, *inputs))
        operands = [leaf for leaf, used in zip(leaves, analysis.used, strict=True) if used]
        wanted = {(site.read.path, site.read.operand) for site in sites}
        _, taps = _evaluate(analysis.jaxpr, operands, wanted)
        found: dict[Key, list[Array]] = {}
        for site in sites:
            value = taps[site.read.path, site.read.operand]
            for key, tensor in _extract(value, site.read.tensor, site, symmetries):
                found.setdefault(key, []).append(tensor)
        return found

    return read


def _check(given: Symmetries, found: Symmetries) -> None:
    for name, group in given.groups.items():
        if found.groups.get(name) != group:
            raise ValueError(
                f"The symmetries were found for another function or other variables: there is no "
                f"such group {name!r} in this one, whose groups are "
                f"{', '.join(found.groups) or 'none'}."
            )


# Which tensors are read -------------------------------------------------------------------------


class _Site(NamedTuple):
    """A tensor to tap, the names of its atoms, and the groups that it is read for.

    `names` are those of groups, `positions` those of the fixed positions along which groups vary.
    """

    read: Read
    names: dict[Atom, str]
    positions: dict[Atom, str]
    wanted: set[str]


def _sites(symmetries: Symmetries, analysis: Analysis) -> list[_Site]:
    """The read sites in network order: for each group those of the best kind that it has."""
    names = {a: name for a, name in group_names(analysis).items() if name in symmetries.groups}
    positions = position_names(analysis)
    best: dict[str, int] = {}
    candidates: dict[tuple[int, int], tuple[Read, set[str]]] = {}
    for read in analysis.record.reads:
        carried, mixed = _carried_and_mixed(read, names, analysis.per_slice)
        for kind, found in ((_kind(read), mixed), (_beside(read), carried - mixed)):
            for name in found:
                best[name] = min(kind, best.get(name, kind))
            _, wanted = candidates.setdefault((id(read.tensor), kind), (read, set()))
            wanted |= found
    chosen = [
        _Site(read, names, positions, {name for name in wanted if best[name] == kind})
        for (_, kind), (read, wanted) in candidates.items()
        if kind < NOT_READ
    ]
    return [site for site in chosen if site.wanted]


def _carried_and_mixed(
    read: Read, names: dict[Atom, str], per_slice: PerSlice
) -> tuple[set[str], set[str]]:
    """The groups that the tensor carries, and those whose positions are mixed.

    None if it carries one of them twice, or if it is the whole of something whose slices are
    permuted in different ways.
    """
    if any(atom in per_slice for axis in read.tensor.axes for atom in atoms(axis)):
        return set(), set()
    per_axis = [{names[a] for a in atoms(axis) if a in names} for axis in read.tensor.axes]
    carried = set().union(*per_axis)
    if sum(map(len, per_axis)) > len(carried):
        return set(), set()
    return carried, set().union(*(per_axis[dim] for dim in read.contraction.dims))


CONTRACTED, REDUCED, VARIABLE, CARRIED, NOT_READ = range(5)
"""Kinds of read sites, the best first."""


def _kind(read: Read) -> int:
    """For groups whose positions are mixed."""
    kind = read.contraction.kind
    if not read.tensor.varies:
        return VARIABLE if kind is Kind.PRODUCT else NOT_READ
    return {Kind.PRODUCT: CONTRACTED, Kind.REDUCTION: REDUCED}.get(kind, NOT_READ)


def _beside(read: Read) -> int:
    """For groups that the tensor carries besides."""
    return CARRIED if read.tensor.varies else NOT_READ


# From a tensor to [..., size_1, size_2, ...] ----------------------------------------------------


def _extract(
    value: Array, tensor: Tensor, site: _Site, symmetries: Symmetries
) -> Iterator[tuple[Key, Array]]:
    """The tensor's blocks: one a segment that carries a group that is read here."""
    stacked = value.ndim - len(tensor.axes)
    pieces: list[tuple[Array, list[Factor | None]]] = [(value, [None] * stacked)]
    for axis in tensor.axes:
        pieces = [
            (split, labels + more)
            for piece, labels in pieces
            for split, more in _split(piece, len(labels), axis, site.names | site.positions)
        ]
    order = list(symmetries.groups)
    for piece, labels in pieces:
        standing = {f: d for d, f in enumerate(labels) if isinstance(f, Atom)}
        dims = {site.names[f]: d for f, d in standing.items() if f in site.names}
        if not site.wanted & set(dims):
            continue
        key = tuple(sorted(dims, key=lambda n: (len(symmetries.groups[n].outer), order.index(n))))
        along = {outer for name in key for outer in symmetries.groups[name].outer}
        fixed = {site.positions[f]: d for f, d in standing.items() if f in site.positions}
        # Steps of a scan, which stand first as they are, come before positions on the tensor.
        first = [fixed[name] for name in symmetries.positions if name in along and name in fixed]
        last = [dims[name] for name in key]
        to = (*range(stacked, stacked + len(first)), *range(-len(last), 0))
        yield key, jnp.moveaxis(piece, (*first, *last), to)


def _split(
    x: Array, dim: int, axis: Axis, names: dict[Atom, str]
) -> Iterator[tuple[Array, list[Factor | None]]]:
    """Splits an axis that carries groups into segments and factors, with a label a new axis."""
    if not any(atom in names for atom in atoms(axis)):
        yield x, [None]
        return
    start = 0
    for segment in resolve(axis):
        stop = start + segment_size(segment)
        piece = lax.slice_in_dim(x, start, stop, axis=dim)
        segment = tuple(factor for factor in segment if factor.size > 1)
        sizes = [factor.size for factor in segment]
        piece = piece.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
        yield from _split_factors(piece, dim, segment, names)
        start = stop


def _split_factors(
    x: Array, dim: int, segment: Segment, names: dict[Atom, str]
) -> Iterator[tuple[Array, list[Factor | None]]]:
    if not segment:
        yield x, []
        return
    head = segment[0]
    firsts: Any = [(x, [head])]
    if isinstance(head, Sum):
        firsts = _split(x, dim, head.segments, names)
    for piece, labels in firsts:
        for rest, more in _split_factors(piece, dim + len(labels), segment[1:], names):
            yield rest, labels + more


# Evaluation with taps ---------------------------------------------------------------------------


def _evaluate(
    closed: ClosedJaxpr, inputs: Sequence[Any], wanted: set[Tap], path: Path = ()
) -> tuple[list[Any], dict[Tap, Array]]:
    """Evaluates a jaxpr and keeps the wanted operands."""
    taps: dict[Tap, Array] = {}
    holders = {to[:depth] for to, _ in wanted for depth in range(1, len(to))}

    def equation(path: Path, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        for position, operand in enumerate(operands):
            if (path, position) in wanted:
                taps[path, position] = jnp.asarray(operand)
        if path not in holders:
            return bind(eqn, operands)
        if eqn.primitive.name != "scan":
            return enter_or_bind(path, eqn, operands, equation)
        outputs, inside = _evaluate_scan(path, eqn, operands, wanted)
        taps.update(inside)
        return outputs

    return evaluate(closed, inputs, equation, path=path), taps


def _evaluate_scan(
    path: Path, eqn: JaxprEqn, operands: Sequence[Any], wanted: set[Tap]
) -> tuple[list[Any], dict[Tap, Array]]:
    """A scan whose body is evaluated with taps: they are stacked over its steps."""
    scan = scan_of(eqn)
    consts, first, inputs = scan.split(operands)

    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], Any]:
        outputs, taps = _evaluate(scan.body, [*consts, *carry, *inputs], wanted, path)
        return outputs[: len(carry)], (outputs[len(carry) :], taps)

    carry, (outputs, taps) = lax.scan(
        step, first, inputs, length=scan.length, reverse=scan.reverse, unroll=scan.unroll
    )
    return [*carry, *outputs], taps
