"""Groups on one tensor: exact for two levels, by brute force; planted permutations recovered."""

import itertools

import numpy as np
import pytest

from dimat_jax.matching.joint import Table, fix_all, solve

CASES = {  # name: sizes, along which groups each varies, the groups that tensors carry jointly
    "alone": (dict(a=7), {}, ["a"]),
    "heads": (dict(h=4, q=5, v=6), dict(q="h", v="h"), ["hq", "hv", "h"]),
    "multi-query": (dict(h=4, q=5, v=6), {}, ["hq", "q", "hv", "h"]),
    "product": (dict(a=4, b=6), {}, ["ab"]),
    "grouped query": (
        dict(k=3, r=4, q=5, v=6), dict(r="k", q="k", v="k"), ["krq", "kq", "krv", "kv", "kr"],
    ),
    "shuffle": (dict(g=3, i=6, a=4, b=5, o=7), dict(i="g", b="ga", o="a"), ["gi", "gab", "ao"]),
    "three levels": (dict(a=3, b=4, c=5), dict(b="a", c="ab"), ["abc", "ab"]),
}  # fmt: skip


def parts(case):
    sizes, varying, keys = CASES[case]
    outer = {name: tuple(varying.get(name, "")) for name in sizes}
    return sizes, outer, [tuple(key) for key in keys], sorted(sizes, key=lambda n: len(outer[n]))


def permuted(x, key, chosen, outer):
    """`x` `[examples, *key's sizes]` with its units permuted, spelled out index by index."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape[1:]):
        at = dict(zip(key, index, strict=True))
        source = tuple(chosen[n][(*(at[o] for o in outer[n]), at[n])] for n in key)
        result[(slice(None), *index)] = x[(slice(None), *source)]
    return result


def draw(generator, sizes, outer):
    shapes = {name: [sizes[o] for o in outer[name]] + [n] for name, n in sizes.items()}
    return {
        name: generator.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        for name, shape in shapes.items()
    }


def tables_of(keys, sizes, targets, sources):
    tables = []
    for key, target, source in zip(keys, targets, sources, strict=True):
        shape, flat = [sizes[n] for n in key], (len(target), -1)
        values = target.reshape(flat).T @ source.reshape(flat)
        tables.append(Table((), key, values.reshape(*shape, *shape)))
    return tables


def total(tables, chosen, outer):
    return sum(fix_all(table, chosen, outer).values.sum() for table in tables)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_planted_permutations_are_recovered(case, noise):
    sizes, outer, keys, order = parts(case)
    generator = np.random.default_rng(0)
    truth = draw(generator, sizes, outer)
    sources = [generator.normal(size=(200, *(sizes[n] for n in key))) for key in keys]
    targets = [permuted(x, key, truth, outer) for x, key in zip(sources, keys, strict=True)]
    targets = [x + noise * generator.normal(size=x.shape) for x in targets]
    found = solve(tables_of(keys, sizes, targets, sources), order, outer)
    for name in sizes:
        np.testing.assert_array_equal(found[name], truth[name])


def all_choices(sizes, outer, order):
    """Every combination of permutations."""
    per_group = []
    for name in order:
        rows = int(np.prod([sizes[o] for o in outer[name]]))
        shape = [sizes[o] for o in outer[name]] + [sizes[name]]
        every = itertools.product(itertools.permutations(range(sizes[name])), repeat=rows)
        per_group.append([np.array(choice).reshape(shape) for choice in every])
    for combination in itertools.product(*per_group):
        yield dict(zip(order, combination, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_two_levels_reach_the_best_of_all_permutations(seed):
    """Two networks that have nothing in common: 3! x (3!)^3 permutations of heads and units."""
    sizes, outer, keys = dict(h=3, q=3), {"h": (), "q": ("h",)}, [("h", "q"), ("h",)]
    generator = np.random.default_rng(seed)
    pairs = [[generator.normal(size=(9, *(sizes[n] for n in key))) for key in keys] for _ in "ts"]
    tables = tables_of(keys, sizes, *pairs)
    best = max(total(tables, choice, outer) for choice in all_choices(sizes, outer, ["h", "q"]))
    found = solve(tables, ["h", "q"], outer)
    np.testing.assert_allclose(total(tables, found, outer), best, rtol=1e-9)


def test_coordinate_descent_comes_near_the_best_of_all_permutations():
    """Two groups that share tensors without varying along each other: 4! x 4! permutations.

    Not exact: over 10 pairs of networks of pure noise it reached 93% of the best on average.
    """
    sizes, outer, keys = dict(a=4, b=4), {"a": (), "b": ()}, [("a", "b"), ("b",)]
    ratios = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        pairs = [[generator.normal(size=(9, *(sizes[n] for n in k))) for k in keys] for _ in "ts"]
        tables = tables_of(keys, sizes, *pairs)
        best = max(total(tables, choice, outer) for choice in all_choices(sizes, outer, ["a", "b"]))
        found = total(tables, solve(tables, ["a", "b"], outer), outer)
        assert found <= best * (1 + 1e-9)
        ratios.append(found / best)
    assert np.mean(ratios) > 0.9, ratios


def test_permutations_that_vary_along_positions_are_separate_problems():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 5, 5))
    found = solve([Table(("layers",), ("u",), values)], ["u"], {"u": ("layers",)})
    for layer in range(3):
        alone = solve([Table((), ("u",), values[layer])], ["u"], {"u": ()})
        np.testing.assert_array_equal(found["u"][layer], alone["u"])
