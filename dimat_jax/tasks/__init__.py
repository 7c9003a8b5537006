"""What an agent learns: a loss of each example, metrics, and outputs that permutations must keep.

One file each. May import `models`, `registry` and `types`: it knows nothing of agents or graphs.
"""

from collections.abc import Callable, Mapping

from dimat_jax.tasks.classification import classification as classification
from dimat_jax.tasks.language import language_model as language_model
from dimat_jax.tasks.regression import regression as regression
from dimat_jax.types import Task

TASKS: Mapping[str, Callable[..., Task]] = {
    "labels": classification,
    "targets": regression,
    "tokens": language_model,
}
"""What a batch holds → the task that a model learns of it, each ``(model, **options) -> Task``."""
