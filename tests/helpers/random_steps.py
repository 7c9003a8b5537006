"""Further steps of random programs: complex numbers, few bits, indices, loops and branches.

Each runs in NumPy as plain Python, and in JAX as the primitive that it is there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _pick(rng, made):
    weights = np.arange(1, len(made) + 1) ** 2
    return made[rng.choice(len(made), p=weights / weights.sum())]


def _like(rng, made, x):
    fitting = [y for y in made if y.shape == x.shape]
    return fitting[rng.integers(len(fitting))]


def _number(xp, rng, made):
    """A whole number that depends on the inputs, so that nobody knows it before they are there."""
    return (xp.abs(made[3]).max() * 7 + int(rng.integers(9))).astype(int)


def _leading(xp, rng, x):
    """The tensor with any of its axes first."""
    return xp.moveaxis(x, int(rng.integers(x.ndim)), 0)


def complex_numbers(xp, rng, made):
    x = _pick(rng, made)
    y = _like(rng, made, x)
    z = [x + 1j * xp.sin(y), x * xp.exp(1j * y.real), xp.conj(x) * 1j + y][rng.integers(3)]
    return [z, z.real, z.imag, xp.abs(z), xp.conj(z) * z][rng.integers(5)]


def few_bits(xp, rng, made):
    """Numbers rounded to float16, or to whole ones of 8 bits."""
    x = _pick(rng, made).real
    if rng.random() < 0.5:
        return x.astype(xp.float16).astype(xp.float64)
    return xp.round(xp.tanh(x) * 99).astype(xp.int8).astype(xp.float64) / 50


def indexed(xp, rng, made):
    """A position, or a window, at an unknown place of an axis, rolled or written to."""
    x = _pick(rng, made)
    if not x.ndim:
        return None
    x = _leading(xp, rng, x)
    n, size = len(x), int(rng.integers(1, len(x) + 1))
    return _at(xp, x, _number(xp, rng, made) % n, size, int(rng.integers(5)))


def indexed_each(xp, rng, made):
    """The same for each position of another axis, at a place of its own."""
    x = _pick(rng, made)
    if x.ndim < 2 or len(x) > 6:
        return None
    x = _leading(xp, rng, x)
    n, size, kind = x.shape[1], int(rng.integers(1, x.shape[1] + 1)), int(rng.integers(5))
    places = (_number(xp, rng, made) + xp.arange(len(x)) * 3) % n
    if xp is np:
        return np.stack([_at(np, h, k, size, kind) for h, k in zip(x, places, strict=True)])
    return jax.vmap(lambda h, k: _at(jnp, h, k, size, kind))(x, places)


def _at(xp, x, k, size, kind):
    if kind == 0:
        return x[k]
    if kind == 1:
        return xp.roll(x, k, 0)
    k = xp.minimum(k, len(x) - size)
    if kind == 2:
        return x[k : k + size] if xp is np else lax.dynamic_slice_in_dim(x, k, size)
    part = xp.sin(x[:size])
    if xp is np:
        x = x.copy()
        x[k : k + size] = part if kind == 3 else x[k : k + size] + part
        return x
    if kind == 3:
        return lax.dynamic_update_slice_in_dim(x, part, k, 0)
    return x.at[k + jnp.arange(size)].add(part)


def written(xp, rng, made):
    """A tensor written into part of another one, at a known place."""
    x = _pick(rng, made)
    if not x.ndim:
        return None
    x = _leading(xp, rng, x)
    start, stop = sorted(int(i) for i in rng.integers(len(x) + 1, size=2))
    part = [0 * x[start:stop] + 1, xp.tanh(x[start:stop]), xp.sin(x[: stop - start])]
    part, how = part[rng.integers(3)], ("add", "set", "apply")[rng.integers(3)]
    if xp is np:
        out, there = x.copy(), x[start:stop]
        out[start:stop] = {"add": there + part, "set": part, "apply": np.tanh(there)}[how]
        return out
    if how == "apply":
        return x.at[start:stop].apply(jnp.tanh)
    return x.at[start:stop].add(part) if how == "add" else x.at[start:stop].set(part)


def loop(xp, rng, made):
    """A recurrence, as often as nobody knows before: a while loop."""
    x = _pick(rng, made)
    if not x.ndim or x.size > 2000:
        return None
    y = _like(rng, made, x).real
    square = [w for w in made if w.ndim == 2 and w.shape == (x.shape[-1],) * 2]
    kind = int(rng.integers(4))
    if kind == 3 and not square:
        return None
    kernel = square[rng.integers(len(square))].real if square else None

    def step(i, h):
        if kind == 0:
            return xp.tanh(h + y)
        if kind == 1:
            return xp.tanh(h + xp.roll(h, 1, -1))
        if kind == 2:
            return h - xp.tanh(h).mean(0, keepdims=True) * (i + 1)
        return xp.tanh(h @ kernel / 3) + y

    h, steps = x.real + 0.0, 1 + _number(xp, rng, made) % 3
    if rng.random() < 0.3:
        h = 0 * h
    if xp is np:
        for i in range(int(steps)):
            h = step(i, h)
        return h
    return lax.fori_loop(0, steps, step, h)


def layers(xp, rng, made):
    """A scan over the first axis of a tensor."""
    x = _pick(rng, made)
    if x.ndim < 2 or len(x) > 4:
        return None
    y = made[rng.integers(len(made))]
    if y.ndim and x.ndim == 3 and x.shape[1] == x.shape[2] == y.shape[-1]:
        step = lambda h, w: xp.tanh(h @ w / 3)  # noqa: E731
        h = y
    else:
        step = lambda h, w: xp.tanh(h + w)  # noqa: E731
        h = xp.zeros(x.shape[1:])
    h, x = h.real + 0.0, x.real
    if xp is np:
        for w in x:
            h = step(h, w)
        return h
    return lax.scan(lambda h, w: (step(h, w), None), h, x)[0]


def branch(xp, rng, made):
    """One of two, by what the inputs are."""
    x = _pick(rng, made).real
    y = _like(rng, made, x).real
    first = bool(rng.random() < 0.5)

    def one():
        return xp.sin(x) if first else 0.0 * x

    taken = _number(xp, rng, made) % 2 == 0
    if xp is np:
        return one() if taken else np.cos(y)
    return lax.cond(taken, one, lambda: xp.cos(y))


MORE_STEPS = {
    step.__name__: step
    for step in (
        complex_numbers, few_bits, indexed, indexed_each, written, loop, layers, branch,
    )
}  # fmt: skip
