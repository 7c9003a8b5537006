"""Checks of a task and of examples, which may be anybody's, before anything compiles."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from dimat_jax.datasets import Dataset
from dimat_jax.datasets.data import Data, examples_of
from dimat_jax.registry import attempt, expect
from dimat_jax.simulation.own_model import check_variables, described, to_default_floats
from dimat_jax.symmetries.networks import leaves_by_path
from dimat_jax.tasks import TASKS
from dimat_jax.training.evaluation import LOSS
from dimat_jax.types import Batch, Task, Variables

CHECKED = 2
"""Examples in the batch on which a task is checked: more than one, so that their axis shows."""


def check_data(data: Data) -> Data:
    """Checks examples of one's own.

    Returns:
      The same with host arrays.

    Raises:
      ValueError: for leaves that are no arrays, or differ in length or between the two splits; for
        features that are not finite; for labels that are no integers of the training examples.
    """
    splits = {}
    for split, tree in (("train", data.train), ("test", data.test)):
        what = f"{split} of dj.Data must be a pytree of arrays [examples, ...]"
        tree = jax.tree.map(functools.partial(attempt, what, np.asarray), tree)
        leaves = leaves_by_path(tree)
        if not leaves or any(x.ndim == 0 or x.dtype == object for x in leaves.values()):
            raise ValueError(f"{what}.")
        lengths = {name: len(x) for name, x in leaves.items()}
        if len(set(lengths.values())) > 1 or not all(lengths.values()):
            said = ", ".join(f"{name or split!r} {n}" for name, n in lengths.items())
            raise ValueError(f"{split} of {data.name} holds different numbers of examples: {said}.")
        for name, x in leaves.items():
            check_finite(f"{split} {name!r}", x)
        splits[split] = tree
    kinds = [
        {path: (x.shape[1:], x.dtype) for path, x in leaves_by_path(tree).items()}
        for tree in splits.values()
    ]
    for name in {**kinds[0], **kinds[1]}:
        if kinds[0].get(name) != kinds[1].get(name):
            raise ValueError(
                f"Leaf {name!r} of {data.name} is {kinds[0].get(name, 'missing')} in training and "
                f"{kinds[1].get(name, 'missing')} in test: they must be alike."
            )
    labels = data.labels
    if labels is not None:
        labels = attempt("labels must be an array", np.asarray, labels)
        number = examples_of(splits["train"])
        if labels.shape != (number,) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels of {data.name} are {labels.dtype} of shape {labels.shape}: they must be "
                f"integers of shape {(number,)}, one for each training example."
            )
    expect("The name of dj.Data", data.name, str, "a string")
    return data._replace(**splits, labels=labels)


def check_finite(name: str, values: Any) -> None:
    """Raises a `ValueError` for numbers that are not finite, with the column of the first."""
    if not np.issubdtype(values.dtype, np.floating):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        column = f", column {list(where[1:])}" if len(where) > 1 else ""
        raise ValueError(f"{name} is {values[where]} in example {where[0]}{column}.")


def classes_of(data: Data, images: Dataset | None) -> int | None:
    """How many classes a batch's ``labels`` go by; None: there are none."""
    if images is not None:
        return images.num_classes
    both = [tree.get("labels") for tree in (data.train, data.test) if isinstance(tree, dict)]
    found = [
        x for x in both if x is not None and x.ndim == 1 and np.issubdtype(x.dtype, np.integer)
    ]
    return 1 + max(int(x.max()) for x in found) if len(found) == 2 else None


def what_to_learn(data: Data) -> tuple[str, int]:
    """What examples hold to be learned, one of `TASKS`, and how many outputs a model needs for it.

    Raises:
      ValueError: for examples that do not say it.
    """
    held = data.train if isinstance(data.train, dict) else {}
    kinds = [kind for kind in TASKS if kind in held]
    classes = classes_of(data, None)
    if kinds == ["labels"] and classes is not None:
        return "labels", classes
    if kinds == ["targets"]:
        return "targets", int(np.prod(held["targets"].shape[1:]))
    if kinds == ["tokens"]:
        return "tokens", 1 + max(int(tree["tokens"].max()) for tree in (data.train, data.test))
    raise ValueError(
        f"Examples of {data.name} are no dict with integer labels, targets or tokens: task= must "
        "say what agents learn."
    )


