"""Walks a function's jaxpr and finds its permutation groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from dimat_jax.jaxprs import called, scan_of
from dimat_jax.symmetries.axes import (
    Atom,
    Axis,
    Sum,
    atoms,
    axis_size,
    free_axis,
    frozen_axis,
    resolve,
    segment_size,
)
from dimat_jax.symmetries.groups import Frozen, Group, Place, Site, Symmetries, path_name
from dimat_jax.symmetries.reasons import REPORTED, Cause, Reason
from dimat_jax.symmetries.slices import PerSlice, blocks, settle
from dimat_jax.symmetries.varying import outer_atoms
from dimat_jax.symmetries.walk import Record, Tensor, freeze_all, var_shape, walk
from dimat_jax.types import Model


class Analysis(NamedTuple):
    """A function's jaxpr, dead code removed, and what was found in it.

    Attributes:
      jaxpr: reads the used leaves of ``(variables, *inputs)`` only.
      used: for each leaf of ``(variables, *inputs)``, whether it is read.
      leaves: path → axes of the variables' leaves that are read, in the order of reading.
      record: what the walk saw.
      per_slice: the atoms that stand for different permutations in different slices.
    """

    jaxpr: ClosedJaxpr
    used: list[bool]
    leaves: dict[str, Tensor]
    record: Record
    per_slice: PerSlice


def find_symmetries(
    model_or_function: Model | Callable[..., Any], variables: Any, *inputs: Any
) -> Symmetries:
    """Finds the permutation symmetries of a model or of any JAX function.

    The function is traced once with abstract values; nothing is computed. Whatever permutations of
    the groups are applied to the variables, the function's outputs stay what they are. The groups
    may be smaller than they could be where `Symmetries.notes` says so; they are never wrong.

    Args:
      model_or_function: a `Model`, of whose evaluation logits the symmetries are found; or a
        function ``f(variables, *inputs)`` from any library, all of whose outputs must stay as they
        are.
      variables: the pytree to permute; leaves may be `jax.ShapeDtypeStruct`.
      *inputs: example inputs, any pytrees; leaves may be `jax.ShapeDtypeStruct`. Only shapes and
        dtypes matter, and the batch size does not.

    Returns:
      The groups.

    Raises:
      TypeError: for variables that hold functions, and what tracing the function raises if it does
        not accept these arguments.
      ValueError: for two leaves of the same path, as of ``{"a": {"b": x}, "a/b": y}``.
    """
    return symmetries_of(analyse(model_or_function, variables, *inputs))


def as_function(model_or_function: Model | Callable[..., Any]) -> Callable[..., Any]:
    """A model's evaluation logits as a function ``f(variables, *inputs)``; functions unchanged."""
    if not isinstance(model_or_function, Model):
        return model_or_function
    apply: Callable[..., Any] = model_or_function.apply
    return lambda variables, *inputs: apply(variables, *inputs)[0]


def analyse(
    model_or_function: Model | Callable[..., Any], variables: Any, *inputs: Any
) -> Analysis:
    """Traces the function, removes dead code and walks what is left."""
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    paths = [path_name(path) for path, _ in flat]
    _check_leaves(paths, [leaf for _, leaf in flat])
    closed = jax.make_jaxpr(as_function(model_or_function))(variables, *inputs)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    closed = ClosedJaxpr(jaxpr, closed.consts)
    arguments: list[Tensor] = []
    leaves: dict[int, str] = {}
    for index, var in zip(np.flatnonzero(used), jaxpr.invars, strict=True):
        if index < len(paths):
            leaves[len(arguments)] = paths[index]
            arguments.append(Tensor(tuple(map(free_axis, var_shape(var)))))
        else:
            axes = tuple(frozen_axis(size, Cause(Reason.INPUT)) for size in var_shape(var))
            arguments.append(Tensor(axes, varies=True))
    record = Record([tensor.axes for tensor in arguments])
    outputs = walk(record, closed, arguments)
    for output in outputs:
        freeze_all(output.axes, Cause(Reason.OUTPUT))
    read = {atom for touched in record.read for atom in atoms(((touched,),))}
    in_order = {
        leaves[i]: arguments[i]
        for i in _reading_order(jaxpr)
        if i in leaves and any(atom in read for axis in arguments[i].axes for atom in atoms(axis))
    }
    per_slice = settle(record.slices, record.carried)
    return Analysis(closed, used, in_order, record, per_slice)


