"""What the machine can do at most: a large matrix product and a large copy, in every library."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import cores, select_backend

SIDE = 2048
COPY = 2**27
"""Bytes of the copied array: more than a core's caches hold, and little beside any memory."""


class Limit(NamedTuple):
    """What a library reached.

    Attributes:
      product: floating-point operations per second of a float32 matrix product.
      copy: bytes per second, those read and those written together, of a copy.
    """

    product: float
    copy: float


def numpy_block(backend: str | None) -> Callable[[], Limit]:
    """Measures NumPy, which knows CPUs only."""
    matrix, array = operands()
    target = np.empty_like(array)
    return measure(lambda: matrix @ matrix, lambda: np.copyto(target, array))


def jax_block(backend: str | None) -> Callable[[], Limit]:
    """Measures JAX."""
    import jax
    import jax.numpy as jnp

    select_backend(backend)
    matrix, array = jax.device_put(operands())
    multiply = jax.jit(lambda x: jnp.matmul(x, x))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [array]

    def replace() -> None:
        held[0] = jax.block_until_ready(copy(held[0]))

    return measure(lambda: jax.block_until_ready(multiply(matrix)), replace)


def torch_block(backend: str | None) -> Callable[[], Limit]:
    """Measures PyTorch."""
    import torch

    from benchmarks.opponents.torch_loop import device_of, synchronize

    torch.set_num_threads(cores())
    device = device_of(backend)
    matrix, array = (torch.from_numpy(x).to(device) for x in operands())
    target = torch.empty_like(array)

    def waiting(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            function()
            synchronize(device)

        return run

    return measure(waiting(lambda: matrix @ matrix), waiting(lambda: target.copy_(array)))


def operands() -> tuple[np.ndarray, np.ndarray]:
    """A matrix to multiply with itself, and an array to copy."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((SIDE, SIDE), np.float32), np.ones(COPY // 4, np.float32)


def measure(multiply: Callable[[], object], copy: Callable[[], object]) -> Callable[[], Limit]:
    """A block that times both."""

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return lambda: Limit(2.0 * SIDE**3 / seconds(multiply), 2.0 * COPY / seconds(copy))


Maker = Callable[[str | None], Callable[[], Limit]]


def makers(backend: str | None) -> dict[str, Maker]:
    """Library → what makes the block that measures it, for those that can be had here."""
    libraries: dict[str, Maker] = {"JAX": jax_block}
    if backend in (None, "cpu"):
        libraries["NumPy"] = numpy_block
    if importlib.util.find_spec("torch") is not None:
        libraries["PyTorch"] = torch_block
    return libraries
