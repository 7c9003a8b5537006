"""What the small architectures share: random weights, a dense layer, a convolution, images."""

import jax
import numpy as np

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options for what runs once or twice."""


def normal(*shape: int) -> np.ndarray:
    """The same random numbers for the same shape, of about unit gain as a kernel."""
    generator = np.random.default_rng(np.asarray(shape))
    return generator.normal(size=shape) / max(1.0, np.sqrt(np.prod(shape[:-1])) / 2)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A random array for each name; scales and biases are random too, so that they are seen."""
    generator = np.random.default_rng(len(shapes))
    return {
        name: generator.normal(size=shape) / max(1.0, np.sqrt(np.prod(shape[:-1])) / 2)
        for name, shape in shapes.items()
    }


def images() -> np.ndarray:
    """Two images of 6 x 6 x 3."""
    return np.random.default_rng(1).normal(size=(2, 6, 6, 3))


def dense(v, name, x, activation=lambda y: y):
    """A dense layer with the kernel and bias of that name."""
    return activation(x @ v[name] + v[f"{name}_bias"])


def convolve(x, kernel, groups=1):
    """A convolution that keeps height and width."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def max_pool(x):
    """The largest of each 2 x 2 window."""
    return jax.lax.reduce_window(
        x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )  # fmt: skip
