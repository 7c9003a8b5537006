"""What the tests of symmetries share: random variables, and a check of what was found."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.symmetries import Permutations, find_symmetries, permute
from dimat_jax.symmetries.groups import shape_of

MLP = {"a": (3, 7), "b": (7, 2)}
"""Kernels of a network with one hidden layer of 7 units; the function says what lies between."""


def normal(seed, **shapes):
    """A dict of normal arrays, float64 where that is enabled."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def random_network(model, images, seed=1):
    """A model's variables at He's scale, normalisation parameters and statistics random too."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        fan_in = max(np.prod(leaf.shape[:-1]), 1)
        values = generator.normal(size=leaf.shape)
        if kind in ("scale", "var"):
            values = 1 + 0.3 * np.abs(values)
        else:
            values *= np.sqrt(2 / fan_in) if kind == "kernel" else 0.1
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def shapes(symmetries):
    """The shape of each group's permutation, ``(*outer, size)``, in the groups' order."""
    known = {name: group.size for name, group in symmetries.groups.items()}
    known |= symmetries.positions
    return {
        name: (*(known[outer] for outer in group.outer), group.size)
        for name, group in symmetries.groups.items()
    }


def sizes(symmetries):
    """The groups as a sorted list of ``size``, or ``(*outer, size)`` for those that vary."""
    found = [shape if len(shape) > 1 else shape[0] for shape in shapes(symmetries).values()]
    return sorted(found, key=str)


def random(symmetries, seed):
    """Random permutations of all groups, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        for name, shape in shapes(symmetries).items()
    }
    return Permutations(drawn, {name: group.outer for name, group in symmetries.groups.items()})


def assert_symmetric(function, variables, *inputs, tolerance=1e-10):
    """Finds the groups; random permutations of all at once must leave the output as it is."""
    symmetries = find_symmetries(function, variables, *inputs)

    @jax.jit
    def both(variables, permutations, *inputs):
        permuted = permute(symmetries, permutations, variables)
        return function(variables, *inputs), function(permuted, *inputs)

    before, after = both(variables, random(symmetries, 0), *inputs)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * float(np.abs(x).max()))
    return symmetries


def hidden(between, shapes=MLP, seed=0, rows=4):
    """Groups of x·a, something in between, ·b."""

    def function(v, x):
        return between(v, x @ v["a"]) @ v["b"]

    v = normal(seed, **shapes)
    return assert_symmetric(function, v, normal(seed + 1, x=(rows, shapes["a"][0]))["x"])


def reference_permute(symmetries, permutations, leaves):
    """What `permute` must do, element by element, in NumPy, for a flat dict of leaves."""
    permuted = {}
    for path, leaf in leaves.items():
        index = np.indices(np.shape(leaf))
        fetched = [i.copy() for i in index]
        for name, permutation in permutations.items():
            for site in symmetries.groups[name].sites:
                if site.path == path:
                    shift = _shift(site, np.asarray(permutation), index)
                    fetched[site.axis] += shift
        permuted[path] = np.asarray(leaf)[tuple(fetched)]
    return permuted


def _shift(site, permutation, index):
    def coordinate(place):
        along = index[place.axis] - place.segment[0]
        return along // place.factor[2] % place.factor[1], (0 <= along) & (along < place.segment[1])

    own, inside = coordinate(site)
    outer = []
    for place in site.outer:
        position, there = coordinate(place)
        outer.append(position)
        inside &= there
    for place in site.within:
        inside &= coordinate(place)[1]
    return np.where(inside, (permutation[(*outer, own)] - own) * site.factor[2], 0)


def drawn(symmetries, seed):
    """Random permutations of all groups, drawn by NumPy, none the identity."""
    generator = np.random.default_rng(seed)
    permutations = {}
    for name in symmetries.groups:
        *outer, size = shape_of(symmetries, name)
        rows = [generator.permutation(size) for _ in range(math.prod(outer))]
        rows[0] = np.roll(np.arange(size), 1)
        permutations[name] = np.stack(rows).reshape(*outer, size)
    return permutations
