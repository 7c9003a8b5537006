"""Checks of a task and of examples, which may be anybody's, before anything compiles."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters.partial_eval import dce_jaxpr

from dimat_jax.datasets.base import check_finite
from dimat_jax.datasets.data import Data, examples_of
from dimat_jax.registry import attempt, expect, shown
from dimat_jax.simulation.own_model import (
    check_returned,
    check_variables,
    described,
    plain,
    to_default_floats,
)
from dimat_jax.symmetries.networks import leaves_by_path
from dimat_jax.tasks import TASKS
from dimat_jax.training.evaluation import LOSS, LogTotal, Total, total_of
from dimat_jax.training.optimizers import own_hyperparams
from dimat_jax.types import Batch, Key, Task, Variables

CHECKED = (2, 3)
"""Examples in the batches on which a task is checked: several, so that their axis shows, and twice,
so that no other axis is as long."""
PREPARED_AT_ONCE = 4096
"""Examples, where all of them are prepared before a run."""


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
        if not leaves or any(x.ndim == 0 for x in leaves.values()):
            raise ValueError(f"{what}.")
        for name, x in leaves.items():
            if not jnp.issubdtype(x.dtype, jnp.number) and x.dtype != bool:
                raise ValueError(f"{split} {name!r} is of {x.dtype}: it must be of numbers.")
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


def what_to_learn(data: Data) -> tuple[str, int]:
    """What examples hold to be learned, one of `TASKS`, and how many outputs a model needs for it.

    Raises:
      ValueError: for examples that do not say it; for labels or tokens that do not count from 0.
    """
    held = data.train if isinstance(data.train, dict) else {}
    kinds = [kind for kind in TASKS if kind in held]
    if kinds == ["targets"]:
        return "targets", int(np.prod(held["targets"].shape[1:]))
    values = [tree[kinds[0]] for tree in (data.train, data.test)] if len(kinds) == 1 else []
    if not values or not all(np.issubdtype(x.dtype, np.integer) for x in values):
        raise ValueError(
            f"Examples of {data.name} are no dict with integer labels, targets or tokens: task= "
            "must say what agents learn."
        )
    least, most = min(int(x.min()) for x in values), max(int(x.max()) for x in values)
    if least < 0:
        raise ValueError(f"{kinds[0]} of {data.name} must count from 0, but one is {least}.")
    return kinds[0], most + 1


MAX_CLASSES = 1000
"""Accuracies of more classes than these are not told apart: labels may be anything's numbers."""


def classes_of(task: Task, abstract: tuple[Variables, Batch], data: Data) -> int | None:
    """By how many classes the accuracy of a task of one's own is told apart; None: by none.

    It is where each example has an accuracy and one label in ``labels``, counted from 0.
    """
    _, metrics, _ = jax.eval_shape(task.loss, *abstract)
    splits = [x for x in (data.train, data.test) if isinstance(x, dict) and "labels" in x]
    labels = [np.asarray(x["labels"]) for x in splits]
    if len(labels) < 2 or isinstance(metrics.get("accuracy", ()), tuple):
        return None
    if not all(x.ndim == 1 and np.issubdtype(x.dtype, np.integer) for x in labels):
        return None
    least, most = min(int(x.min()) for x in labels), max(int(x.max()) for x in labels)
    return most + 1 if 0 <= least and most < MAX_CLASSES else None


def targets_mean(data: Data) -> Any:
    """The mean of the training targets as the task takes them, from which R² counts."""
    if not isinstance(data.train, dict) or "targets" not in data.train:
        return 0.0
    if data.prepare is None:
        return data.train["targets"].mean(0, dtype=np.float64)
    total = 0.0
    for start in range(0, examples_of(data.train), PREPARED_AT_ONCE):
        rows = jax.tree.map(lambda x: x[start : start + PREPARED_AT_ONCE], data.train)  # noqa: B023
        total += np.asarray(data.prepare(rows)["targets"]).sum(0, dtype=np.float64)
    return total / examples_of(data.train)


def check_outputs_of_model(
    task: Task, abstract: tuple[Variables, Batch], kind: str, number: int, name: str
) -> None:
    """Raises a `ValueError` for a model that has fewer outputs than there are labels or tokens.

    Args:
      task: of the model.
      abstract: shapes of its variables and of a batch.
      kind: what it learns, one of `TASKS`.
      number: of outputs that it needs.
      name: of the data.
    """
    given = jax.eval_shape(task.outputs, *abstract).shape[-1]
    if kind != "targets" and given < number:
        raise ValueError(
            f"The model gives {given} outputs: {kind} of {name} need {number}, one for each."
        )


def check_optimizer(optimizer: optax.GradientTransformation, params: Any, agents: int) -> None:
    """Raises a `ValueError` for an optimizer that cannot take these parameters' gradients alone.

    Args:
      optimizer: of one's own.
      params: shapes and dtypes of one agent's.
      agents: how many there are.
    """

    def step(params: Any) -> Any:
        state = own_hyperparams(optimizer.init(params), 0, agents)
        return optimizer.update(params, state, params)

    what = "The optimizer fails on gradients of the parameters"
    updates, after = attempt(what, functools.partial(jax.eval_shape, step), params)
    if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
        raise ValueError("The optimizer must give updates of the shapes of the parameters.")

    def kinds(state: Any) -> Any:
        return jax.tree.map(lambda x: (x.shape, x.dtype), state)

    before = jax.eval_shape(optimizer.init, params)
    before = jax.eval_shape(lambda state: own_hyperparams(state, 0, agents), before)
    if kinds(before) != kinds(after):
        raise ValueError(
            "The optimizer's state must keep its structure, shapes and dtypes from step to step."
        )


