"""A run's state as numbered arrays and a description of them, and back."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from dimat_jax import symmetries
from dimat_jax.execution.placement import AGENTS, place
from dimat_jax.simulation.session import Session
from dimat_jax.simulation.state import Position, RunState, seed_keys
from dimat_jax.types import Permutations

NUMBERS = (
    *("bytes_sent", "units_moved", "train_loss", "images_per_second"),
    *("lost", "left_out"),
)
"""Fields of a state that are plain numbers."""
TYPED = ("agents", "method", "sent")
"""Fields whose structure is that of the models, optimizers and methods: a run makes it anew, and
what was saved has to fit."""
PLAIN = ("permutations", "frame", "final")
"""Fields of dictionaries and lists, whose structure JSON can hold."""


class Packed(NamedTuple):
    """A state without its structure.

    Attributes:
      arrays: number → array, none of them a key or without elements.
      about: a value of JSON: the other fields, and for every leaf its path and the number of its
        array, or the shape of one that has no elements.
    """

    arrays: dict[str, Array | np.ndarray]
    about: dict[str, Any]


def pack(state: RunState, lanes: int) -> Packed:
    """Takes a state apart; the pretrained agents are left out, see `unpack`.

    Args:
      state: on the devices.
      lanes: how many there are of them.
    """
    arrays: dict[str, Array | np.ndarray] = {}

    def number_of(leaf: Any) -> dict[str, Any]:
        raw = jax.random.key_data(leaf) if is_key(leaf) else leaf
        raw = raw if isinstance(raw, jax.Array) else np.asarray(raw)
        described = {"shape": list(raw.shape), "dtype": str(raw.dtype)}
        if is_key(leaf):
            described["key"] = str(jax.random.key_impl(leaf))
        if raw.size:
            described["array"] = str(len(arrays))
            arrays[described["array"]] = raw
        return described

    def grouped(permutations: Permutations) -> dict[str, Any]:
        groups = {name: number_of(array) for name, array in permutations.items()}
        outer = getattr(permutations, "outer", None)
        return {"groups": groups, "outer": outer and {k: list(v) for k, v in outer.items()}}

    def listed(tree: Any) -> list[dict[str, Any]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [{"path": jax.tree_util.keystr(path), **number_of(x)} for path, x in leaves]

    about: dict[str, Any] = {
        "lanes": lanes,
        "position": state.position._asdict(),
        "numbers": {name: getattr(state, name) for name in NUMBERS},
        "anchored": state.agents.anchor is not None,
        "remembers": state.sent is not None,
    }
    about |= {name: listed(getattr(state, name)) for name in TYPED}
    about["final"] = jax.tree.map(number_of, state.final)
    about["frame"] = None if state.frame is None else grouped(state.frame)
    about["permutations"] = [grouped(of_slot) for of_slot in state.permutations]
    return Packed(arrays, about)


def is_key(leaf: Any) -> bool:
    """Whether an array is one of keys of `jax.random`."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


Read = Callable[[dict[str, jax.ShapeDtypeStruct]], Mapping[str, Any]]
"""Shapes by the number of the array → those arrays; with a sharding on it, or on the host."""


def unpack(
    session: Session, about: Mapping[str, Any], read: Read, pretrained: RunState | None
) -> RunState:
    """Puts a state together again.

    On as many lanes as before nothing changes; on others masked lanes are made anew.

    Args:
      session: of the same run.
      about: what `pack` gave.
      read: gets the arrays.
      pretrained: as pretraining ended, whose agents every method begins from; None: it has not.

    Raises:
      ValueError: if what was saved is of other networks, optimizers or methods.
    """
    execution, position = session.setup.execution, Position(**about["position"])
    like = made_anew(session, position, about["anchored"], about["remembers"])
    for name in TYPED:
        check_fits(name, about[name], getattr(like, name))
    same = about["lanes"] == execution.all_lanes
    on_devices = NamedSharding(execution.mesh, AGENTS) if same else None
    shapes = {}
    for name in (*TYPED, *PLAIN):
        for one in jax.tree.leaves(about[name], is_leaf=is_description):
            if is_description(one) and "array" in one:
                sharding = None if name == "final" else on_devices
                shape = jax.ShapeDtypeStruct(one["shape"], one["dtype"], sharding=sharding)
                shapes[one["array"]] = shape
    arrays = read(shapes)

    def host(described: Mapping[str, Any]) -> Any:
        if "array" in described:
            return arrays[described["array"]]
        return np.zeros(described["shape"], described["dtype"])

    def placed(described: Mapping[str, Any]) -> Any:
        array = host(described)
        if not (same and isinstance(array, jax.Array)):
            array = place(execution, np.asarray(array)[: execution.agents])
        key = described.get("key")
        return array if key is None else jax.random.wrap_key_data(array, impl=key)

    def ungrouped(described: Mapping[str, Any]) -> Permutations:
        groups = {name: placed(one) for name, one in described["groups"].items()}
        outer = described["outer"]
        if outer is None:
            return groups
        return symmetries.Permutations(groups, {name: tuple(of) for name, of in outer.items()})

    def typed(name: str) -> Any:
        structure = jax.tree.structure(getattr(like, name))
        return structure.unflatten([placed(described) for described in about[name]])

    return RunState(
        position=position,
        keys=seed_keys(position.seed),
        agents=typed("agents"),
        method=typed("method"),
        sent=typed("sent"),
        pretrained=None if pretrained is None else pretrained.agents,
        permutations=tuple(ungrouped(of_slot) for of_slot in about["permutations"]),
        frame=None if about["frame"] is None else ungrouped(about["frame"]),
        final=jax.tree.map(host, about["final"], is_leaf=is_description),
        **about["numbers"],
    )


def is_description(value: Any) -> bool:
    """Whether a value of JSON describes an array."""
    return isinstance(value, Mapping) and {"shape", "dtype"} <= set(value)


def made_anew(session: Session, position: Position, anchored: bool, remembers: bool) -> RunState:
    """The shapes of a state at this position, in its structure.

    Args:
      session: of the run.
      position: where the state stands.
      anchored: whether agents are pulled back to something, `AgentState.anchor`.
      remembers: whether it has what was sent in the last merge, `RunState.sent`.
    """
    state = session.start(position.seed)
    if position.method >= 0:
        state = session.begin(state, list(session.setup.methods)[position.method])
    if anchored:
        params = state.agents.variables["params"]
        state = state._replace(agents=state.agents._replace(anchor=params))
    agents, method = jax.eval_shape(lambda *both: both, state.agents, state.method)
    sent = agents.variables if remembers else None
    return state._replace(agents=agents, method=method, sent=sent, pretrained=None)


def check_fits(name: str, described: list[dict[str, Any]], tree: Any) -> None:
    """Raises a `ValueError`, which names the first leaf that is not what was saved."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    there = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    saved = {one["path"]: one for one in described}
    for path in [*saved, *there]:
        if path not in there or path not in saved:
            where = "not in this run" if path in saved else "not in the checkpoint"
            raise ValueError(f"The checkpoint is of another run: {name}{path} is {where}.")
        leaf, was = there[path], saved[path]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if (was["dtype"], was["shape"][1:]) != (str(leaf.dtype), list(leaf.shape[1:])):
            raise ValueError(
                f"The checkpoint is of another run: {name}{path} is {was['dtype']}"
                f"{was['shape'][1:]} in it, and {leaf.dtype}{list(leaf.shape[1:])} here."
            )
