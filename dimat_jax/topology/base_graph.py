"""The Base-(k+1) graph: exact averaging of any number of agents in finitely many sparse rounds.

Takezawa et al. 2023, "Beyond Exponential Graph" (arXiv 2305.11420). The functions return lists of
symmetric, doubly stochastic mixing matrices, float64 ``[agents, agents]``, one per round.
"""

import math
from functools import cache

import numpy as np
from jaxtyping import Float, Int

Matrix = Float[np.ndarray, "agents agents"]
Nodes = Int[np.ndarray, "..."]


@cache
def factorize(n: int, largest: int) -> tuple[int, ...] | None:
    """The shortest list of factors from 2 to ``largest`` whose product is n, if there is one."""
    if n == 1:
        return ()
    tails = {f: factorize(n // f, largest) for f in range(2, min(n, largest) + 1) if n % f == 0}
    lists = [(f, *tail) for f, tail in tails.items() if tail is not None]
    return min(lists, key=len, default=None)


def average_along(matrix: Matrix, nodes: Nodes, axis: int) -> None:
    """Makes a round's ``matrix`` average the agents that differ along one axis of ``nodes``."""
    for group in np.moveaxis(nodes, axis, -1).reshape(-1, nodes.shape[axis]):
        matrix[np.ix_(group, group)] = 1 / len(group)


def hyper_hypercube(factors: tuple[int, ...]) -> list[Matrix]:
    """Algorithm 1, the hyper-hypercube graph: agents as a box, one axis averaged each round."""
    nodes = np.arange(math.prod(factors)).reshape(factors)
    rounds = [np.eye(nodes.size) for _ in factors]
    for axis, matrix in enumerate(rounds):
        average_along(matrix, nodes, axis)
    return rounds


def digits_of(n: int, base: int) -> list[tuple[int, int]]:
    """Pairs (digit, power) of n, digits above 0, the largest power first."""
    pairs = []
    power = 0
    while n:
        n, digit = divmod(n, base)
        pairs += [(digit, power)] if digit else []
        power += 1
    return pairs[::-1]


def simple_base(n: int, k: int) -> list[Matrix]:
    """Algorithm 2, the simple Base-(k+1) graph.

    Agents form parts of ``digit * (k+1)^power`` each, from n in base k + 1, and

    1. every part averages within itself, all at the same time;
    2. one part after the other meets all smaller ones: each agent of those is tied to one agent
       of each block of ``(k+1)^power`` agents of the part, with such weights that both sides'
       means become the mean of all;
    3. after it has met them, the blocks of a part average within themselves, which makes each
       agent hold that mean. The last part holds it already.
    """
    # Five agents, k = 1: 5 is 101 in base 2, parts A = {0, 1, 2, 3} (a 2 x 2 block) and B = {4}.
    # Rounds 0 and 1: 0-2 1-3, then 0-1 2-3; all of A hold a, the mean of A; 4 holds b.
    # Round 2: 4 meets 0 with weight 4/5: 4 holds (4 a + b) / 5, the mean of all; 0 (a + 4 b) / 5.
    # Rounds 3 and 4: as 0 and 1; the mean of A is now (3 a + (a + 4 b) / 5) / 4 = (4 a + b) / 5.
    factors = factorize(n, k + 1)
    if factors is not None:
        return hyper_hypercube(factors)
    parts = digits_of(n, k + 1)
    # The largest part averages longest; part i meets the smaller ones in round ``first + i``.
    first = max(power + (digit > 1) for digit, power in parts)
    period = first + max(1 + index + power for index, (_, power) in enumerate(parts[:-1]))
    rounds = [np.eye(n) for _ in range(period)]
    start = 0
    for index, (digit, power) in enumerate(parts):
        size = digit * (k + 1) ** power
        blocks = np.arange(start, start + size).reshape(digit, *[k + 1] * power)
        start += size
        within = list(range(1, power + 1))
        for round, axis in enumerate(within + [0] * (digit > 1)):
            average_along(rounds[round], blocks, axis)
        if start < n:
            meet(rounds[first + index], blocks.reshape(digit, -1))
            for round, axis in enumerate(within, first + index + 1):
                average_along(rounds[round], blocks, axis)
    return rounds


def meet(matrix: Matrix, blocks: Int[np.ndarray, "blocks members"]) -> None:
    """Step 2 of `simple_base`: ties the agents after those of ``blocks`` to one of each block."""
    later = np.arange(blocks.max() + 1, len(matrix))
    weight = blocks.shape[1] / (blocks.size + len(later))
    for block in blocks[:, : len(later)]:
        matrix[block, later] = matrix[later, block] = weight
        matrix[block, block] -= weight
        matrix[later, later] -= weight


def base_graph(n: int, k: int) -> list[Matrix]:
    """Algorithm 3, the Base-(k+1) graph: the shorter of two ways.

    Either `simple_base` of all agents; or, with n = p q and p the largest divisor of n whose prime
    factors are at most k + 1, `simple_base` within each of p parties of q agents, and then
    `hyper_hypercube` across the parties.
    """
    p, factors = max(
        (d, factors)
        for d in range(1, n + 1)
        if n % d == 0 and (factors := factorize(d, k + 1)) is not None
    )
    within = [np.kron(np.eye(p), matrix) for matrix in simple_base(n // p, k)]
    across = [np.kron(matrix, np.eye(n // p)) for matrix in hyper_hypercube(factors)]
    return min(simple_base(n, k), within + across, key=len)
