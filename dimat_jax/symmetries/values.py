"""Small integer arrays whose values are known while a function is traced: indices, mostly.

``h.at[:, 3:].set(0)`` writes from column 3 on; its jaxpr has the 3 as a literal that is broadcast,
or computed from others. Rules that would freeze an axis at an unknown position ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

MAX_SIZE = 64
"""Larger arrays are no single index."""

Value = np.ndarray | None
"""Known, or not."""


def known_constant(value: Any) -> Value:
    """The value of a captured array or a literal, if it is a small array of integers or bools."""
    # Under an outer jit a captured array may be a tracer, and typed keys have no such value.
    if isinstance(value, jax.core.Tracer) or np.size(value) > MAX_SIZE:
        return None
    dtype = np.dtype(type(value)) if isinstance(value, int) else value.dtype
    return np.asarray(value) if isinstance(dtype, np.dtype) and dtype.kind in "iub" else None


def known_output(name: str, params: dict[str, Any], values: Sequence[Value]) -> Value:
    """What an equation computes from known values, if it is known how."""
    known = [value for value in values if value is not None]
    if name not in COMPUTED or len(known) < len(values):
        return None
    output = np.asarray(COMPUTED[name](params, *known))
    return output if output.size <= MAX_SIZE else None


def _broadcast(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    shape, dims = params["shape"], params["broadcast_dimensions"]
    wide = [x.shape[dims.index(d)] if d in dims else 1 for d in range(len(shape))]
    return np.broadcast_to(x.reshape(wide), shape)


COMPUTED: dict[str, Callable[..., Any]] = {
    "add": lambda params, x, y: np.add(x, y),
    "sub": lambda params, x, y: np.subtract(x, y),
    "mul": lambda params, x, y: np.multiply(x, y),
    "max": lambda params, x, y: np.maximum(x, y),
    "min": lambda params, x, y: np.minimum(x, y),
    "lt": lambda params, x, y: np.less(x, y),
    "ge": lambda params, x, y: np.greater_equal(x, y),
    "select_n": lambda params, which, *cases: np.choose(which.astype(int), cases),
    "clamp": lambda params, low, x, high: np.clip(x, low, high),
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: x.squeeze(tuple(map(int, params["dimensions"]))),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
}
"""Primitive → what it does to NumPy arrays, of those by which JAX makes an index."""