def with_plain_dicts(task: Task) -> Task:
    """The same task, whose variables are plain dicts, if they are Flax's frozen ones."""

    def init(key: Key, batch: Batch) -> Variables:
        return plain(task.init(key, batch))

    def loss(
        variables: Variables, batch: Batch, key: Key | None = None, train: bool = False
    ) -> Any:
        return plain(task.loss(variables, batch, key=key, train=train))

    return Task(init, loss, task.outputs)


def abstract_batch(data: Data, examples: int, train: bool = False) -> Batch:
    """Shapes and dtypes of a batch of examples as a task takes it, in training or not.

    Raises:
      ValueError: if ``prepare`` or ``augment`` of the data fails.
    """

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((examples, *x.shape[1:]), dtype)

    batch = jax.tree.map(shape, data.train)
    if train and data.augment is not None:
        augment = functools.partial(jax.eval_shape, data.augment)
        batch = attempt("augment of dj.Data fails", augment, jax.random.key(0), batch)
    if data.prepare is not None:
        prepare = functools.partial(jax.eval_shape, data.prepare)
        batch = attempt("prepare of dj.Data fails", prepare, batch)
    return batch


def abstract_task(
    task: Task, data: Data
) -> tuple[tuple[Variables, Batch], dict[str, type[Total | LogTotal]]]:
    """The shapes of one agent's variables and of an example; what each metric adds up to.

    Raises:
      ValueError: if the task's functions fail on such batches, or give something else than a `Task`
        has to.
    """
    batch, key = abstract_batch(data, 1), jax.random.key(0)
    init = functools.partial(jax.eval_shape, task.init)
    variables = attempt("The task's init fails", init, key, batch)
    check_variables(variables)
    abstract = to_default_floats(variables)
    metrics = None
    for train, examples in itertools.product((False, True), CHECKED):
        when = "in training" if train else "in evaluation"
        loss = functools.partial(task.loss, key=key if train else None, train=train)
        shapes = functools.partial(jax.eval_shape, loss)
        taken = abstract_batch(data, examples, train)
        given = attempt(f"The task's loss fails {when}", shapes, abstract, taken)
        metrics = check_losses(given, abstract, examples, when, metrics)
    assert metrics is not None
    outputs = functools.partial(jax.eval_shape, task.outputs)
    attempt("The task's outputs fail", outputs, abstract, batch)
    check_outputs(task, abstract, batch, abstract_batch(data, 1, train=True))
    return (abstract, batch), metrics


def check_outputs(task: Task, variables: Variables, batch: Batch, trained: Batch) -> None:
    """Raises a `ValueError` for a variable that the loss depends on but the outputs do not.

    Hidden units are found by what leaves the outputs as they are; the loss must stay, too, in
    evaluation and in training.

    Args:
      task: of one's own.
      variables: shapes of an agent's.
      batch: shapes of a batch in evaluation.
      trained: and in training.
    """

    def losses(variables: Variables, both: tuple[Batch, Batch]) -> Any:
        key = jax.random.key(0)
        evaluated = task.loss(variables, both[0])[0]
        return evaluated, task.loss(variables, both[1], key=key, train=True)[0]

    of_loss = reads(losses, variables, (batch, trained))
    of_outputs = reads(task.outputs, variables, batch)
    for path in of_loss:
        # Statistics are of training or of evaluation; parameters are of both.
        if path not in of_outputs and path.startswith("params"):
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
    given: Any,
    variables: Variables,
    examples: int,
    when: str,
    before: dict[str, type[Total | LogTotal]] | None,
) -> dict[str, type[Total | LogTotal]]:
    """Raises a `ValueError` unless a task's loss gives losses, metrics and variables.

    Args:
      given: by the loss, abstract.
      variables: that it was given.
      examples: in the batch.
      when: in training or in evaluation.
      before: what was found of the metrics before; None: nothing yet.

    Returns:
      What each metric adds up to.
    """
    if not isinstance(given, tuple) or len(given) != 3 or not isinstance(given[1], dict):
        raise ValueError(
            f"The task's loss must give (losses, metrics, variables) {when}, not "
            f"{described(given)}."
        )
    losses, metrics, after = given
    shape = (examples,)
    if not isinstance(losses, jax.ShapeDtypeStruct) or losses.shape != shape:
        raise ValueError(
            f"The task's loss gives {described(losses)} {when} for {examples} examples: it must be "
            f"one loss of each, an array of shape {shape}."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"The task's losses are {losses.dtype} {when}: they must be real floats.")
    for name, metric in metrics.items():
        check_name(name)
        parts = metric if isinstance(metric, tuple) else (metric,)
        fits = all(isinstance(x, jax.ShapeDtypeStruct) and x.shape == shape for x in parts)
        if not fits or (isinstance(metric, tuple) and len(parts) != 2):
            raise ValueError(
                f"The metric {name!r} must be a number of each example, or a sum and a count of "
                f"each; {when} it is {described(metric)}."
            )
    found = {name: total_of(metric) for name, metric in metrics.items()}
    if before is not None and found != before:
        raise ValueError(
            f"The task's metrics are {', '.join(before) or 'none'} in evaluation and "
            f"{', '.join(metrics) or 'none'} in training: they must be the same, of one kind."
        )
    check_returned("The task's loss", variables, after, when)
    return found


TAKEN = ("_std", "_agents", "_classes")
"""With what the entries of a row end that are of agents and of classes."""


def check_name(name: Any) -> None:
    """Raises a `ValueError` for a metric whose entries in a row would be taken for others."""
    if not isinstance(name, str) or name == LOSS or name.endswith(TAKEN):
        raise ValueError(
            f"A metric must be called by a string, not {LOSS!r} nor with {', '.join(TAKEN)} at its "
            f"end, and not {shown(name)}."
        )
