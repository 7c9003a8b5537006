"""Random programs of tensor operations, that run alike in NumPy and in JAX.

A program is a list of steps; each step takes one or two of the tensors made so far and makes a new
one. NumPy runs it without compiling anything, so hundreds can be checked a second.
"""

import numpy as np

from helpers.random_steps import MORE_STEPS

SIZES = (2, 3, 4, 6, 12)


def random_program(rng, steps=5):
    """Leaves' shapes, and a function ``program(xp, leaves, inputs)`` in NumPy or jax.numpy."""
    shapes = {f"leaf{i}": _shape(rng) for i in range(3)}
    recipe = [(str(rng.choice(list(STEPS))), int(rng.integers(2**31))) for _ in range(steps)]

    def program(xp, leaves, x):
        made = [*leaves.values(), x]
        for name, seed in recipe:
            choices = np.random.default_rng(seed)
            new = STEPS[name](xp, choices, made)
            if new is not None and 0 < new.size <= 20_000:
                made.append(new)
        return made[-1], sum((xp.tanh(y).sum() for y in made[-3:]), start=0.0)

    program.recipe = recipe
    return shapes, program


def _shape(rng):
    return tuple(int(n) for n in rng.choice(SIZES, size=rng.integers(1, 4)))


def _pick(rng, made):
    """A tensor, the later the likelier."""
    weights = np.arange(1, len(made) + 1) ** 2
    return made[rng.choice(len(made), p=weights / weights.sum())]


def _axis(rng, x):
    return int(rng.integers(x.ndim)) if x.ndim else None


def elementwise(xp, rng, made):
    x = _pick(rng, made)
    fitting = [y for y in made if y.shape == x.shape]
    y = fitting[rng.integers(len(fitting))]
    return [x + xp.sin(y), x * y, xp.maximum(x, y)][rng.integers(3)]


def broadcast(xp, rng, made):
    x = _pick(rng, made)
    fitting = [y for y in made if 0 < y.ndim < x.ndim and y.shape == x.shape[x.ndim - y.ndim :]]
    return x + xp.cos(fitting[rng.integers(len(fitting))]) if fitting else None


def contract(xp, rng, made):
    x, y = _pick(rng, made), made[rng.integers(len(made))]
    pairs = [(i, j) for i, n in enumerate(x.shape) for j, m in enumerate(y.shape) if n == m]
    if not pairs or x.ndim + y.ndim > 6:
        return None
    i, j = pairs[rng.integers(len(pairs))]
    more = [(a, b) for a, b in pairs if a != i and b != j]
    if more and rng.random() < 0.5:
        a, b = more[rng.integers(len(more))]
        return xp.tensordot(x, y, ((i, a), (j, b))) / 3
    return xp.tensordot(x, y, ((i,), (j,))) / 3


def batched(xp, rng, made):
    x, y = _pick(rng, made), made[rng.integers(len(made))]
    if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        return None
    return xp.einsum("bik,bjk->bij", x, y) / 3


