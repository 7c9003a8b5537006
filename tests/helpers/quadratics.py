"""Strongly convex quadratics, and a run of a gossip method on them, in JAX and in NumPy.

Agent i's loss on a batch is ``½ (x − b_i)ᵀ A_i (x − b_i) + noiseᵀ x``. Its parameters are a pytree
of two leaves of different shapes; flat, they are the rows of ``[agents, size]``.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dimat_jax.algorithms import Gossip, exchanges
from dimat_jax.topology import Topology
from helpers.algorithm_references import Step
from helpers.architectures_helpers import QUICK

SIZE = 7
SHAPES = {"bias": (3,), "kernel": (2, 2)}


class Quadratics(NamedTuple):
    """One quadratic an agent.

    Attributes:
      hessians: A_i, ``[agents, SIZE, SIZE]``.
      minima: b_i, ``[agents, SIZE]``.
    """

    hessians: np.ndarray
    minima: np.ndarray

    @property
    def optimum(self) -> np.ndarray:
        """Where the mean loss is least."""
        return self.weighted_optimum(np.ones(len(self.minima)))

    def weighted_optimum(self, weights: np.ndarray) -> np.ndarray:
        """Where the weighted sum of losses is least."""
        hessian = np.einsum("i,ijk->jk", weights, self.hessians)
        return np.linalg.solve(hessian, np.einsum("i,ijk,ik->j", weights, *self))

    def gradient(self, noise: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
        """The gradient on one step's batch, of noise ``[agents, SIZE]``."""
        return lambda i, x: self.hessians[i] @ (x - self.minima[i]) + noise[i]


def quadratics(agents: int, seed: int = 0, same_hessian: bool = False) -> Quadratics:
    """Random ones of curvatures from 0.5 to 2."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(agents, SIZE, SIZE)))[0]
    curvatures = rng.uniform(0.5, 2, size=(agents, SIZE))
    hessians = np.einsum("iab,ib,icb->iac", axes, curvatures, axes)
    if same_hessian:
        hessians[:] = hessians[0]
    return Quadratics(hessians, rng.normal(size=(agents, SIZE)))


def tree_of(flat):
    """``[..., SIZE]`` as the pytree of parameters."""
    split = {"bias": flat[..., :3], "kernel": flat[..., 3:]}
    return {name: leaf.reshape(flat.shape[:-1] + SHAPES[name]) for name, leaf in split.items()}


def flat_of(tree):
    """The pytree of parameters ``[agents, ...]`` as ``[agents, SIZE]``."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in tree.values()], 1)


def loss(params, hessian, minimum, noise):
    x = jnp.concatenate([params["bias"], params["kernel"].ravel()])
    return (x - minimum) @ hessian @ (x - minimum) / 2 + noise @ x


class Run(NamedTuple):
    """What a run works with: the losses, who hears from whom, and each step's noise and rate.

    Attributes:
      problem: the agents' losses.
      topology: what the run is asked to work on, before a method's `Gossip.graph`.
      start: ``[agents, SIZE]``.
      noise: ``[steps, agents, SIZE]``.
      rates: ``[steps]``.
    """

    problem: Quadratics
    topology: Topology
    start: np.ndarray
    noise: np.ndarray
    rates: np.ndarray


def run_of(
    topology: Topology,
    rates: np.ndarray,
    seed: int = 0,
    noise: float = 0.0,
    same_start: bool = False,
    same_hessian: bool = False,
) -> Run:
    """A run of random quadratics, from random starts."""
    rng, agents = np.random.default_rng(seed), topology.agents
    start = rng.normal(size=(agents, SIZE))
    return Run(
        quadratics(agents, seed + 1, same_hessian),
        topology,
        np.tile(start[0], (agents, 1)) if same_start else start,
        noise * rng.normal(size=(len(rates), agents, SIZE)),
        np.asarray(rates, np.float64),
    )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def scan_steps(gossip, start, problem, exchanges, noise, rates):
    """All agents' models after each step, ``[steps, agents, SIZE]``; exchanges in a period."""
    gradients = jax.vmap(jax.grad(loss))
    period = len(exchanges.matrix)

    def step(carry, inputs):
        params, state, t = carry
        noise, rate = inputs
        exchange = jax.tree.map(lambda x: x[t % period], exchanges)
        points = params, *gossip.points(params, state, exchange)
        taken = tuple(gradients(point, *problem, noise) for point in points)
        params, state = gossip.update(params, taken, state, exchange, rate)
        return (params, state, t + 1), flat_of(params)

    first = gossip.init(tree_of(start), jax.tree.map(lambda x: x[0], exchanges))
    return jax.lax.scan(step, (*first, 0), (noise, rates))[1]


def models(gossip: Gossip, run: Run) -> np.ndarray:
    """A method's models after each step of a run, ``[steps, agents, SIZE]``."""
    rounds = exchanges(gossip.graph(run.topology))
    arrays = jax.tree.map(jnp.asarray, (run.start, run.problem))
    rest = jnp.asarray(run.noise), jnp.asarray(run.rates)
    return np.asarray(scan_steps(gossip, *arrays, rounds, *rest))


def steps_of(run: Run, change: Callable[[np.ndarray], np.ndarray] = lambda m: m) -> list[Step]:
    """The same run for a reference, with what becomes of each mixing matrix."""
    return [
        Step(change(run.topology.mixing_matrix(t)), run.problem.gradient(noise), float(rate))
        for t, (noise, rate) in enumerate(zip(run.noise, run.rates, strict=True))
    ]
