"""Sessions in a given form of execution, run to their end."""

from typing import Any, NamedTuple

import jax
import numpy as np

import dimat_jax as dj
from dimat_jax.execution.placement import to_host
from dimat_jax.metrics import Row
from dimat_jax.simulation.session import Session, session_of
from dimat_jax.simulation.setup import prepare
from dimat_jax.simulation.state import RunState

CLOCK = {"seconds", "images_per_second"}
"""What differs from run to run."""


def session_as(
    config: dj.Config,
    model: dj.Model,
    dataset: dj.Dataset,
    sequential: bool | None = None,
    topology: dj.Topology | None = None,
    methods: dict[str, dj.algorithms.Algorithm] | None = None,
) -> Session:
    """A session that runs in this form, whatever the model; by default in its own."""
    setup = prepare(config, model, dataset, topology, methods)
    if sequential is not None:
        execution = setup.execution._replace(sequential=sequential)
        if config.agents_at_once is None:
            at_once = 1 if sequential else execution.lanes
            execution = execution._replace(lanes_at_once=at_once)
        setup = setup._replace(execution=execution)
    return session_of(setup)


class Finished(NamedTuple):
    """What a session gave: its rows, each method's variables on the host, and its last state."""

    rows: list[Row]
    variables: dict[tuple[str, int], Any]
    ends: list[RunState]


def finish(session: Session) -> Finished:
    """Goes through the plan of a session to its end."""
    state, rows, variables, ends = session.start(), [], {}, []
    while event := session.next_event(state):
        state, row = session.advance(state)
        if row is not None:
            rows.append(row)
        if event.ends:
            ends.append(copied(state))
            agents = to_host(session.setup.execution, state.agents.variables)
            variables[event.method, event.seed] = agents
    return Finished(rows, variables, ends)


def copied(state):
    """A copy of a state: whoever takes a state reuses its memory."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array | np.ndarray) else x, state)


def timeless(row: Row) -> dict[str, Any]:
    """A row without what depends on the clock."""
    return {name: value for name, value in row.items() if name not in CLOCK}


def assert_rows_close(found, expected, tolerance=1e-6) -> None:
    """Asserts that rows are the same, but for the clock, and numbers to within a tolerance."""
    assert len(found) == len(expected)
    for row, other in zip(map(timeless, found), map(timeless, expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, str | None):
                assert value == other[name], name
            else:
                np.testing.assert_allclose(
                    value, other[name], rtol=tolerance, atol=tolerance, err_msg=name
                )
