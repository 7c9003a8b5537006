"""The time left: known costs, guesses for what has not been seen, by kind and by work."""

import pytest
from helpers.small_runs import linear_softmax, noise, small_config

from dimat_jax.simulation import forecast
from dimat_jax.simulation.forecast import Cost, add_cost, seconds_left, seconds_of
from dimat_jax.simulation.plan import Action, plan
from dimat_jax.simulation.setup import prepare

TRAIN, EVALUATE = (Action.TRAIN, ""), (Action.MEASURE, "")
TRAIN_DSGD, ALL_TESTS = (Action.TRAIN, "dsgd"), (Action.MEASURE, "all tests")
DIMAT, WA = (Action.MERGE, "dimat"), (Action.MERGE, "wa")


@pytest.fixture(scope="module")
def setup():
    """Eight agents, each 40 examples; three methods."""
    config = small_config(methods=("dimat", "wa", "dsgd"), test_examples=30)
    return prepare(config, linear_softmax(), noise(size=8))


@pytest.fixture(scope="module")
def outlook(setup):
    return forecast.outlook_of(setup, plan(setup.config, setup.methods))


def numbers(outlook, kind):
    return [number for number, found in enumerate(outlook.kinds) if found == kind]


def test_agents_that_train_by_themselves_are_one_kind_and_each_merge_and_gossip_its_own(outlook):
    assert len(numbers(outlook, TRAIN)) == 1 + 2 * 2
    assert len(numbers(outlook, TRAIN_DSGD)) == len(numbers(outlook, DIMAT)) == 2
    assert len(numbers(outlook, WA)) == 2 and len(numbers(outlook, ALL_TESTS)) == 3
    assert len(numbers(outlook, (Action.BEGIN, "dsgd"))) == 1
    assert len(numbers(outlook, (Action.BEGIN, ""))) == 2


def test_work_is_counted_in_forward_passes_of_an_image(outlook):
    def work(kind):
        return {outlook.work[number] for number in numbers(outlook, kind)}

    assert work(TRAIN) == work(TRAIN_DSGD) == {8 * 3 * 40}
    assert work(EVALUATE) == {8 * 30} and work(ALL_TESTS) == {8 * (30 + 50)}
    assert work(DIMAT) == {8 * (3 * 32 + 32)}  # a ring: itself and two neighbours
    assert work((Action.RECOMPUTE, "")) == {8 * 32}
    assert work((Action.START, "")) == {1}


def test_nothing_is_forecast_before_anything_but_a_start_was_measured(outlook):
    assert seconds_left(outlook, {}, 0) is None and seconds_of(outlook, {}, 0) is None
    started = {(Action.START, ""): Cost(1, 5.0, 1.0, 1.0)}
    assert seconds_left(outlook, started, 1) is None
    assert seconds_left(outlook, started, len(outlook.kinds)) == 0


def test_what_is_known_costs_what_it_cost(outlook):
    costs = {kind: Cost(1, float(i + 1), 100.0) for i, kind in enumerate(outlook.columns)}
    expected = sum(
        (outlook.columns.index(kind) + 1) * work / 100
        for kind, work in zip(outlook.kinds, outlook.work, strict=True)
    )
    assert seconds_left(outlook, costs, 0) == pytest.approx(expected)
    last = len(outlook.kinds) - 1
    assert seconds_left(outlook, costs, last) == pytest.approx(seconds_of(outlook, costs, last))


def test_what_is_unknown_is_guessed_from_its_action_or_else_from_all_by_work(outlook):
    merge, other = numbers(outlook, DIMAT)[0], numbers(outlook, WA)[0]
    costs = {TRAIN: Cost(1, 3.0, 960.0, compiling=7.0)}
    # A merge has 1024 pieces of work, at the rate of training, and is compiled as training was.
    assert seconds_of(outlook, costs, merge) == pytest.approx(3.0 * 1024 / 960 + 7)
    costs[DIMAT] = Cost(1, 50.0, 1024.0, compiling=2.0)
    assert seconds_of(outlook, costs, merge) == pytest.approx(50)  # it is compiled by now
    assert seconds_of(outlook, costs, other) == pytest.approx(50 + 2)
    costs[WA] = Cost(1, 1.0, 1024.0)
    assert seconds_of(outlook, costs, other) == pytest.approx(1)


def test_an_evaluation_that_is_left_is_left(outlook):
    """Epochs are not all: a hundred per cent must not stand while the last evaluation goes on."""
    costs = {TRAIN: Cost(1, 1.0, 960.0), EVALUATE: Cost(1, 18.0, 240.0)}
    assert seconds_left(outlook, costs, len(outlook.kinds) - 1) == pytest.approx(18 * 640 / 240)


def test_the_compilation_of_a_kind_is_expected_once(outlook):
    first, second = numbers(outlook, TRAIN_DSGD)
    costs = {TRAIN: Cost(1, 0.0, 960.0, compiling=7.0), EVALUATE: Cost(1, 0.0, 1.0)}
    costs[ALL_TESTS] = costs[(Action.RECOMPUTE, "")] = Cost(1, 0.0, 1.0)
    assert seconds_left(outlook, costs, first) == pytest.approx(7)
    assert seconds_left(outlook, costs, second) == pytest.approx(7)


def test_the_first_event_of_a_kind_warms_up_and_does_not_count_once_there_are_others():
    costs = add_cost({}, TRAIN, 10.0, 2.0, 5.0)
    assert costs[TRAIN] == (1, 10.0, 2.0, 5.0)
    costs = add_cost(costs, TRAIN, 1.0, 2.0, 0.5)
    assert costs[TRAIN] == (2, 1.0, 2.0, 5.5)
    assert add_cost(costs, TRAIN, 3.0, 2.0, 0.0)[TRAIN] == (3, 4.0, 4.0, 5.5)
