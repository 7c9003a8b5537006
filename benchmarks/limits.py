"""What the machine can do at most: a large matrix product and a large copy, in every library."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import cores, select_backend


class Size(NamedTuple):
    """What is multiplied and copied.

    Attributes:
      side: rows and columns of the matrix.
      copy: bytes of the array: more than the caches hold, and little beside any memory.
    """

    side: int
    copy: int


ON_CPU, ON_ACCELERATOR = Size(2048, 2**27), Size(8192, 2**31)
"""An accelerator needs more before the time of a call is not what counts."""


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
    matrix, array = operands(backend)
    target = np.empty_like(array)
    return measure(matrix, array, lambda: matrix @ matrix, lambda: np.copyto(target, array))


def jax_block(backend: str | None) -> Callable[[], Limit]:
    """Measures JAX."""
    import jax
    import jax.numpy as jnp

    select_backend(backend)
    matrix, array = jax.device_put(operands(backend))
    multiply = jax.jit(lambda x: jnp.matmul(x, x))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [array]

    def replace() -> None:
        held[0] = jax.block_until_ready(copy(held[0]))

    return measure(matrix, array, lambda: jax.block_until_ready(multiply(matrix)), replace)


def torch_block(backend: str | None) -> Callable[[], Limit]:
    """Measures PyTorch."""
    import torch

    from benchmarks.opponents.torch_loop import device_of, synchronize

    torch.set_num_threads(cores())
    device = device_of(backend)
    matrix, array = (torch.from_numpy(x).to(device) for x in operands(backend))
    target = torch.empty_like(array)

    def waiting(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            function()
            synchronize(device)

        return run

    multiply, copy = (lambda: matrix @ matrix), (lambda: target.copy_(array))
    return measure(matrix, array, waiting(multiply), waiting(copy))


def operands(backend: str | None) -> tuple[np.ndarray, np.ndarray]:
    """A matrix to multiply with itself, and an array to copy."""
    rng = np.random.default_rng(0)
    size = ON_CPU if backend in (None, "cpu") else ON_ACCELERATOR
    matrix = rng.standard_normal((size.side, size.side), np.float32)
    return matrix, np.ones(size.copy // 4, np.float32)


def measure(
    matrix: Any, array: Any, multiply: Callable[[], object], copy: Callable[[], object]
) -> Callable[[], Limit]:
    """A block that times both."""
    operations, moved = 2.0 * len(matrix) ** 3, 2.0 * array.nbytes

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return lambda: Limit(operations / seconds(multiply), moved / seconds(copy))


Maker = Callable[[str | None], Callable[[], Limit]]


def makers(backend: str | None) -> dict[str, Maker]:
    """Library → what makes the block that measures it, for those that can be had here."""
    libraries: dict[str, Maker] = {"JAX": jax_block}
    if backend in (None, "cpu"):
        libraries["NumPy"] = numpy_block
    if importlib.util.find_spec("torch") is not None:
        libraries["PyTorch"] = torch_block
    return libraries
