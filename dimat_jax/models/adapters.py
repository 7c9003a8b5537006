"""Any Flax module, Linen or NNX, as a `Model`: two pure functions over plain dicts."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Shaped

from dimat_jax.registry import attempt, choose, expect, shown
from dimat_jax.types import Key, Logits, Model, Variables

Inputs = Shaped[Array | np.ndarray, "batch ..."]

TRAINING_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "is_train": True,
    "train_mode": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
    "inference_mode": False,
    "eval": False,
    "is_eval": False,
    "eval_mode": False,
    "evaluation": False,
    "testing": False,
}
"""What modules call their training mode → the value that turns it on."""

Training = str | Mapping[str, bool] | None
"""How one says what a module calls its training mode: by name; or by name → the value in training,
where the name is none of `TRAINING_MODES`; {}: it has none. None: it is looked for."""


def training_flags(call: Callable, training: Training = None) -> dict[str, bool]:
    """What puts a module into training mode: names of arguments → their values in it.

    Args:
      call: a module's ``__call__``, bound to it.
      training: what its user says of it.

    Returns:
      Often one name, or none.

    Raises:
      ValueError: if what is said does not fit; if nothing is, and there are arguments that may be
        the training mode, or have to be given.
    """
    taken = list(inspect.signature(call).parameters.values())[1:]  # But for the inputs.
    open_ended = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in taken)
    named = {p.name: p for p in taken if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    module = type(getattr(call, "__self__", call)).__name__
    flags = given_flags(training) if training is not None else {}
    if training is None:
        flags = {name: on for name, on in TRAINING_MODES.items() if name in named}
    for name in flags:
        if not open_ended:
            choose(f"argument of {module}.__call__ for training", name, named)
    left = {name: parameter for name, parameter in named.items() if name not in flags}
    needed = [name for name, p in left.items() if p.default is p.empty]
    asked = [] if flags or training is not None else [n for n, p in left.items() if is_flag(p)]
    if needed or asked:
        about = ", ".join(dict.fromkeys([*needed, *asked]))
        raise ValueError(
            f"{module}.__call__ takes {about} besides the inputs: say what is its training mode, "
            f"training={{{(asked or needed)[0]!r}: True}} with the value in training, or "
            "training={} for none; arguments that are always needed take a module around it."
        )
    return flags


def given_flags(training: Any) -> dict[str, bool]:
    """The flags that a user names: name → the value in training.

    Raises:
      ValueError: for what is no name, or a name that does not say which value is meant.
    """
    if isinstance(training, str):
        if training not in TRAINING_MODES:
            raise ValueError(
                f"training={training!r} does not say which value is that of training: "
                f"training={{{training!r}: True}}, or False."
            )
        return {training: TRAINING_MODES[training]}
    fits = isinstance(training, Mapping) and all(
        isinstance(name, str) and isinstance(on, bool) for name, on in training.items()
    )
    if not fits:
        raise ValueError(
            "training must be the name of the module's argument for it, or of name to its value "
            f"in training, True or False, not {shown(training)}."
        )
    return dict(training)


def is_flag(parameter: inspect.Parameter) -> bool:
    """Whether an argument may be a training mode: it is a bool, or nothing says what it is."""
    if parameter.annotation is not parameter.empty:
        return "bool" in str(parameter.annotation)  # bool | None, and annotations that are strings
    return parameter.default is parameter.empty or isinstance(parameter.default, bool)


def options_of(flags: Mapping[str, bool], train: bool) -> dict[str, Any]:
    """The arguments that put a module into training mode, or out of it."""
    return {name: on == train for name, on in flags.items()}


def keep_dtypes(new: Any, old: Any) -> Any:
    """Casts the leaves of ``new`` to the dtypes of ``old``: a step must not change them."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def from_linen(module: nn.Module, training: Training = None) -> Model:
    """Wraps a Linen module as a `Model`.

    Training mode is looked for among the arguments of the module's ``__call__``, by the names of
    `TRAINING_MODES` (``train``, ``training``, ``deterministic``, ``inference`` ...), and asked for
    where it may have another one. ``key`` serves every random stream the module asks for
    (``dropout`` or any other). In training mode every collection of the variables but ``params`` is
    updated.

    Args:
      module: a module whose ``__call__`` takes a batch of inputs first and returns logits.
      training: what its argument for the training mode is called: ``"inference"``; or, of any name,
        with the value in training: ``{"frozen": False}``; ``{}``: there is none. None: it is found.

    Returns:
      The model. Its ``init`` runs a forward pass: under `jax.jit` only the initialisers remain.

    Raises:
      ValueError: if it is no Linen module; if its training mode cannot be found, or what it takes
        besides.
    """
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise ValueError(
            f"from_linen takes a module, not its class: from_linen({module.__name__}(...))."
        )
    hint = "from_nnx(make_module) takes NNX's" if isinstance(module, nnx.Module) else "of Flax"
    expect("module", module, nn.Module, f"a Linen module ({hint})")
    if not callable(module):
        raise ValueError(f"{type(module).__name__} has no __call__: a module is called on inputs.")
    flags = training_flags(module.__call__, training)

    def init(key: Key, x: Inputs) -> Variables:
        return dict(module.init(key, x, **options_of(flags, False)))

    def apply(
        variables: Variables, x: Inputs, train: bool = False, key: Key | None = None
    ) -> tuple[Logits, Variables]:
        options = options_of(flags, train)
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


