"""The events of a run, in order of time."""

import pytest
from helpers.small_runs import small_config

from dimat_jax.algorithms import METHODS, Algorithm
from dimat_jax.simulation.plan import Action, Event, plan

GOSSIP, MERGE = METHODS["cdsgd"].gossip, METHODS["wa"].merge
METHOD = {
    "alone": Algorithm("alone"),
    "merging": Algorithm("merging", merge=MERGE),
    "gossip": Algorithm("gossip", gossip=GOSSIP),
    "final": Algorithm("final", final=MERGE),
    "all": Algorithm("all", gossip=GOSSIP, initial=MERGE, merge=MERGE, final=MERGE),
}


def events_of(*methods, **options) -> tuple[Event, ...]:
    return plan(small_config(**options), {name: METHOD[name] for name in methods})


def word(event: Event) -> str:
    """An event in a word: what happens in which round, whether it is the last."""
    said = f"{event.action.name.lower()} {event.round}"
    return said + " ends" * event.ends


TRAINING = {
    round: [f"{what} {round}" for what in ("train", "recompute", "measure")] for round in (1, 2)
}
ROUNDS = {
    "alone": [*TRAINING[1], *TRAINING[2][:-1], "measure 2 ends"],
    "merging": [
        *["merge 1", "measure 1", *TRAINING[1]],
        *["merge 2", "measure 2", *TRAINING[2][:-1], "measure 2 ends"],
    ],
    "gossip": [*TRAINING[1], *TRAINING[2][:-1], "measure 2 ends"],
    "final": [*TRAINING[1], *TRAINING[2], "final 3", "measure 3 ends"],
    "all": [
        "initial 0",
        *["merge 1", "measure 1", "train 1", "recompute 1", "measure 1"],
        *["merge 2", "measure 2", "train 2", "recompute 2", "measure 2"],
        *["final 3", "measure 3 ends"],
    ],
}


@pytest.mark.parametrize("method", METHOD)
def test_a_method_does_what_its_parts_say_and_ends_once(method):
    events = events_of(method)
    before = ["start 0", "train 0", "recompute 0", "measure 0", "begin 0"]
    assert [word(event) for event in events] == before + ROUNDS[method]
    assert sum(event.ends for event in events) == 1


@pytest.mark.parametrize("method", METHOD)
def test_a_method_ends_without_rounds_too(method):
    events = events_of(method, rounds=0)[5:]
    assert [event.ends for event in events][-1:] == [True] and sum(e.ends for e in events) == 1
    rows = [event.phase for event in events if event.phase]
    assert rows == ["merge"] * (METHOD[method].final is not None)


@pytest.mark.parametrize("method", METHOD)
def test_who_merges_does_so_at_the_end_if_asked(method):
    *_, last, measured = map(word, events_of(method, merge_at_end=True))
    assert measured.endswith("ends")
    if method == "merging":
        assert (last, measured) == ("merge 3", "measure 3 ends")
    else:
        assert (last, measured) == tuple(ROUNDS[method][-2:])


def test_some_rounds_are_measured_only_if_asked():
    events = events_of("merging", rounds=7, evaluate_every=3)
    for phase in ("merge", "train"):
        assert [e.round for e in events if e.phase == phase] == [1, 3, 6, 7]
    assert sum(event.ends for event in events) == 1


def test_every_seed_is_pretrained_once_and_every_method_begins_after():
    events = events_of("merging", "all", seeds=(7, 1), pretrain_epochs=2)
    for seed in (7, 1):
        mine = [event for event in events if event.seed == seed]
        assert [e.action for e in mine].count(Action.START) == 1
        assert [e.epoch for e in mine if e.method == "pretrain" and e.epoch] == [1, 2]
        begun = [event.method for event in mine if event.action is Action.BEGIN]
        assert begun == ["merging", "all"]
        phases = [event.phase for event in mine]
        assert phases.index("pretrain") < [e.action for e in mine].index(Action.BEGIN)
    assert [event.seed for event in events] == sorted((e.seed for e in events), reverse=True)


def test_statistics_are_left_alone_where_nobody_asks_for_them():
    events = events_of("gossip", recompute_statistics=False)
    assert Action.RECOMPUTE not in {event.action for event in events}