def abstract_batch(data: Data, examples: int) -> Batch:
    """Shapes and dtypes of a batch of training examples as a task takes it.

    Raises:
      ValueError: if ``prepare`` or ``augment`` of the data fails.
    """

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((examples, *x.shape[1:]), dtype)

    batch = jax.tree.map(shape, data.train)
    if data.augment is not None:
        augment = functools.partial(jax.eval_shape, data.augment)
        batch = attempt("augment of dj.Data fails", augment, jax.random.key(0), batch)
    if data.prepare is not None:
        prepare = functools.partial(jax.eval_shape, data.prepare)
        batch = attempt("prepare of dj.Data fails", prepare, batch)
    return batch


def abstract_task(task: Task, data: Data) -> tuple[tuple[Variables, Batch], tuple[str, ...]]:
    """The shapes of one agent's variables and of a batch of one example; the metrics' names.

    Raises:
      ValueError: if the task's functions fail on such batches, or give something else than a `Task`
        has to.
    """
    batch, key = abstract_batch(data, CHECKED), jax.random.key(0)
    init = functools.partial(jax.eval_shape, task.init)
    variables = attempt("The task's init fails", init, key, batch)
    check_variables(variables)
    abstract = to_default_floats(variables)
    names: tuple[str, ...] = ()
    for train in (False, True):
        when = "in training" if train else "in evaluation"
        loss = functools.partial(task.loss, key=key if train else None, train=train)
        shapes = functools.partial(jax.eval_shape, loss)
        given = attempt(f"The task's loss fails {when}", shapes, abstract, batch)
        names = check_losses(given, abstract, when, names)
    outputs = functools.partial(jax.eval_shape, task.outputs)
    attempt("The task's outputs fail", outputs, abstract, batch)
    check_outputs(task, abstract, batch)
    return (abstract, abstract_batch(data, 1)), names


def check_outputs(task: Task, variables: Variables, batch: Batch) -> None:
    """Raises a `ValueError` for a parameter that the loss depends on but the outputs do not.

    Hidden units are found by what leaves the outputs as they are; the loss must stay, too.
    """

    def losses(variables: Variables, batch: Batch) -> Any:
        return task.loss(variables, batch)[0]

    of_loss, of_outputs = (reads(f, variables, batch) for f in (losses, task.outputs))
    for path in of_loss:
        if path.startswith("params/") and path not in of_outputs:
            raise ValueError(
                f"The task's outputs do not depend on {path!r}, but its loss does: outputs must "
                "hold all that the loss is made of."
            )


def reads(function: Callable[..., Any], variables: Variables, batch: Batch) -> list[str]:
    """Which leaves of the variables the results of a function depend on."""
    jaxpr = jax.make_jaxpr(function)(variables, batch).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return [path for path, read in zip(leaves_by_path(variables), used, strict=False) if read]


def check_losses(
    given: Any, variables: Variables, when: str, before: tuple[str, ...]
) -> tuple[str, ...]:
    """Raises a `ValueError` unless a task's loss gives losses, metrics and variables.

    Returns:
      The metrics' names.
    """
    if not isinstance(given, tuple) or len(given) != 3 or not isinstance(given[1], dict):
        raise ValueError(
            f"The task's loss must give (losses, metrics, variables) {when}, not "
            f"{described(given)}."
        )
    losses, metrics, after = given
    if not isinstance(losses, jax.ShapeDtypeStruct) or losses.shape != (CHECKED,):
        raise ValueError(
            f"The task's loss gives {described(losses)} {when} for {CHECKED} examples: it must be "
            f"one loss of each, an array of shape {(CHECKED,)}."
        )
    for name, metric in metrics.items():
        parts = metric if isinstance(metric, tuple) else (metric,)
        fits = all(isinstance(x, jax.ShapeDtypeStruct) and x.shape == (CHECKED,) for x in parts)
        if not fits or len(parts) not in (1, 2) or name == LOSS or not isinstance(name, str):
            raise ValueError(
                f"The metric {name!r} must be a number of each example, or a sum and a count of "
                f"each, and not be called {LOSS!r}; {when} it is {described(metric)}."
            )
    if before and tuple(metrics) != before:
        raise ValueError(
            f"The task's metrics are {', '.join(before)} in evaluation and "
            f"{', '.join(metrics) or 'none'} in training: they must be the same."
        )
    given, back = (
        {path: (x.shape, x.dtype) for path, x in leaves_by_path(tree).items()}
        for tree in (variables, after)
    )
    wrong = [path for path in {**given, **back} if given.get(path) != back.get(path)]
    if wrong:
        raise ValueError(
            f"The task's loss must return variables like those that it is given: {when} "
            f"{wrong[0]} differs."
        )
    return tuple(metrics)
