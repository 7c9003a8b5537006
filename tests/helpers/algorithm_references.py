"""Every method as its paper writes it, in plain NumPy, one agent's row after the other.

Written from the papers' equations, not from the package: nothing of it is imported here. The
parameters of all agents are the rows of one array ``[agents, size]``; a reference goes through the
steps of a run and yields the models after each.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.optimize


class Step(NamedTuple):
    """One step of a run.

    Attributes:
      matrix: π_ij, ``[agents, agents]``.
      gradient: ``(agent, point [size]) -> [size]``, of that agent's loss on this step's batch.
      rate: α.
    """

    matrix: np.ndarray
    gradient: Callable[[int, np.ndarray], np.ndarray]
    rate: float


Steps = Iterable[Step]
Models = Iterator[np.ndarray]


def own_gradients(step: Step, x: np.ndarray) -> np.ndarray:
    return np.stack([step.gradient(i, x[i]) for i in range(len(x))])


def mix_then_step(x: np.ndarray, steps: Steps, momentum: float = 0.0) -> Models:
    """CDSGD, CDMSGD: Jiang et al. 2017, equation 5 and algorithm 2; D-PSGD: Lian et al. 2017."""
    v = np.zeros_like(x)
    for step in steps:
        v = momentum * v - step.rate * own_gradients(step, x)
        x = step.matrix @ x + v
        yield x


def step_then_mix(x: np.ndarray, steps: Steps) -> Models:
    """DSGD, in the order of Lin et al. 2021, algorithm 1 without momentum."""
    for step in steps:
        x = step.matrix @ (x - step.rate * own_gradients(step, x))
        yield x


def momentum_then_mix(
    x: np.ndarray, steps: Steps, momentum: float = 0.9, nesterov: bool = True
) -> Models:
    """DSGDm-N, or DSGDm: Lin et al. 2021, with the momentum of each agent's own gradients."""
    m = np.zeros_like(x)
    for step in steps:
        g = own_gradients(step, x)
        m = momentum * m + g
        x = step.matrix @ (x - step.rate * (g + momentum * m if nesterov else m))
        yield x


def with_momentum(
    reference: Callable[..., Models],
    x: np.ndarray,
    steps: Steps,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> Models:
    """A method of one gradient a step, with the momentum of each agent's own in its place."""
    m = np.zeros_like(x)

    def of(step: Step) -> Step:
        def direction(i: int, point: np.ndarray) -> np.ndarray:
            g = step.gradient(i, point)
            m[i] = momentum * m[i] + g
            return g + momentum * m[i] if nesterov else m[i].copy()

        return step._replace(gradient=direction)

    return reference(x, map(of, steps))


def quasi_global(
    x: np.ndarray, steps: Steps, momentum: float = 0.9, decay: float = 0.9, nesterov: bool = True
) -> Models:
    """QG-DSGDm-N, or QG-DSGDm: Lin et al. 2021, algorithm 1."""
    buffer = np.zeros_like(x)
    for step in steps:
        g = own_gradients(step, x)
        m = momentum * buffer + g
        following = step.matrix @ (x - step.rate * (g + momentum * m if nesterov else m))
        travelled = (x - following) / step.rate
        buffer = decay * buffer + (1 - decay) * travelled
        x = following
        yield x


def push_sum(x: np.ndarray, steps: Steps) -> Models:
    """SGP: Assran et al. 2019, algorithm 1; yields the de-biased z."""
    w, z = np.ones(len(x)), x
    for step in steps:
        x = step.matrix @ (x - step.rate * own_gradients(step, z))
        w = step.matrix @ w
        z = x / w[:, None]
        yield z


def nearest_without_conflict(g: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The point nearest to ``g`` whose inner product with each row of ``others`` is at least 0.

    By duality it is ``g + othersᵀ u`` for the u ≥ 0 that makes it shortest (Moreau's
    decomposition), a non-negative least-squares problem.
    """
    u, _ = scipy.optimize.nnls(others.T, -g)
    return g + others.T @ u


def cross_gradient(x: np.ndarray, steps: Steps, momentum: float = 0.9) -> Models:
    """CGA: Esfandiari et al. 2021, algorithm 1."""
    v = np.zeros_like(x)
    for step in steps:
        for i, point in enumerate(x):
            neighbors = [j for j in np.flatnonzero(step.matrix[i]) if j != i]
            others = np.reshape([step.gradient(j, point) for j in neighbors], (-1, point.size))
            v[i] = momentum * v[i] + nearest_without_conflict(step.gradient(i, point), others)
        x = step.matrix @ x - step.rate * v
        yield x


def d2(x: np.ndarray, steps: Steps) -> Models:
    """D²: Tang et al. 2018, algorithm 1; where rates differ as exact diffusion (Yuan et al. 2019).

    That is, each gradient counts with the rate of its own step: the mean takes SGD's steps.
    """
    before = None
    for step in steps:
        gradient_step = step.rate * own_gradients(step, x)
        if before is None:
            following = x - gradient_step
        else:
            following = 2 * x - before[0] - (gradient_step - before[1])
        before = x, gradient_step
        x = step.matrix @ following
        yield x


def gradient_tracking(x: np.ndarray, steps: Steps) -> Models:
    """Di Lorenzo & Scutari 2016; DIGing, Nedić et al. 2017, equation 5 with y first."""
    y = before = None
    for step in steps:
        g = own_gradients(step, x)
        y = g if y is None else step.matrix @ y + g - before
        before = g
        x = step.matrix @ x - step.rate * y
        yield x


def relay_sum(x: np.ndarray, steps: Steps) -> Models:
    """RelaySGD: Vogels et al. 2021, algorithm 1, on the tree of the matrix's edges."""
    messages: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], int] = {}
    for step in steps:
        edges = [(int(i), int(j)) for i, j in np.argwhere(step.matrix) if i != j]
        half = x - step.rate * own_gradients(step, x)
        relayed, counted = messages, counts
        messages, counts = {}, {}
        for i, j in edges:
            behind = [(k, i) for k, to in edges if to == i and k != j]
            messages[i, j] = half[i] + sum(relayed.get(edge, 0 * half[i]) for edge in behind)
            counts[i, j] = 1 + sum(counted.get(edge, 0) for edge in behind)
        x = np.empty_like(half)
        for i in range(len(x)):
            heard = [edge for edge in edges if edge[1] == i]
            total = half[i] + sum(messages[edge] for edge in heard)
            x[i] = total / (1 + sum(counts[edge] for edge in heard))
        yield x


def centralized(x: np.ndarray, steps: Steps) -> Models:
    """SGD on all data in one place, from agent 0's parameters."""
    point = x[0]
    for step in steps:
        point = point - step.rate * np.mean([step.gradient(i, point) for i in range(len(x))], 0)
        yield np.tile(point, (len(x), 1))
