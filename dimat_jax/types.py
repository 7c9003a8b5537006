"""The types that the whole library shares.

Arrays are annotated with jaxtyping; the axis names used throughout are ``agents``, ``edges``,
``batch``, ``examples``, ``classes``, ``units``, ``height``, ``width`` and ``channels``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from dimat_jax.registry import shown

Key = PRNGKeyArray
"""A typed PRNG key, as `jax.random.key` makes it; shape ``()`` unless said otherwise."""

Variables = dict[str, Any]
"""A model's variables: a dict with ``params`` and, if the model has any, ``batch_stats``.

Those of a population carry a leading ``agents`` axis on every leaf.
"""

Images = UInt8[Array, "*batch height width channels"]
Labels = Int[Array, "*batch"]
Logits = Float[Array, "*batch classes"]
MixingMatrix = Float[Array, "agents agents"]
Permutations = dict[str, Int[Array, "*outer units"]]
"""Group name → permutation. Index k of a permuted axis is index ``p[k]`` of the given one."""


Prepare = Callable[..., Float[Array, "batch height width channels"]]
"""Images as stored, uint8 ``[batch, height, width, channels]``, to what models take: normalised."""


class InitFn(Protocol):
    """Makes a model's variables for inputs like ``x``."""

    def __call__(self, key: Key, x: Shaped[Array, "batch ..."]) -> Variables: ...  # noqa: D102


class ApplyFn(Protocol):
    """Runs a model; the returned variables carry updated batch statistics when ``train``."""

    def __call__(  # noqa: D102
        self,
        variables: Variables,
        x: Shaped[Array, "batch ..."],
        train: bool = False,
        key: Key | None = None,
    ) -> tuple[Logits, Variables]: ...


class Model(NamedTuple):
    """A model as two pure functions.

    Attributes:
      init: ``init(key, x) -> variables``. ``x`` is a batch of normalised float images
        ``[batch, height, width, channels]``; only its shape and dtype matter.
      apply: ``apply(variables, x, train=False, key=None) -> (logits, variables)``, logits
        ``[batch, classes]``. The returned variables carry updated batch statistics when ``train``
        is true, and are the given ones otherwise. ``key`` drives dropout and stochastic depth.
    """

    init: InitFn
    apply: ApplyFn


def check_key(key: Any) -> None:
    """Raises a `ValueError` for anything but a single PRNG key, typed or of the older kind."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "dtype") else None
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not ((typed and shape == ()) or (dtype == np.uint32 and shape == (2,))):
        raise ValueError(f"key must be a PRNG key, as jax.random.key(0), not {shown(key)}.")
