"""Time-varying graphs: schedules of sparse rounds, some of which average exactly in a period."""

from collections.abc import Sequence

import numpy as np

from dimat_jax.registry import check_number, expect, shown
from dimat_jax.topology.base import Topology, check_agents, log2_exactly
from dimat_jax.topology.base_graph import base_graph
from dimat_jax.topology.deterministic import circulant

MAX_PERIOD = 100_000
"""Rounds of random meetings, each of which has a matrix of its own."""


def one_peer_exponential(n: int) -> Topology:
    """In round t each agent averages with the one 2^t places ahead: log₂ n rounds give exactly J.

    Ying et al. 2021 (arXiv 2110.13363), eq. 7. Directed, weights 1/2; n a power of two, without
    which the averages are never exact (`base_k` is exact for any n).
    """
    rounds = log2_exactly("one_peer_exponential", n)
    return Topology(
        "one_peer_exponential", np.stack([circulant(n, [0, 2**t]) for t in range(rounds)])
    )


def base_k(n: int, k: int = 1) -> Topology:
    """The Base-(k+1) graph: at most ``k`` neighbours a round, and a period averages exactly.

    Takezawa et al. 2023 (arXiv 2305.11420), algorithm 3: at most ``2 log_{k+1}(n) + 2`` rounds for
    any n. See `dimat_jax.topology.base_graph`.

    Args:
      n: number of agents.
      k: neighbours of an agent in a round, at most.
    """
    check_agents("base_k", n, 2)
    check_number("k", k, whole=True)
    if k < 1:
        raise ValueError(f"k is a number of neighbours, at least 1, not {k}.")
    return Topology("base_k", np.stack(base_graph(n, k)))


def random_peers(n: int, p: float = 0.2, seed: int = 0, period: int = 100) -> Topology:
    """In each round some agents meet one random peer each, and the others nobody.

    Sparse gossip as in arXiv 2507.06542: each agent takes part with probability ``p``; those who do
    are paired at random, at weights 1/2, and an odd one is left out.

    Args:
      n: number of agents.
      p: above 0, at most 1.
      seed: of who meets whom.
      period: rounds after which the meetings repeat.

    Raises:
      ValueError: for an option outside its range.
    """
    check_agents("random_peers", n, 2)
    check_number("p", p)
    check_number("seed", seed, least=0, whole=True)
    check_number("period", period, least=1, most=MAX_PERIOD, whole=True)
    if not 0 < p <= 1:
        raise ValueError(f"p is a probability above 0 and at most 1, not {p}.")
    rng = np.random.default_rng(seed)
    matrices = np.tile(np.eye(n), (period, 1, 1))
    for matrix in matrices:
        active = rng.permutation(np.flatnonzero(rng.random(n) < p))
        for i, j in zip(active[0::2], active[1::2], strict=False):
            matrix[[i, i, j, j], [i, j, i, j]] = 1 / 2
    return Topology("random_peers", matrices)


def random_matching(n: int, seed: int = 0, period: int = 100) -> Topology:
    """In each round all agents are paired at random, and each averages with its one peer.

    A random matching (Boyd et al. 2006), at weights 1/2; of an odd number one agent is left out.

    Args:
      n: number of agents.
      seed: of who meets whom.
      period: rounds after which the meetings repeat.

    Raises:
      ValueError: for an option outside its range.
    """
    check_agents("random_matching", n, 2)
    meetings = random_peers(n, 1.0, seed, period)
    return Topology("random_matching", meetings.mixing_matrices)


def epidemic(
    n: int, s: int | None = None, balanced: int = 1, seed: int = 0, period: int = 100
) -> Topology:
    """In each round every agent sends its model to ``s`` others, drawn anew.

    Epidemic Learning (De Vos et al. 2023, arXiv 2310.01972). Balanced, every agent hears from ``s``
    others as well, at weights 1/(1 + s): doubly stochastic (the paper's EL-Oracle; here one random
    round robin a round). Else those that it sends to are drawn by each agent for itself (EL-Local),
    and it averages whatever comes: rows sum to 1 and columns do not, so that methods which need
    both refuse it.

    Args:
      n: number of agents.
      s: to how many others, below n. None: the binary logarithm of n, rounded up.
      balanced: 1 or 0.
      seed: of who sends to whom.
      period: rounds after which they repeat.

    Raises:
      ValueError: for an option outside its range.
    """
    check_agents("epidemic", n, 2)
    s = min(n - 1, (n - 1).bit_length()) if s is None else s
    check_number("s", s, least=1, most=n - 1, whole=True)
    check_number("balanced", balanced, least=0, most=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    check_number("period", period, least=1, most=MAX_PERIOD, whole=True)
    rng = np.random.default_rng(seed)
    matrices = np.tile(np.eye(n), (period, 1, 1))
    for matrix in matrices:
        if balanced:
            order = rng.permutation(n)
            for step in 1 + rng.choice(n - 1, s, replace=False):
                matrix[np.roll(order, -step), order] = 1
        else:
            for i in range(n):
                matrix[rng.choice(np.delete(np.arange(n), i), s, replace=False), i] = 1
        matrix /= matrix.sum(1, keepdims=True)
    return Topology("epidemic", matrices)


def schedule(parts: Sequence[tuple[float, Topology]], rounds: int) -> Topology:
    """One graph after the other: ``schedule([(0.8, sparse), (0.2, dense)], rounds=20)``.

    Args:
      parts: shares of the rounds, which add up to 1, and graphs, each from its own first round on.
      rounds: of which the shares are; for methods that exchange in every step these are steps.
        Afterwards all begins again.

    Returns:
      A graph of period `rounds`. Each part ends at its share, rounded.

    Raises:
      ValueError: for no part, shares that do not add up to 1, a part without a round, or graphs of
        different numbers of agents.
    """
    check_number("rounds", rounds, least=1, most=MAX_PERIOD, whole=True)
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"parts are [(share, topology), ...], not {shown(parts)}.")
    for part in parts:
        if not isinstance(part, list | tuple) or len(part) != 2:
            raise ValueError(f"parts are [(share, topology), ...]; one is {shown(part)}.")
        check_number("share", part[0], least=0, most=1)
        expect("A part's topology", part[1], Topology, "a Topology")
    shares, graphs = zip(*parts, strict=True)
    if abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"The shares must add up to 1, not to {sum(shares):.6g}.")
    if len({graph.agents for graph in graphs}) > 1:
        numbers = ", ".join(str(graph.agents) for graph in graphs)
        raise ValueError(f"All parts must have the same number of agents, not {numbers}.")
    ends = np.rint(np.cumsum([0.0, *shares]) * rounds).astype(int)
    for share, before, after in zip(shares, ends[:-1], ends[1:], strict=True):
        if before == after:
            raise ValueError(f"A share of {share:g} of {rounds} rounds is no round.")
    matrices = [
        graph.mixing_matrix(round)
        for graph, before, after in zip(graphs, ends[:-1], ends[1:], strict=True)
        for round in range(after - before)
    ]
    return Topology(" then ".join(graph.name for graph in graphs), np.stack(matrices))


def stretched(topology: Topology, every: int) -> Topology:
    """The same rounds, each after ``every - 1`` in which nobody exchanges anything."""
    if every == 1:
        return topology
    nothing = np.tile(np.eye(topology.agents), (every - 1, 1, 1))
    rounds = [np.concatenate([nothing, matrix[None]]) for matrix in topology.mixing_matrices]
    return Topology(f"{topology.name} every {every} steps", np.concatenate(rounds))
