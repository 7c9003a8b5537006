"""Functions whose calls can be found in a jaxpr."""

import functools
from collections.abc import Callable
from typing import Any

import jax

KNOWN = "dimat_jax."
"""What their names begin with in a jaxpr."""


def known(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jits a function under a name by which `dimat_jax.execution.kernels` finds its calls.

    Args:
      function: of arrays.
      **options: of `jax.jit`.
    """

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        return function(*args)

    named.__name__ = KNOWN + function.__name__
    return functools.wraps(function)(jax.jit(named, **options))