def _check_leaves(paths: list[str], leaves: list[Any]) -> None:
    """Two leaves of one name could not be told apart; what is no array cannot be traced."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"Two leaves of the variables have the path {twice!r}; rename one.")
    for path, leaf in zip(paths, leaves, strict=True):
        if callable(leaf):
            raise TypeError(
                f"The leaf {path!r} of the variables is a function. Of an Equinox module, pass the "
                f"arrays: `arrays, static = eqx.partition(module, eqx.is_array)`, and a function "
                f"that calls `eqx.combine(arrays, static)`."
            )


def _reading_order(jaxpr: Jaxpr) -> list[int]:
    """The indices of the inputs, in the order in which the equations read them."""
    position = {var: i for i, var in enumerate(jaxpr.invars)}
    order: dict[int, None] = {}
    for eqn in jaxpr.eqns:
        inner = called(eqn) or (scan_of(eqn).body if eqn.primitive.name == "scan" else None)
        operands = [eqn.invars[i] for i in _reading_order(inner.jaxpr)] if inner else []
        for var in (*operands, *eqn.invars):
            if not isinstance(var, Literal) and var in position:
                order[position[var]] = None
    return [*order, *(i for i in range(len(position)) if i not in order)]


# The groups -------------------------------------------------------------------------------------


def symmetries_of(analysis: Analysis) -> Symmetries:
    """What stayed free, as named groups."""
    standing = _standing(analysis)
    names = group_names(analysis)
    outer = _outer(analysis, standing)
    positions = _position_names(standing, outer)
    sites: dict[Atom, list[Site]] = {atom: [] for atom in names}
    for path, atom, place, within in standing:
        if atom in names:
            around = tuple(_beside(o, path, place, within, standing) for o in outer[atom])
            sites[atom].append(Site(path, *place, around, within))
    every_name = {**names, **positions}
    groups = {
        names[atom]: Group(atom.size, tuple(found), tuple(every_name[o] for o in outer[atom]))
        for atom, found in sites.items()
    }
    frozen = tuple(
        Frozen(path, place.axis, atom.size, atom.frozen)
        for path, atom, place, _ in standing
        if atom.frozen
    )
    sizes = {name: atom.size for atom, name in positions.items()}
    carrying = {site.path for found in sites.values() for site in found}
    shapes = {
        path: tuple(map(axis_size, tensor.axes))
        for path, tensor in analysis.leaves.items()
        if path in carrying
    }
    return Symmetries(groups, sizes, frozen, _notes(analysis, frozen), shapes)


def position_names(analysis: Analysis) -> dict[Atom, str]:
    """The frozen atoms along which groups vary, with their names in `Symmetries.positions`."""
    standing = _standing(analysis)
    return _position_names(standing, _outer(analysis, standing))


def _outer(analysis: Analysis, standing: list[Standing]) -> dict[Atom, list[Atom]]:
    order = {found.atom: i for i, found in reversed(list(enumerate(standing)))}
    carried = (b for axes in analysis.record.carried for b, _ in blocks(axes, analysis.per_slice))
    return outer_atoms(carried, order)


def _position_names(standing: list[Standing], outer: dict[Atom, list[Atom]]) -> dict[Atom, str]:
    """Names for the frozen atoms along which groups vary, after the leaf where they stand first."""
    used = {o for company in outer.values() for o in company if o.frozen}
    names: dict[Atom, str] = {}
    begin: Counter[str] = Counter()
    for path, atom, place, _ in standing:
        if atom in used and atom not in names:
            name = f"{path}[{place.axis}]:fixed"
            names[atom] = f"{name}.{begin[name]}" if begin[name] else name
            begin[name] += 1
    return names


def _beside(
    atom: Atom, path: str, site: Place, within: tuple[Place, ...], standing: list[Standing]
) -> Place:
    """Where an atom along which the one at this site varies stands in the same part of the leaf."""

    def reaches(place: Place) -> bool:
        return place.segment[0] <= site.segment[0] and sum(site.segment) <= sum(place.segment)

    return next(
        place
        for other_path, other, place, limits in standing
        if other is atom
        and other_path == path
        and all(limit in within or limit.axis == site.axis for limit in limits)
        and all(reaches(p) for p in (place, *limits) if p.axis == site.axis)
    )


class Standing(NamedTuple):
    """An atom, where on which leaf it stands, and to what it is limited there."""

    path: str
    atom: Atom
    place: Place
    within: tuple[Place, ...] = ()


def _standing(analysis: Analysis) -> list[Standing]:
    """Every atom of the leaves with where it stands, in the order of reading."""
    found = []
    for path, tensor in analysis.leaves.items():
        parts = blocks(tensor.axes, analysis.per_slice)
        for dim, axis in enumerate(tensor.axes):
            here = [
                (atom, place, tuple(Place(i, (s, n), (1, n, 1)) for i, s, n in where))
                for block, where in parts
                for atom, place in places(dim, block[dim])
            ]
            pairs = [(atom, place) for atom, place, _ in here]
            if any(dim == i for i, _, _ in parts[0][1]):  # the axis that was cut, whole
                here = [(atom, place, ()) for atom, place in places(dim, axis)]
            for atom, place, within in here:
                everywhere = pairs.count((atom, place)) == len(parts)
                found.append(Standing(path, atom, place, () if everywhere else within))
    return list(dict.fromkeys(found))


def group_names(analysis: Analysis) -> dict[Atom, str]:
    """The free atoms of the leaves, named after the leaf they begin at.

    Where a leaf begins several, the axis is added, and the position on it if need be.
    """
    begin: dict[str, dict[Atom, int]] = {}
    seen: set[Atom] = set()
    for path, atom, place, _ in _standing(analysis):
        if not atom.frozen and atom.size > 1 and atom not in seen:
            seen.add(atom)
            begin.setdefault(path, {})[atom] = place.axis
    names = {}
    for path, axis_of in begin.items():
        axes = list(axis_of.values())
        for i, (atom, axis) in enumerate(axis_of.items()):
            several = f".{axes[:i].count(axis)}" if axes.count(axis) > 1 else ""
            names[atom] = path if len(axes) == 1 else f"{path}[{axis}{several}]"
    return names


def _notes(analysis: Analysis, frozen: Iterable[Frozen]) -> tuple[str, ...]:
    notes = [str(Cause(Reason.NO_RULE, name)) for name in analysis.record.without_rule]
    notes += [
        f"{part.path}, axis {part.axis}, is frozen by {part.cause}"
        for part in frozen
        if part.cause.reason in REPORTED
    ]
    return tuple(dict.fromkeys(notes))


def places(dim: int, axis: Axis, start: int = 0, after: int = 1) -> Iterator[tuple[Atom, Place]]:
    """The root atoms on an axis with the places where they stand, in order.

    Args:
      dim: which axis of the tensor it is.
      axis: what stands on it.
      start: where it starts, as a part of a longer axis.
      after: how many positions each of its own stands for, as an outer part of a product.
    """
    for segment in resolve(axis):
        length = segment_size(segment) * after
        for i, factor in enumerate(segment):
            before, inner = segment_size(segment[:i]), segment_size(segment[i + 1 :]) * after
            if isinstance(factor, Atom):
                yield factor, Place(dim, (start, length), (before, factor.size, inner))
            elif isinstance(factor, Sum):
                for k in range(before):
                    offset = start + k * factor.size * inner
                    yield from places(dim, factor.segments, offset, inner)
        start += length