def from_nnx(make_module: Callable[..., nnx.Module], training: Training = None) -> Model:
    """Wraps an NNX module as a `Model`.

    ``variables`` is a plain dict of dicts with string keys: ``params`` for every `nnx.Param`,
    ``batch_stats`` for `nnx.BatchStat`, ``state`` for other variables, each of the latter two only
    if there are any. Random streams are no variables: ``key`` sets them again in every call.
    Training mode is set by the module's own ``train()`` and ``eval()``, and by the argument of its
    ``__call__`` if it has one, as of `from_linen`.

    Args:
      make_module: makes the module, every time alike; takes `flax.nnx.Rngs`, as its argument
        ``rngs`` if it has one of that name: a class will often do.
      training: as of `from_linen`.

    Returns:
      The model. Its ``init`` does not look at ``x``: NNX modules know their shapes.

    Raises:
      ValueError: if it does not make an NNX module of random streams alone; for a training mode as
        of `from_linen`.
    """
    make = with_rngs(make_module)
    # The module's structure and its variables' shapes: nothing is computed yet.
    abstract = attempt("make_module fails", nnx.eval_shape, lambda: made(make, nnx.Rngs(0)))
    graph, template = nnx.split(abstract)
    if not callable(abstract):
        raise ValueError(
            f"{type(abstract).__name__} has no __call__: a module is called on inputs."
        )
    flags = training_flags(abstract.__call__, training)

    def init(key: Key, x: Inputs) -> Variables:
        return to_variables(nnx.state(make(nnx.Rngs(key))))

    def apply(
        variables: Variables, x: Inputs, train: bool = False, key: Key | None = None
    ) -> tuple[Logits, Variables]:
        module: Any = nnx.merge(graph, to_state(template, variables, key, train))
        module.train() if train else module.eval()
        logits = module(x, **options_of(flags, train))
        if not train:
            return logits, variables
        updated = to_variables(nnx.state(module)) | {"params": variables["params"]}
        return logits, keep_dtypes(updated, variables)

    return Model(init, apply)


def with_rngs(make_module: Callable[..., nnx.Module]) -> Callable[[nnx.Rngs], nnx.Module]:
    """The same as a function of random streams alone, whatever its argument for them is called.

    Raises:
      ValueError: if it is no such function.
    """
    example = "from_nnx(lambda rngs: Net(..., rngs=rngs))"
    if isinstance(make_module, nnx.Module | nn.Module) or not callable(make_module):
        raise ValueError(
            "from_nnx takes a function of nnx.Rngs that makes the module, not "
            f"{shown(make_module)}: {example}; from_linen(module) takes Linen's."
        )
    # Of a class NNX hides what its __init__ takes.
    is_class = isinstance(make_module, type)
    taken = functools.partial(make_module.__init__, None) if is_class else make_module
    signature = inspect.signature(taken)
    # By its name where it has that, or where nothing has a place: (*args, **options) may hide it.
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    placed = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    hidden = not placed & {*kinds.values()} and inspect.Parameter.VAR_KEYWORD in kinds.values()
    by_name = hidden or kinds.get("rngs") in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    try:
        signature.bind(**{"rngs": None}) if by_name else signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"make_module must take nnx.Rngs and nothing else ({error}): {example}."
        ) from error
    return lambda rngs: make_module(rngs=rngs) if by_name else make_module(rngs)


def made(make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """The module.

    Raises:
      ValueError: if what is made is something else.
    """
    module = make(rngs)
    expect("What make_module gives", module, nnx.Module, "an NNX module")
    return module


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
