"""Small graphs of every kind that mixes evenly."""

from dimat_jax import topology as T

GRAPHS = [
    *[make(n) for n in (2, 5, 8) for make in (T.ring, T.star, T.bipartite, T.fully_connected)],
    *[T.exponential(n) for n in (2, 3, 6, 11)],
    *[T.base_k(n, k) for n in (3, 5, 12, 23) for k in (1, 2)],
    *[T.hypercube(8), T.one_peer_exponential(8), T.torus(2, 3), T.torus(3, 4)],
    *[T.erdos_renyi(9, 0.4, seed) for seed in range(3)],
    *[T.random_regular(10, 3, seed) for seed in range(3)],
]