def reshape(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    if rng.random() < 0.5 and i + 1 < x.ndim:
        return x.reshape(*x.shape[:i], x.shape[i] * x.shape[i + 1], *x.shape[i + 2 :])
    divisors = [d for d in (2, 3, 4, 6) if x.shape[i] % d == 0 and d < x.shape[i]]
    if not divisors or x.ndim > 4:
        return None
    d = divisors[rng.integers(len(divisors))]
    return x.reshape(*x.shape[:i], d, x.shape[i] // d, *x.shape[i + 1 :])


def transpose(xp, rng, made):
    x = _pick(rng, made)
    return xp.transpose(x, tuple(int(i) for i in rng.permutation(x.ndim)))


def reduction(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i, keep = _axis(rng, x), bool(rng.random() < 0.5)
    out = [xp.sum, xp.max, xp.mean][rng.integers(3)](x, axis=i, keepdims=keep)
    return x - out if keep else out


def concatenate(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    fitting = [
        y for y in made if y.ndim == x.ndim and all(
            n == m for a, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)) if a != i)
    ]  # fmt: skip
    y = fitting[rng.integers(len(fitting))]
    return xp.concatenate([x, xp.tanh(y)], axis=i)


def index(xp, rng, made):
    """One position of an axis, joined with another one of it."""
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    x = xp.moveaxis(x, i, 0)
    k, other = rng.integers(x.shape[0], size=2)
    return [x[k], x[k] * xp.sin(x[other]), xp.tensordot(x[k], x[other], ((), ()))][rng.integers(2)]


def unstacked(xp, rng, made):
    """Every position of an axis on its own, as in a loop over stacked layers."""
    x = _pick(rng, made)
    if not x.ndim or x.shape[0] > 4:
        return None
    y = made[rng.integers(len(made))]
    if x.ndim >= 2 and y.ndim and y.shape[-1] == x.shape[1]:
        return sum(xp.tanh(xp.tensordot(y, x[k], ((-1,), (0,)))) * (k + 1) for k in range(len(x)))
    return sum(xp.sin(x[k]) * (k + 1) for k in range(len(x)))


def part(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    start, stop = sorted(rng.integers(x.shape[i] + 1, size=2))
    return xp.moveaxis(xp.moveaxis(x, i, 0)[start:stop], 0, i)


def roll(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    x = xp.moveaxis(x, i, 0)
    shift = int(rng.integers(1, 4))
    return xp.moveaxis(xp.concatenate([x[-shift:], x[:-shift]]), 0, i)


def copies(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim or x.size > 2000:
        return None
    if rng.random() < 0.5:
        return xp.repeat(x, 2, axis=_axis(rng, x))
    return xp.tile(x, (2,) + (1,) * (x.ndim - 1))


def pad(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    return xp.pad(x, [(int(rng.integers(3)), int(rng.integers(3))) for _ in x.shape])


def ordered(xp, rng, made):
    x = _pick(rng, made)
    if not x.ndim:
        return None
    i = _axis(rng, x)
    return [xp.sort, xp.cumsum, xp.flip][rng.integers(3)](x, axis=i)


def stack(xp, rng, made):
    x = _pick(rng, made)
    fitting = [y for y in made if y.shape == x.shape]
    return xp.stack(
        [x, fitting[rng.integers(len(fitting))] * 2], axis=int(rng.integers(x.ndim + 1))
    )


def diagonal(xp, rng, made):
    """A tensor plus its transpose."""
    x = _pick(rng, made)
    if x.ndim < 2 or x.shape[0] != x.shape[1]:
        return None
    return x + xp.swapaxes(x, 0, 1)


STEPS = {
    step.__name__: step
    for step in (
        elementwise, broadcast, contract, batched, reshape, transpose, reduction, concatenate,
        index, unstacked, part, roll, copies, pad, ordered, stack, diagonal,
    )
}  # fmt: skip
STEPS |= MORE_STEPS


def stacked_program(rng, steps=4):
    """As `random_program`, of layers whose square kernels `[layers, kinds, n, n]` are one leaf.

    Layers are taken from it one by one, as kernels in a chain, or as query, key and value.
    """
    n, layers, kinds = (int(rng.choice(sizes)) for sizes in ((4, 6), (2, 3, 4), (1, 2, 3)))
    wide = int(rng.choice([n, 6, 8]))
    order = tuple(int(i) for i in rng.permutation(4))
    square = (layers, kinds, n, n)
    layouts = {
        (layers, kinds * n, n): lambda xp, w: w.reshape(square),
        (layers, n, kinds * n): lambda xp, w: xp.swapaxes(w.reshape(layers, n, kinds, n), 1, 2),
        tuple(square[i] for i in order): lambda xp, w: xp.transpose(w, np.argsort(order)),
    }
    shape = list(layouts)[rng.integers(len(layouts))]
    names = rng.choice(list(STACKED_STEPS), size=steps)
    recipe = [(str(name), int(rng.integers(2**31))) for name in names]
    shapes = {
        "stem": (3, n), "head": (n, 2), "bias": (layers, n), "gain": (n,), "kernels": shape,
        "up": (layers, n, wide), "down": (layers, wide, n),
    }  # fmt: skip

    def program(xp, leaves, x):
        kernels = layouts[shape](xp, leaves["kernels"])
        h, others = x @ leaves["stem"], 0.0
        for name, seed in recipe:
            new = STACKED_STEPS[name](xp, np.random.default_rng(seed), h, kernels, leaves)
            h, others = (h, others + new) if new.ndim == 0 else (new, others)
        return h @ leaves["head"], others

    program.recipe = recipe
    return shapes, program


def _kernel(rng, kernels):
    return kernels[rng.integers(len(kernels)), rng.integers(kernels.shape[1])] / 2


def _heads(rng, x):
    heads = int(rng.choice([2, x.shape[1] // 2]))
    return x.reshape(len(x), heads, -1)


def chain(xp, rng, h, kernels, leaves):
    return xp.tanh(h @ _kernel(rng, kernels))


def residual(xp, rng, h, kernels, leaves):
    return h + xp.tanh(h @ _kernel(rng, kernels))


def perceptron(xp, rng, h, kernels, leaves):
    i = rng.integers(len(kernels))
    return h + xp.tanh(h @ leaves["up"][i] / 2) @ leaves["down"][i] / 2


def less_maximum(xp, rng, h, kernels, leaves):
    z = _heads(rng, h)
    return (z - z.max(2, keepdims=True)).reshape(h.shape)


def gated_by_heads(xp, rng, h, kernels, leaves):
    z = _heads(rng, h)
    return (z * xp.tanh(z.sum(1, keepdims=True))).reshape(h.shape)


def attention(xp, rng, h, kernels, leaves):
    layer, seed = kernels[rng.integers(len(kernels))], int(rng.integers(2**31))
    q, k, v = (
        _heads(np.random.default_rng(seed), h @ layer[kind % len(layer)] / 2) for kind in range(3)
    )
    scores = xp.exp(xp.tanh(xp.einsum("thd,shd->hts", q, k)))
    return h + xp.einsum("hts,she->the", scores / scores.sum(2, keepdims=True), v).reshape(h.shape)


def every_layer(xp, rng, h, kernels, leaves):
    kind, biased = rng.integers(kernels.shape[1]), rng.random() < 0.5
    for layer, bias in zip(kernels, leaves["bias"], strict=True):
        h = xp.tanh(h @ layer[kind] / 2) + (bias if biased else 0)
    return h


def decay(xp, rng, h, kernels, leaves):
    axes = [(0, 1, 2, 3), (2, 3), (0, 1, 2)][rng.integers(3)]
    return xp.tanh((kernels**2).sum(axes)).max()


def gain(xp, rng, h, kernels, leaves):
    return h * leaves["gain"]


def symmetric(xp, rng, h, kernels, leaves):
    kernel = _kernel(rng, kernels)
    return h @ (kernel + xp.swapaxes(kernel, 0, 1))


def kinds_at_once(xp, rng, h, kernels, leaves):
    z = xp.einsum("td,cde->cte", h, kernels[rng.integers(len(kernels))]) / 2
    return h + sum(xp.tanh(y) * (i + 1) for i, y in enumerate(z))


def one_bias(xp, rng, h, kernels, leaves):
    return h + leaves["bias"][rng.integers(len(kernels))]


def layers_at_once(xp, rng, h, kernels, leaves):
    kernels = kernels[:, rng.integers(kernels.shape[1])]
    y = xp.einsum("td,lde->lte", h, kernels[::-1] if rng.random() < 0.3 else kernels) / 2
    return h + (xp.tanh(y).sum(0) if rng.random() < 0.5 else sum(xp.sin(z) for z in y))


STACKED_STEPS = {
    step.__name__: step
    for step in (
        chain, residual, perceptron, less_maximum, gated_by_heads, attention, every_layer, decay,
        gain, symmetric, kinds_at_once, one_bias, layers_at_once,
    )
}  # fmt: skip
