"""What a run holds in memory; what cannot fit is refused before it starts."""

import jax
import pytest
from helpers.small_runs import noise, small_config

import dimat_jax as dj
from dimat_jax.algorithms import METHODS
from dimat_jax.simulation import memory
from dimat_jax.simulation.memory import bytes_of, held_by, host_memory, shown_bytes
from dimat_jax.simulation.session import prepare_run, session_of
from dimat_jax.simulation.setup import prepare

DATASET = noise(examples=320, tests=23, size=8)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_is_what_a_session_holds(method):
    config = small_config(agents=4, topology="ring", methods=(method,), width=0.01, devices=1)
    if method in ("sgp",):
        config = small_config(agents=4, topology="digraph", methods=(method,), devices=1)
    session = session_of(prepare(config, None, DATASET))
    state = session.begin(session.start(), method)
    held = held_by(session.setup)
    assert held.agents == bytes_of(state.agents)
    remembered = [x for x in jax.tree.leaves(state.method)]
    graph = session.graphs(method) if session.setup.methods[method].gossip else ()
    assert held.method == bytes_of(remembered) + bytes_of(graph)


def test_data_are_what_lies_on_a_device():
    session = session_of(prepare(small_config(devices=4), None, DATASET))
    shards = [bytes_of(session.shards(0, part, False).examples) // 4 for part in (0, 1)]
    tests = 23 * (8 * 8 * 3 + 4)
    assert held_by(session.setup).data == sum(shards) + tests


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(width=1e9), "width to"),
        (dict(agents=200_000), "reduce agents to"),
    ],
)
def test_what_cannot_fit_is_refused_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said) as error:
        prepare_run(small_config(**options), None, DATASET)
    text = str(error.value)
    assert "this machine has" in text and "force" in text and "B" in text
    assert "\n" not in text


def test_force_tries_it_all_the_same(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    with pytest.raises(ValueError, match="1 kB"):
        prepare_run(small_config(), None, DATASET)
    assert prepare_run(small_config(force=True), None, DATASET)


def test_the_numbers_that_are_named_fit(monkeypatch):
    setup = prepare(small_config(), None, DATASET)
    needed = setup.execution.mesh.size * held_by(setup).total
    monkeypatch.setattr(memory, "host_memory", lambda: needed // 2)
    with pytest.raises(ValueError, match="reduce agents to (4|3)"):
        prepare_run(small_config(), None, DATASET)
    monkeypatch.setattr(memory, "host_memory", lambda: needed)
    assert prepare_run(small_config(), None, DATASET)


def test_large_data_ask_for_fewer_examples():
    setup = prepare(small_config(model="mlp", width=0.001), None, DATASET)
    found = memory.what_to_reduce(setup, held_by(setup), 0.5)
    assert "examples_per_agent to 20" in found


def test_an_accelerator_says_how_much_memory_it_has(monkeypatch):
    setup = prepare(small_config(), None, DATASET)

    class Device:
        platform, device_kind = "gpu", "NVIDIA H100"

        def memory_stats(self):
            return {"bytes_limit": 10}

    class Described:
        size, local_devices = 1, [Device()]

    fake = setup.execution._replace(mesh=Described())
    monkeypatch.setattr(memory, "held_by", lambda setup: held_by(prepared))
    prepared = setup
    with pytest.raises(ValueError, match="a NVIDIA H100 has 10 bytes"):
        memory.check_memory(setup._replace(execution=fake))


def test_a_container_has_no_more_than_it_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.memory_of_group() is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100\n")
    assert memory.memory_of_group() == 700 and host_memory() == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.memory_of_group() is None


def test_bytes_are_shown_in_a_unit_that_suits_them():
    assert [shown_bytes(x) for x in (0, 999, 21.3e9, 4.19e25)] == [
        "0 bytes",
        "999 bytes",
        "21.3 GB",
        "4.19e+04 ZB",
    ]


def test_a_run_that_fits_is_not_told_anything(recwarn):
    assert dj.make_session(small_config(), dataset=DATASET)
