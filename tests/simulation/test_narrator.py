"""What is said of a run: every event that takes a while, its parts, and how far it is."""

import pytest
from helpers.small_runs import linear_softmax, noise, small_config

from dimat_jax.simulation import narrator
from dimat_jax.simulation.narrator import Narrator, describe
from dimat_jax.simulation.observer import Observer
from dimat_jax.simulation.plan import Action, plan
from dimat_jax.simulation.setup import prepare


class Clock:
    """A clock that only moves when told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(narrator, "time", clock)
    return clock


@pytest.fixture(scope="module")
def setup():
    """Seconds below are those of an image's forward pass, of which an epoch is 3 * 320."""
    config = small_config(
        methods=("local_only", "wa"), rounds=2, pretrain_epochs=3, test_examples=None
    )
    return prepare(config, linear_softmax(), noise(size=8))


def test_events_are_called_by_whose_they_are_when_and_what_happens(setup):
    said = [describe(setup, event) for event in plan(setup.config, setup.methods)]
    assert said[:7] == [
        "seed 0: initial weights",
        "seed 0, pretraining: epoch 1 of 3",
        "seed 0, pretraining: epoch 2 of 3",
        "seed 0, pretraining: epoch 3 of 3",
        "seed 0, pretraining: recomputing statistics",
        "seed 0, pretraining: evaluating on 50 test examples",
        "seed 0, Alone: starting",
    ]
    assert said[-3:] == [
        "seed 0, WA, round 2: epoch 1 of 1",
        "seed 0, WA, round 2: recomputing statistics",
        "seed 0, WA, round 2: evaluating on all 50 test examples",
    ]
    assert "seed 0, WA, round 1: merging" in said


def costs_of(setup, event):
    """What an event of this test's run takes, in seconds: compiling, and the rest."""
    rest = {Action.TRAIN: 10.0, Action.MERGE: 20.0, Action.MEASURE: 5.0}.get(event.action, 0.0)
    return rest * (2 if event.ends else 1)


def narrate(setup, clock):
    """Goes through the plan; what was said and when, and the time at the end."""
    heard, compiled, start = [], 0.0, clock.now
    observer = Observer(on_phase=lambda label, done: heard.append((label, done, clock.now - start)))
    found, seen = Narrator(setup, observer), set()
    for number, event in enumerate(plan(setup.config, setup.methods)):
        found.begin(number, compiled)
        kind = event.action, event.method if event.action is Action.MERGE else event.ends
        if kind not in seen and event.action in (Action.TRAIN, Action.MERGE, Action.MEASURE):
            found.part("compile")
            clock.now, compiled = clock.now + 3, compiled + 3
        seen.add(kind)
        found.part("mix" if event.action is Action.MERGE else "train")
        clock.now += costs_of(setup, event)
        found.end(compiled)
    return heard, clock.now - start


def test_the_share_is_that_of_the_time(setup, clock):
    heard, total = narrate(setup, clock)
    assert heard[0][1] == 0 and all(0 <= share < 1 for _, share, _ in heard)
    # From the last event on that is of a kind of its own everything is known.
    known = [(share, now) for label, share, now in heard if "WA, round 2" in label]
    assert len(known) > 4
    for share, now in known:
        assert share == pytest.approx(now / total, abs=0.02)
    assert heard[-1][0] == "seed 0, WA, round 2: evaluating on all 50 test examples"
    assert heard[-1][1] == pytest.approx(1 - 10 / total, abs=0.02)  # its ten seconds are to come


def test_parts_and_compilations_are_named_as_they_begin(setup, clock):
    labels = [label for label, _, _ in narrate(setup, clock)[0]]
    at = labels.index("seed 0, WA, round 1: merging")
    assert labels[at + 1 : at + 3] == [
        "seed 0, WA, round 1: merging, compiling",
        "seed 0, WA, round 1: merging, averaging",
    ]
    assert "seed 0, pretraining: epoch 1 of 3, compiling" in labels


def test_what_is_known_to_be_short_is_not_announced(setup, clock):
    heard = []
    found = Narrator(setup, Observer(on_phase=lambda label, done: heard.append(label)))
    for number, seconds in ((1, 2.0), (2, 10.0), (3, 1.0)):
        found.begin(number, 0.0)
        found.part("statistics")
        clock.now += seconds
        found.end(0.0)
    one, two = "seed 0, pretraining: epoch 1 of 3", "seed 0, pretraining: epoch 3 of 3"
    # The first is not known, the second's like took two seconds; the third's took ten.
    expected = [one, f"{one}, recomputing statistics", two, f"{two}, recomputing statistics"]
    assert heard == expected


def test_who_compiles_says_so_however_short_its_like_was(setup, clock):
    heard = []
    found = Narrator(setup, Observer(on_phase=lambda label, done: heard.append(label)))
    for number in (1, 2):
        found.begin(number, 0.0)
        clock.now += 0.1
        found.end(0.0)
    found.begin(3, 0.0)
    found.part("compile")
    one, three = "seed 0, pretraining: epoch 1 of 3", "seed 0, pretraining: epoch 3 of 3"
    assert heard == [one, f"{three}, compiling"]


def test_an_event_that_takes_longer_than_expected_does_not_pass_its_end(setup, clock):
    found = Narrator(setup, Observer())
    for number in (0, 1):
        found.begin(number, 0.0)
        clock.now += 10
        found.end(0.0)
    found.begin(2, 0.0)
    shares = []
    for _ in range(4):
        clock.now += 10
        shares.append(found.done())
    assert shares == sorted(shares) and shares[-1] < 0.9
