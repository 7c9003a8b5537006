"""Along what a group's permutation may vary: heads, scanned layers, the groups of a GroupNorm.

A group's permutation may differ from position to position of another axis where every tensor that
carries the group carries that axis too, once, and nothing mixes positions along it while the group
remains. The walk recorded what every tensor carries, and for products and look-ups what stays
aligned while positions are mixed.

An example: attention over x [5, 3] with 2 heads h of 4 units u, as tensors and their axes

    q kernel [3, 2, 4]             d, h, u        q = einsum("td,dhu->thu")   [5, 2, 4]   t, h, u
    k kernel [3, 2, 4]             d, h, u        k                           [5, 2, 4]   s, h, u
    scores = einsum("thu,shu->hts")               mixes u; what is aligned in it is  u, h (batch)

Every tensor that carries u carries h beside it, exactly once, and the product that sums over u has
h as a batch axis: in each head u may be permuted in its own way. So `outer_atoms` gives {u: [h]},
the group of u has permutations [2, 4], and the group of h, which moves whole heads, [2].

If a scale [4] with the axis u were multiplied to q, one tensor would carry u without h, and the
intersection of what stands beside u would be empty: one permutation for both heads. Likewise where
heads were mixed by a product over h that leaves u: it records u alone, as if it were a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dimat_jax.symmetries.axes import Atom, Axes, Segment, Sum, atoms, resolve


def outer_atoms(carried: Iterable[Axes], order: Mapping[Atom, int]) -> dict[Atom, list[Atom]]:
    """For each free atom the atoms along which its permutation may vary, outermost first.

    Args:
      carried: the axes of every tensor.
      order: the atoms that stand on leaves, free or frozen, in the order of reading. Of two atoms
        that could each vary along the other, the later one does.

    Returns:
      Free atom → atoms. What these vary along themselves is among them and stands before them.
    """
    outer: dict[Atom, set[Atom]] = {}
    # What stands beside an atom on every tensor: an intersection over all of them.
    for axes in dict.fromkeys(tuple(map(resolve, axes)) for axes in carried):
        for atom, company in _occurrences(axes):
            if atom in order and not atom.frozen and atom.size > 1:
                known = outer.get(atom)
                outer[atom] = company if known is None else known & company
    # Positions that are mixed, or on no leaf, are nothing to vary along.
    for atom, company in outer.items():
        company &= {o for o in order if o.size > 1 and not o.mixed and o is not atom}
    # Two atoms that stand beside each other everywhere: only the later one varies.
    for atom, company in outer.items():
        company -= {o for o in company if atom in outer.get(o, ()) and order[atom] < order[o]}
    while _drop_one_not_transitive(outer):
        pass

    def rank(atom: Atom) -> tuple[int, int]:
        return len(outer.get(atom, ())), order[atom]

    return {atom: sorted(company, key=rank) for atom, company in outer.items()}


def _drop_one_not_transitive(outer: dict[Atom, set[Atom]]) -> bool:
    """What varies along an atom must vary along all that the atom varies along."""
    for company in outer.values():
        for o in company:
            if not outer.get(o, set()) <= company:
                company.remove(o)
                return True
    return False


def _occurrences(axes: Axes) -> Iterator[tuple[Atom, set[Atom]]]:
    """Each atom on a tensor of resolved axes, with the atoms that stand beside it exactly once."""
    # All that stands on an axis, somewhere; and what every element of it has beside it, which is
    # nothing where the axis has several segments.
    everything = [list(atoms(axis)) for axis in axes]
    certain = [_direct(axis[0]) if len(axis) == 1 else [] for axis in axes]
    for i, axis in enumerate(axes):
        others = [atom for j, found in enumerate(everything) if j != i for atom in found]
        beside = [atom for j, found in enumerate(certain) if j != i for atom in found]
        for segment in axis:
            yield from _in_segment(segment, beside, others)


def _in_segment(
    segment: Segment, beside: list[Atom], others: list[Atom]
) -> Iterator[tuple[Atom, set[Atom]]]:
    direct = _direct(segment)
    for atom in direct:
        # Exactly once: of two axes with the same heads nobody could tell which ones are meant.
        count = [*others, *atoms((segment,))].count
        yield atom, {o for o in (*beside, *direct) if count(o) == 1 and o is not atom}
    for i, factor in enumerate(segment):
        if isinstance(factor, Sum):
            rest = list(atoms((segment[:i] + segment[i + 1 :],)))
            for part in factor.segments:
                yield from _in_segment(part, [*beside, *direct], [*others, *rest])


def _direct(segment: Segment) -> list[Atom]:
    return [factor for factor in segment if isinstance(factor, Atom)]
