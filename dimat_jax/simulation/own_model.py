"""Checks of a model, which may be anybody's: what it takes and gives, before anything compiles."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from dimat_jax.datasets import Dataset
from dimat_jax.merging.statistics import moved_by_training, running_statistics
from dimat_jax.registry import attempt
from dimat_jax.symmetries.groups import path_name
from dimat_jax.symmetries.networks import leaves_by_path
from dimat_jax.types import Model, Variables

TRAINED = 2
"""Images in the batch on which a training pass is checked; what is checked in evaluation has 1."""


def abstract_inputs(model: Model, dataset: Dataset) -> tuple[Variables, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one agent's variables and of an image; no weight is computed.

    Raises:
      ValueError: if the model cannot take the images, gives something else than logits of the data
        set's classes and its variables, or has variables that cannot be trained and merged.
    """
    dtype, key = jnp.result_type(float), jax.random.key(0)
    image = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), dtype)
    shape = list(image.shape)
    init = functools.partial(jax.eval_shape, model.init)
    variables = attempt(f"The model's init fails on images of shape {shape}", init, key, image)
    check_variables(variables)
    abstract = jax.tree.map(lambda x: _floating(x, dtype), variables)
    for train in (False, True):
        size = TRAINED if train else 1
        images = jax.ShapeDtypeStruct((size, *shape[1:]), dtype)
        when = "in training" if train else "in evaluation"
        apply = functools.partial(model.apply, train=train, key=key if train else None)
        given = attempt(
            f"The model's apply fails {when} on images of shape {[size, *shape[1:]]}",
            functools.partial(jax.eval_shape, apply),
            abstract,
            images,
        )
        check_given(given, abstract, when, size, dataset)
    if not jax.tree.leaves(abstract["params"]):
        raise ValueError("The model has no parameters: there is nothing to train and to merge.")
    warn_of_training_mode(model, abstract, images)
    return abstract, image


def check_variables(variables: Any) -> None:
    """Raises a `ValueError` unless variables are a dict with parameters that can be trained."""
    if not isinstance(variables, dict) or "params" not in variables:
        raise ValueError(
            "The model's init must give a dict with 'params' (and 'batch_stats', if there are "
            f"any), not {described(variables)}: {{'params': ...}} around it will do."
        )
    for path, leaf in jax.tree.leaves_with_path({"params": variables["params"]}):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"The model's {path_name(path)} is of {leaf.dtype}: parameters that agents train "
                "must be real floating-point numbers (complex ones in two parts, real and "
                "imaginary; what is not trained beside params)."
            )


def check_given(
    given: Any, variables: Variables, when: str, examples: int, dataset: Dataset
) -> None:
    """Raises a `ValueError` unless ``apply`` has given logits, and variables like the given ones.

    Args:
      given: shapes and dtypes of what it has.
      variables: shapes and dtypes of what it was given.
      when: the mode, for the message.
      examples: in the batch.
      dataset: whose classes there are.
    """
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], dict):
        raise ValueError(
            f"The model's apply must give (logits, variables) {when}, not {described(given)}."
        )
    logits, after = given
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise ValueError(
            f"The model gives {described(logits)} {when}: it must give logits alone, an array "
            "[examples, classes]; a module around it can choose them."
        )
    expected = (examples, dataset.num_classes)
    if logits.shape != expected:
        images = "one image" if examples == 1 else f"{examples} images"
        raise ValueError(
            f"The model gives logits of shape {logits.shape} for {images}: they must be of shape "
            f"{expected}, as {dataset.name} has {dataset.num_classes} classes."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"The model gives logits of {logits.dtype}: they must be real floating-point numbers."
        )
    before, now = (
        {path: (x.shape, x.dtype) for path, x in leaves_by_path(tree).items()}
        for tree in (variables, after)
    )
    wrong = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if wrong:
        described_both = (
            f"of shape {kind[0]} and {kind[1]}" if kind else "missing"
            for kind in (now.get(wrong[0]), before.get(wrong[0]))
        )
        raise ValueError(
            f"The model's apply must return variables like those that it is given: {when} "
            f"{wrong[0]} is {next(described_both)}, and was {next(described_both)}."
        )
    if jax.tree.structure(after) != jax.tree.structure(variables):
        raise ValueError(
            f"The model's apply must return variables like those that it is given: {when} it "
            "returns other containers (dicts, tuples, lists)."
        )


def described(given: Any) -> str:
    """What a function has given, in words."""
    match given:
        case jax.ShapeDtypeStruct():
            return f"an array of shape {given.shape}"
        case dict():
            return f"a dict of {', '.join(map(repr, given)) or 'nothing'}"
        case tuple() | list():
            return f"a {type(given).__name__} of {len(given)}"
    return f"a {type(given).__name__}"


def warn_of_training_mode(model: Model, variables: Variables, images: Any) -> None:
    """Warns of normalisation statistics none of which training moves: it may never be switched on.

    Args:
      model: the model.
      variables: shapes of its variables.
      images: of a batch.
    """
    if "batch_stats" not in variables or not any(running_statistics(variables)):
        return
    if not any(moved_by_training(model, variables, images)):
        warnings.warn(
            "Training moves none of the model's batch_stats: if they are not frozen on purpose, "
            "its training mode is not switched on (training= of dj.from_linen names it).",
            stacklevel=2,
        )


def _floating(x: jax.ShapeDtypeStruct, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """The same shape, in ``dtype`` if it is of floats."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, dtype if floating else x.dtype)
