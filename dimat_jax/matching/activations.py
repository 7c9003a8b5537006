"""Activation matching: correlate two networks' activations unit by unit, then assign.

Source: Li et al. 2016, "Convergent learning"; Ainsworth et al. 2023, "Git Re-Basin" (section 3.1);
DIMAT (arXiv 2404.08079). The steps stand alone, so that a simulator can run them with a leading
axis of agents or edges: `cross_moments` and `scores` are pure, `assign` runs on the host.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Inexact, Shaped

from dimat_jax.matching.assignment import assign, positions_of
from dimat_jax.matching.costs import CONSTANT_TOLERANCE, COSTS
from dimat_jax.registry import attempt, check_number, choose
from dimat_jax.symmetries import GroupKey, Permutations, Symmetries, check_symmetries, read_sites
from dimat_jax.symmetries.analysis import FAILS, as_function
from dimat_jax.symmetries.networks import check_leaves, like, wide
from dimat_jax.types import Model

SITES = ("all", "last")
Activations = Mapping[GroupKey, Sequence[Shaped[Array, "..."]]]


class Moments(NamedTuple):
    """Moments of two networks' units over examples, pixels and tokens, at one read site.

    A unit may be complex, as a state of a linear recurrence is. Its mean is complex then, a square
    is that of a modulus, and a product is Re(conj(target) source): that of real and imaginary
    parts, added up.

    Sums of squares are of deviations from the mean: sums of raw squares would lose, in float32, the
    small deviations of units with a large mean, and find a correlation between constant units.

    Attributes:
      count: Number of examples x pixels or tokens.
      target_mean: Mean of each unit of the target.
      source_mean: The same of the source.
      target_square: Sum of each target unit's squared deviations.
      source_square: The same of the source.
      cross: Sum of products of deviations, target unit by source unit.
    """

    count: Float[Array, "*lead"]
    target_mean: Inexact[Array, "*lead units"]
    source_mean: Inexact[Array, "*lead units"]
    target_square: Float[Array, "*lead units"]
    source_square: Float[Array, "*lead units"]
    cross: Float[Array, "*lead units units"]


def cross_moments(
    symmetries: Symmetries, target: Activations, source: Activations
) -> dict[GroupKey, list[Moments]]:
    """Moments of two networks' activations on the same inputs.

    Pure; it can be jitted, vmapped (over agents or edges) and sharded. The moments of several
    batches are put together by `combine_moments`.

    Args:
      symmetries: The groups.
      target: The target's activations, as `read_sites` returns them: for each key a list, an entry
        a site, of `[*positions, ..., *sizes]`.
      source: The source's.

    Returns:
      For each key a list of moments, an entry a site; `units` is the product of the key's sizes.
      Those of a key that varies along positions (scanned layers) carry these axes in front.
    """

    def of_key(key: GroupKey) -> list[Moments]:
        moments = _site_moments
        for _ in positions_of(symmetries, key):
            moments = jax.vmap(moments)
        lead = len(positions_of(symmetries, key))
        flat = [[_flatten(x, lead, len(key)) for x in side[key]] for side in (target, source)]
        return [moments(*pair) for pair in zip(*flat, strict=True)]

    return {key: of_key(key) for key in target}


def _flatten(
    x: Shaped[Array, "..."], lead: int, groups: int
) -> Shaped[Array, "*positions examples units"]:
    units = math.prod(x.shape[x.ndim - groups :])
    return x.reshape(*x.shape[:lead], -1, units)


def _site_moments(
    target: Shaped[Array, "examples units"], source: Shaped[Array, "examples units"]
) -> Moments:
    # Activations in bfloat16 are summed in float32, those in float64 as they are.
    target, source = (x.astype(canonicalize_dtype(wide(x.dtype))) for x in (target, source))
    target_mean, source_mean = target.mean(0), source.mean(0)
    target, source = target - target_mean[None], source - source_mean[None]
    return Moments(
        count=jnp.asarray(len(target), target.real.dtype),
        target_mean=target_mean,
        source_mean=source_mean,
        target_square=_square(target).sum(0),
        source_square=_square(source).sum(0),
        cross=jnp.matmul(target.conj().T, source, precision=jax.lax.Precision.HIGHEST).real,
    )


def _square(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The squared modulus."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _products(
    target: Inexact[Array, "*lead units"], source: Inexact[Array, "*lead units"]
) -> Float[Array, "*lead units units"]:
    """Re(conj(target) source) of each unit of the target with each one of the source."""
    return (target.conj()[..., :, None] * source[..., None, :]).real


def combine_moments(
    first: dict[GroupKey, list[Moments]], second: dict[GroupKey, list[Moments]]
) -> dict[GroupKey, list[Moments]]:
    """Moments of two batches together (Chan, Golub and LeVeque 1983); associative."""
    return jax.tree.map(_combine, first, second, is_leaf=lambda node: isinstance(node, Moments))


def _combine(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    # With d the difference of the means: mean = mean_a + d n_b / n, and the sums of squares of
    # deviations grow by d² n_a n_b / n, likewise those of products.
    share, weight = b.count / count, a.count * b.count / count
    target_step, source_step = b.target_mean - a.target_mean, b.source_mean - a.source_mean
    return Moments(
        count=count,
        target_mean=a.target_mean + share[..., None] * target_step,
        source_mean=a.source_mean + share[..., None] * source_step,
        target_square=a.target_square + b.target_square + weight[..., None] * _square(target_step),
        source_square=a.source_square + b.source_square + weight[..., None] * _square(source_step),
        cross=a.cross + b.cross + weight[..., None, None] * _products(target_step, source_step),
    )


def scores(
    moments: dict[GroupKey, list[Moments]], cost: str = "correlation", sites: str = "all"
) -> dict[GroupKey, Float[Array, "..."]]:
    """Scores of each unit of the target (rows) with each one of the source, summed over sites.

    Args:
      moments: As `cross_moments` returns them, with any leading axes (agents, edges).
      cost: `correlation` (Pearson's, of complex units its real part; 0 for units that are constant,
        dead ones among them),
        `covariance`, or `inner_product`: the mean product of activations.
      sites: `all`, or `last`: the last read site in network order only, as the paper does for
        residual streams.

    Returns:
      For each key `[*lead, *positions, units, units]`, as `assign` takes them.

    Raises:
      ValueError: For an unknown cost or choice of sites.
    """
    choose("cost", cost, COSTS)
    choose("choice of sites", sites, SITES)
    # Sites are in network order.
    first = 0 if sites == "all" else -1
    return {
        key: reduce(jnp.add, [_site_scores(site, cost) for site in of_sites[first:]])
        for key, of_sites in moments.items()
    }


def _site_scores(moments: Moments, cost: str) -> Float[Array, "*lead units units"]:
    m, count = moments, moments.count[..., None]
    if cost == "correlation":
        target = _inverse_deviation(m.target_mean, m.target_square, count)
        source = _inverse_deviation(m.source_mean, m.source_square, count)
        return m.cross * target[..., :, None] * source[..., None, :]
    covariance = m.cross / count[..., None]
    if cost == "covariance":
        return covariance
    return covariance + _products(m.target_mean, m.source_mean)


def _inverse_deviation(
    mean: Inexact[Array, "*lead units"],
    square: Float[Array, "*lead units"],
    count: Float[Array, "*lead 1"],
) -> Float[Array, "*lead units"]:
    """One over the root of the sum of squares; 0 for constant units."""
    # Rounding leaves a constant unit a deviation of about 1e-7 of its mean, with which others would
    # correlate.
    constant = square <= count * CONSTANT_TOLERANCE**2 * _square(mean)
    return jnp.where(constant, 0.0, jax.lax.rsqrt(jnp.where(constant, 1.0, square)))


def match_activations(
    symmetries: Symmetries,
    model_or_function: Model | Callable[..., Any],
    target: Any,
    source: Any,
    *inputs: Any,
    cost: str = "correlation",
    sites: str = "all",
    batch_size: int | None = None,
) -> Permutations:
    """Aligns the source's units with the target's, so that `permute` of it is like the target.

    Can be called inside `jit`; see `assign`.

    Args:
      symmetries: The groups, as `find_symmetries` returns them.
      model_or_function: The model or function that they were found for.
      target: Variables of the network to align with.
      source: Variables of the network to align.
      *inputs: What the function takes besides variables: images to compare the networks on.
      cost: What is maximised: `correlation`, `covariance` or `inner_product`; see `scores`.
      sites: `all` read sites or the `last` of each group; see `scores`.
      batch_size: Splits the inputs along their first axis; all at once if None.

    Returns:
      Group name to int32 permutation of the source. A group that is never read keeps the identity;
      a warning names it.

    Raises:
      ValueError: For an unknown cost or choice of sites, networks of different leaves, inputs that
        cannot be split, or activations that are not finite.
    """
    check_symmetries(symmetries)
    if batch_size is not None:
        check_number("batch_size", batch_size, least=1, whole=True)
    choose("cost", cost, COSTS)
    choose("choice of sites", sites, SITES)
    as_function(model_or_function)  # It is a function.
    check_leaves(symmetries.shapes, target, "the target")
    source = like(target, source, ("the target", "the source"))
    read = partial(attempt, FAILS, _network_moments, symmetries, model_or_function)
    batches = [read(target, source, *batch) for batch in _split(inputs, batch_size)]
    moments = reduce(combine_moments, batches)
    warn_of_unread(symmetries, moments)
    return assign(symmetries, scores(moments, cost, sites))


def warn_of_unread(symmetries: Symmetries, moments: dict[GroupKey, list[Moments]]) -> None:
    """Names the groups that activation matching cannot align, for want of a read site."""
    read = {name for key in moments for name in key}
    if unread := [name for name in symmetries.groups if name not in read]:
        warnings.warn(
            f"Activation matching leaves these groups as they are: {', '.join(unread)}. Their "
            "units are read nowhere that activations can be taken.",
            stacklevel=3,
        )


@partial(jax.jit, static_argnums=(0, 1))
def _network_moments(
    symmetries: Symmetries,
    model_or_function: Model | Callable[..., Any],
    target: Any,
    source: Any,
    *inputs: Any,
) -> dict[GroupKey, list[Moments]]:
    read = read_sites(symmetries, model_or_function)
    return cross_moments(symmetries, read(target, *inputs), read(source, *inputs))


def _split(inputs: tuple[Any, ...], batch_size: int | None) -> Iterator[tuple[Any, ...]]:
    if batch_size is None:
        yield inputs
        return
    lengths = {len(leaf) if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Inputs must share their first axis to be split into batches, but have lengths "
            f"{sorted(lengths)}."
        )
    for start in range(0, lengths.pop(), batch_size):
        yield jax.tree.map(lambda leaf: leaf[start : start + batch_size], inputs)  # noqa: B023
