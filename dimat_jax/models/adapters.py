"""Any Flax module, Linen or NNX, as a `Model`: two pure functions over plain dicts."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Shaped

from dimat_jax.types import Key, Logits, Model, Variables

Inputs = Shaped[Array | np.ndarray, "batch ..."]

TRAINING_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""What modules call their training mode → the value that turns it on."""


def training_options(call: Callable, train: bool) -> dict[str, bool]:
    """The keyword arguments that put ``call`` into training mode, or out of it.

    Args:
      call: a module's ``__call__``.
      train: whether training mode is wanted.

    Returns:
      One entry for each parameter of ``call`` that `TRAINING_MODES` knows; often one, or none.
    """
    names = inspect.signature(call).parameters
    return {name: on == train for name, on in TRAINING_MODES.items() if name in names}


def keep_dtypes(new: Any, old: Any) -> Any:
    """Casts the leaves of ``new`` to the dtypes of ``old``: a step must not change them."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def from_linen(module: nn.Module) -> Model:
    """Wraps a Linen module as a `Model`.

    Training mode goes by the name that the module's ``__call__`` gives it: ``train``,
    ``training``, ``is_training``, ``deterministic`` or ``use_running_average`` (the last two
    inverted). ``key`` serves every random stream the module asks for (``dropout`` or any other).
    In training mode every collection of the variables but ``params`` is updated.

    Args:
      module: a module whose ``__call__`` takes a batch of inputs first and returns logits.

    Returns:
      The model. Its ``init`` runs a forward pass: under `jax.jit` only the initialisers remain.
    """
    call = type(module).__call__

    def init(key: Key, x: Inputs) -> Variables:
        return dict(module.init(key, x, **training_options(call, False)))

    def apply(
        variables: Variables, x: Inputs, train: bool = False, key: Key | None = None
    ) -> tuple[Logits, Variables]:
        options = training_options(call, train)
        # Flax falls back on the stream named params where it lacks the one that is asked for.
        rngs = None if key is None else {"params": key}
        if not train:
            return module.apply(variables, x, rngs=rngs, **options), variables
        mutable = [name for name in variables if name != "params"]
        logits, updated = module.apply(variables, x, rngs=rngs, mutable=mutable, **options)
        given = {name: variables[name] for name in updated}
        return logits, {**variables, **keep_dtypes(dict(updated), given)}

    return Model(init, apply)
