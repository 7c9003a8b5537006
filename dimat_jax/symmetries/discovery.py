"""Names what stayed free in a function's walk: its permutation groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dimat_jax.jaxprs import source_line
from dimat_jax.symmetries.analysis import Analysis, analyse
from dimat_jax.symmetries.axes import Atom, Axis, Sum, axis_size, resolve, segment_size
from dimat_jax.symmetries.groups import Frozen, Group, Place, Site, Symmetries
from dimat_jax.symmetries.reasons import REPORTED, Cause
from dimat_jax.symmetries.slices import blocks
from dimat_jax.symmetries.varying import outer_atoms
from dimat_jax.types import Model


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
      ValueError: for a function that does not take these arguments; for variables that hold
        functions, or two leaves of the same path, as of ``{"a": {"b": x}, "a/b": y}``.
    """
    return symmetries_of(analyse(model_or_function, variables, *inputs))


def symmetries_of(analysis: Analysis) -> Symmetries:
    """What stayed free, as named groups."""
    # Every free atom that stands on a leaf is a group; wherever it stands is a site of it.
    standing = _standing(analysis)
    names = group_names(analysis)
    outer = _outer(analysis, standing)
    positions = _position_names(standing, outer)
    sites: dict[Atom, list[Site]] = {atom: [] for atom in names}
    for path, atom, place, within in standing:
        if atom in names:
            around = tuple(_place_of(o, path, place, within, standing) for o in outer[atom])
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


def _outer(analysis: Analysis, standing: list[LeafAtom]) -> dict[Atom, list[Atom]]:
    order = {found.atom: i for i, found in reversed(list(enumerate(standing)))}
    carried = (b for axes in analysis.record.carried for b, _ in blocks(axes, analysis.per_slice))
    return outer_atoms(carried, order)


def _position_names(standing: list[LeafAtom], outer: dict[Atom, list[Atom]]) -> dict[Atom, str]:
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


def _place_of(
    atom: Atom, path: str, site: Place, within: tuple[Place, ...], standing: list[LeafAtom]
) -> Place:
    """Where an atom along which the one at this site varies stands in the same part of the leaf."""

    # On the site's own axis the outer group must stand on all of the site's segment, and what
    # limits it to slices must limit the site as well.
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


class LeafAtom(NamedTuple):
    """An atom, where on which leaf it stands, and to what it is limited there."""

    path: str
    atom: Atom
    place: Place
    within: tuple[Place, ...] = ()


def _standing(analysis: Analysis) -> list[LeafAtom]:
    """Every atom of the leaves with where it stands, in the order of reading."""
    found = []
    for path, tensor in analysis.leaves.items():
        # A fused kernel [d, i0 | i1 | i2, u] has three parts, in which u is another atom each time.
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
                # The same atom at the same place in every slice: no need to name slices.
                everywhere = pairs.count((atom, place)) == len(parts)
                found.append(LeafAtom(path, atom, place, () if everywhere else within))
    return list(dict.fromkeys(found))


def group_names(analysis: Analysis) -> dict[Atom, str]:
    """The free atoms of the leaves, named after the leaf they begin at.

    Where a leaf begins several, the axis is added, and the position on it if need be.
    """
    # The path alone if the leaf begins one group; "kernel[1]" and "kernel[2]" for heads and size on
    # axes of their own; "kernel[1.0]" and "kernel[1.1]" where both stand on axis 1.
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
    """Each cause once, with the leaves behind it, and the first equation that met it."""
    behind: dict[Cause, dict[str, None]] = {}
    for part in frozen:
        if part.cause.reason in REPORTED:
            behind.setdefault(part.cause, {})[f"{part.path}[{part.axis}]"] = None
    notes = []
    for cause, leaves in behind.items():
        named = ", ".join(list(leaves)[:MAX_NOTED])
        if len(leaves) > MAX_NOTED:
            named += f" and {len(leaves) - MAX_NOTED} more"
        equations = analysis.record.first.get(cause, ())
        line = next(filter(None, map(source_line, equations)), None)
        where = f", first in {equations[0].primitive.name!r}" if equations else ""
        notes.append(f"{cause}: frozen are {named}{where}" + (f" at {line}" if line else ""))
    return tuple(notes)


MAX_NOTED = 5
"""How many leaves a note names."""


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
                # y·(c | d) of 3·(16 | 32) is c | d | c | d | c | d: c at 0, 48 and 96, each time a
                # segment of its own.
                for k in range(before):
                    offset = start + k * factor.size * inner
                    yield from places(dim, factor.segments, offset, inner)
        start += length
