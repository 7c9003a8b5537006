"""All that a run is, and its keys."""

import itertools

import jax

from dimat_jax.simulation.state import Keys, round_keys, seed_keys


def bytes_of(keys) -> list[bytes]:
    return [jax.random.key_data(key).tobytes() for key in keys]


def test_keys_of_a_seed_are_independent():
    keys = [*seed_keys(0), *seed_keys(1)]
    assert len(set(bytes_of(keys))) == len(keys) == 2 * len(Keys._fields)
    assert bytes_of(seed_keys(5)) == bytes_of(seed_keys(5))


def test_every_draw_of_every_round_has_a_key_of_its_own():
    keys = [
        *itertools.chain.from_iterable(
            (*seed_keys(seed), *round_keys(seed_keys(seed), round))
            for seed in (0, 1)
            for round in (1, 2, 3)
        )
    ]
    drawn = bytes_of(keys)
    of_rounds = len(round_keys(seed_keys(0), 1))
    assert len(set(drawn)) == 2 * (len(Keys._fields) + 3 * of_rounds)
