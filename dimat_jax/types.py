"""The types that the whole library shares.

Arrays are annotated with jaxtyping; the axis names used throughout are ``agents``, ``edges``,
``batch``, ``examples``, ``classes``, ``units``, ``height``, ``width`` and ``channels``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

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
