"""The types that the whole library shares.

Arrays are annotated with jaxtyping; the axis names used throughout are ``agents``, ``edges``,
``batch``, ``examples``, ``classes``, ``units``, ``height``, ``width`` and ``channels``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from dimat_jax.registry import shown

Key = PRNGKeyArray
"""A typed PRNG key, as `jax.random.key` makes it; shape ``()`` unless said otherwise."""

Variables = dict[str, Any]
"""A model's variables: a dict with ``params`` and, if the model has any, ``batch_stats``.

Those of a population carry a leading ``agents`` axis on every leaf.
"""

Logits = Float[Array, "*batch classes"]
MixingMatrix = Float[Array, "agents agents"]
Permutations = dict[str, Int[Array, "*outer units"]]
"""Group name → permutation. Index k of a permuted axis is index ``p[k]`` of the given one."""


Batch = Any
"""Examples: a pytree whose leaves share a leading axis ``batch``, as ``{"inputs": ..., "labels":
...}`` where images are classified."""


class LogMean(NamedTuple):
    """A metric that is reported as exp(Σ sum / Σ count), as perplexity is.

    Attributes:
      sum: of each example.
      count: of what it is a sum of, as of tokens.
    """

    sum: Shaped[Array, " batch"]
    count: Shaped[Array, " batch"]


Metric = Shaped[Array, " batch"] | tuple[Shaped[Array, " batch"], Shaped[Array, " batch"]] | LogMean
"""A number of each example, whose mean over examples is reported; or a sum and a count of each, as
of tokens: then Σ sum / Σ count is."""

Prepare = Callable[..., Batch]
"""Examples as stored, to what a task takes: images normalised, for one."""


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


class LossFn(Protocol):
    """The loss of each example; the returned variables carry updated statistics when ``train``."""

    def __call__(  # noqa: D102
        self, variables: Variables, batch: Batch, key: Key | None = None, train: bool = False
    ) -> tuple[Float[Array, " batch"], dict[str, Metric], Variables]: ...


class Task(NamedTuple):
    """What an agent learns, as pure functions of one agent.

    Attributes:
      init: ``init(key, batch) -> variables``, a dict with ``params``, and any other collections.
        Only the shapes and dtypes of the batch matter.
      loss: ``loss(variables, batch, key=None, train=False) -> (losses, metrics, variables)``. One
        loss for each example, whose mean is minimised; a dict name → `Metric`; and the variables,
        with updated statistics in training and as they were given otherwise.
      outputs: ``outputs(variables, batch)``, any pytree: what must stay as it is when hidden units
        are permuted, in evaluation mode.
    """

    init: Callable[[Key, Batch], Variables]
    loss: LossFn
    outputs: Callable[[Variables, Batch], Any]


class Model(NamedTuple):
    """A model as two pure functions.

    Attributes:
      init: ``init(key, x) -> variables``. ``x`` is a batch of what the model takes, of normalised
        float images ``[batch, height, width, channels]`` for one; only shape and dtype matter.
      apply: ``apply(variables, x, train=False, key=None) -> (outputs, variables)``, of a classifier
        logits ``[batch, classes]``. The returned variables carry updated batch statistics when
        ``train`` is true, and are the given ones otherwise. ``key`` drives dropout and stochastic
        depth.
    """

    init: InitFn
    apply: ApplyFn


def check_key(key: Any) -> None:
    """Raises a `ValueError` for anything but a single PRNG key, typed or of the older kind."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "dtype") else None
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not ((typed and shape == ()) or (dtype == np.uint32 and shape == (2,))):
        raise ValueError(f"key must be a PRNG key, as jax.random.key(0), not {shown(key)}.")
