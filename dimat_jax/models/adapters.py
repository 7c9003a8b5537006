"""Any Flax module, Linen or NNX, as a `Model`: two pure functions over plain dicts."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
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


def training_options(call: Callable, train: bool) -> dict[str, Any]:
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
        mutable = [name for name in variables if train and name != "params"]
        logits, updated = module.apply(variables, x, rngs=rngs, mutable=mutable, **options)
        if not train:
            return logits, variables
        # Flax returns what was mutable only; params are not.
        given = {name: variables[name] for name in updated}
        return logits, {**variables, **keep_dtypes(dict(updated), given)}

    return Model(init, apply)


def from_nnx(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Wraps an NNX module as a `Model`.

    ``variables`` is a plain dict of dicts with string keys: ``params`` for every `nnx.Param`,
    ``batch_stats`` for `nnx.BatchStat`, ``state`` for other variables, each of the latter two only
    if there are any. Random streams are no variables: ``key`` sets them again in every call.
    Training mode is set by the module's own ``train()`` and ``eval()``, and by the argument of its
    ``__call__`` if it has one that `from_linen` would find.

    Args:
      make_module: makes the module, every time alike; takes `flax.nnx.Rngs`.

    Returns:
      The model. Its ``init`` does not look at ``x``: NNX modules know their shapes.
    """
    # The module's structure and its variables' shapes: nothing is computed yet.
    graph, template = nnx.split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))))

    def init(key: Key, x: Inputs) -> Variables:
        return to_variables(nnx.state(make_module(nnx.Rngs(key))))

    def apply(
        variables: Variables, x: Inputs, train: bool = False, key: Key | None = None
    ) -> tuple[Logits, Variables]:
        module = nnx.merge(graph, to_state(template, variables, key, train))
        module.train() if train else module.eval()
        logits = module(x, **training_options(type(module).__call__, train))
        if not train:
            return logits, variables
        updated = to_variables(nnx.state(module)) | {"params": variables["params"]}
        return logits, keep_dtypes(updated, variables)

    return Model(init, apply)


def collection_of(variable: nnx.Variable) -> str | None:
    """The part of ``variables`` that an NNX variable belongs to; none for random streams."""
    if isinstance(variable, nnx.RngState):
        return None
    if isinstance(variable, nnx.Param):
        return "params"
    return "batch_stats" if isinstance(variable, nnx.BatchStat) else "state"


def leaf_of(path: tuple, variable: nnx.Variable) -> tuple[str, ...]:
    """Where an NNX variable lies in ``variables``; a list's indices become strings."""
    return (str(collection_of(variable)), *map(str, path))


def to_variables(state: Any) -> Variables:
    """Turns an NNX state into plain dicts, random streams left out."""
    leaves = {
        leaf_of(path, variable): variable[...]
        for path, variable in nnx.to_flat_state(state)
        if collection_of(variable) is not None
    }
    return {"params": {}} | unflatten_dict(leaves)


def to_state(template: Any, variables: Variables, key: Key | None, train: bool) -> Any:
    """Fills an NNX state with the leaves of ``variables``, and with random streams from ``key``.

    Raises:
      ValueError: if the module draws random numbers in training and there is no key.
    """
    leaves = flatten_dict(variables)

    def fill(index: int, path: tuple, variable: nnx.Variable) -> Any:
        if isinstance(variable, nnx.RngKey):
            if key is None and train:
                raise ValueError(f"The module draws random numbers at {path}: pass a key to apply.")
            # In evaluation the stream has to be there, though nothing draws from it.
            stream = jax.random.key(0) if key is None else jax.random.fold_in(key, index)
            return jax.random.split(stream, variable.shape)
        # How often a stream was drawn from: every call starts at 0, with a key of its own.
        if isinstance(variable, nnx.RngState):
            return jnp.zeros(variable.shape, variable.dtype)
        return leaves[leaf_of(path, variable)]

    filled = [
        (path, variable.replace(fill(index, path, variable)))
        for index, (path, variable) in enumerate(nnx.to_flat_state(template))
    ]
    return nnx.from_flat_state(filled)
