"""The rate of convergence on a nonconvex problem whose smoothness is known.

    python -m experiments.convergence --preset cpu

N agents take K steps at a rate of √(N/K). For smooth nonconvex problems theory has the mean squared
norm of the gradient at the mean of all agents fall as 1/√(NK) (Lian et al. 2017, arXiv 1705.09056,
corollary 2, for DSGD; DIMAT's theorem has the same leading term). Here that is fitted: an exponent
for N and one for K, for DSGD, which averages in every step, and for DIMAT, which aligns and merges
every so many steps.
"""

import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dimat_jax.config import Config
from experiments import studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dimat_jax.datasets import Data
    from dimat_jax.simulation.session import Session
    from dimat_jax.types import Task

NAME = "convergence"
METHODS = ("dsgd", "dimat")

UNITS, INPUTS = 8, 8
LABEL_NOISE = 0.3
CURVATURE = 2 * 4 / (3 * 3**0.5) + 1
"""``max |r| · max |tanh″| + max |tanh′|²``, see `committee`; max |tanh″| is 4 / (3 √3)."""


class Study(NamedTuple):
    """A preset.

    Attributes:
      agents: numbers N.
      steps: numbers K.
      every: steps between two merges, and between two measurements.
      seeds: of each.
    """

    agents: tuple[int, ...]
    steps: tuple[int, ...]
    every: int
    seeds: int


STUDIES = {
    "cpu": Study((2, 4, 8, 16), (256, 1024, 4096), 32, 3),
    "smoke": Study((2, 4), (64, 256), 32, 2),
}


def committee() -> "Task":
    """The mean of `UNITS` tanh units against a label, squared, for inputs of norm 1: smooth, L ≤ 1.

    With r the mean of ``tanh(w_h · a)`` minus y, both within [−1, 1], the Hessian of r²/2 is at
    most ``|r| max |tanh″| / H`` from the units' curvature and ``max |tanh′|² / H`` from the product
    of gradients. The loss is r²/2 divided by the sum of the two. Not convex: units may be permuted.
    """
    import jax
    import jax.numpy as jnp

    from dimat_jax.types import Task

    def predict(variables: Any, batch: Any) -> Any:
        return jnp.tanh(batch["inputs"] @ variables["params"]["hidden"]).mean(-1)

    def init(key: Any, batch: Any) -> Any:
        return {"params": {"hidden": jax.random.normal(key, (INPUTS, UNITS))}}

    def loss(variables: Any, batch: Any, key: Any = None, train: bool = False) -> Any:
        rest = predict(variables, batch) - batch["targets"]
        return jnp.square(rest) / 2 * UNITS / CURVATURE, {}, variables

    return Task(init, loss, predict)


def examples(number: int, seed: int) -> "Data":
    """Inputs on the sphere; labels of a committee that learned from nobody, with noise of ±0.3."""
    import numpy as np

    from dimat_jax.datasets import Data

    rng = np.random.default_rng([seed, 7])
    inputs = rng.standard_normal((number, INPUTS))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    teacher = 4 * rng.standard_normal((INPUTS, UNITS))
    signs = rng.choice([-1.0, 1.0], number)
    targets = (1 - LABEL_NOISE) * np.tanh(inputs @ teacher).mean(1) + LABEL_NOISE * signs
    train = {"inputs": inputs.astype(np.float32), "targets": targets.astype(np.float32)}
    test = {name: values[:100] for name, values in train.items()}
    return Data(train, test, "a committee of tanh units (synthetic)", synthetic=True)


def measure(study: Study, options: studies.Options, folder: pathlib.Path) -> "tuple[str, Figure]":
    """Measures what is not measured yet; what the page says, and its picture."""
    from dimat_jax.execution.devices import prepare_devices
    from experiments.reports.convergence import picture, report

    prepare_devices(max(study.agents))
    rows = []
    for seed, agents, steps in itertools.product(range(study.seeds), study.agents, study.steps):
        found = studies.cell(
            folder,
            f"{agents}-{steps}-{seed}",
            {"study": study, "seed": seed},
            lambda seed=seed, agents=agents, steps=steps: gradients(study, agents, steps, seed),
        )
        rows += [{**row, "agents": agents, "steps": steps, "seed": seed} for row in found]
    return report(study, rows), picture(rows)


def session_of(study: Study, agents: int, steps: int, seed: int) -> "Session":
    """A run of so many steps: a round is `Study.every` of them, of examples never seen before."""
    import dimat_jax as dj
    from dimat_jax.simulation.session import session_of as of_setup

    config = Config(
        agents=agents,
        topology="exponential",
        examples_per_agent=max(study.steps),
        batch_size=1,
        optimizer="sgd",
        learning_rate=(agents / steps) ** 0.5,
        round_rate=1.0,
        init="same",
        pretrain_epochs=0,
        rounds=steps // study.every,
        merge_frame="own",
        align_every=1,
        merge_at_end=False,
        merged_every=0,
        evaluate_every=steps,
        methods=METHODS,
        seeds=(seed,),
    )
    data = examples(max(study.agents) * max(study.steps), seed)
    session = dj.make_session(config, dataset=data, task=committee())
    return of_setup(session.setup._replace(epoch_examples=(study.every, study.every)))


def gradient_norm(data: "Data") -> Callable[[Any], float]:
    """``(variables [agents, ...]) -> ‖∇f(x̄)‖²``, f the mean loss over all examples."""
    import jax
    import jax.numpy as jnp

    task = committee()

    @jax.jit
    def squared(variables: Any) -> Any:
        mean = jax.tree.map(lambda leaf: leaf.mean(0), variables)
        found = jax.grad(lambda x: task.loss(x, data.train)[0].mean())(mean)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(found))

    return lambda variables: float(squared(variables))


def gradients(study: Study, agents: int, steps: int, seed: int) -> studies.Rows:
    """Runs both methods.

    Returns:
      For each ``gradient``: the mean over the run of ‖∇f(x̄)‖², measured after every round; and the
      ``last`` of them.
    """
    import jax

    from dimat_jax.simulation.plan import Action

    session = session_of(study, agents, steps, seed)
    norm = gradient_norm(examples(max(study.agents) * max(study.steps), seed))
    found: dict[str, list[float]] = {method: [] for method in METHODS}

    def watch(event: Any, state: Any, row: Any) -> None:
        if event.action is Action.TRAIN:
            found[event.method].append(norm(jax.device_get(state.agents.variables)))

    studies.run_methods(session, studies.pretrain(session), METHODS, watch)
    return [
        {"method": method, "gradient": sum(values) / len(values), "last": values[-1]}
        for method, values in found.items()
    ]


if __name__ == "__main__":
    sys.exit(studies.main(NAME, __doc__, STUDIES, measure))
