"""Agents' final networks as safetensors, one file for each agent, and back."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from dimat_jax.checkpoints.pack import is_key
from dimat_jax.datasets.whole import Damaged, check_whole, whole_folder
from dimat_jax.simulation.result import Final
from dimat_jax.types import Variables

WEIGHTS = "weights"
MEASURED, PERMUTATIONS = "final.json", "permutations.safetensors"
RAW = "raw_dtypes"
"""Metadata of a file: name → type, of arrays that are stored as bytes."""
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
"""The format's names of the types that NumPy, and JAX, know."""


def save_final(folder: pathlib.Path, final: Final) -> None:
    """Writes where a method has ended for one seed: a file for each agent, and what it measured.

    An agent's file has its variables by path, ``params/Dense_0/kernel``; the permutations of the
    last merge are named ``0/GROUP``, and have a leading axis of agents.

    Args:
      folder: made, or replaced.
      final: on the host.
    """
    variables = named(final.variables)
    permutations = named(final.permutations)
    measured = {name: np.asarray(values).tolist() for name, values in final.measured.items()}
    with whole_folder(folder) as path:
        for agent in range(agents_of(final.variables)):
            one = {name: values[agent] for name, values in variables.items()}
            write_arrays(path / agent_file(agent), one)
        write_arrays(path / PERMUTATIONS, permutations)
        (path / MEASURED).write_text(json.dumps(measured), encoding="utf-8")


def load_final(folder: pathlib.Path, like: Variables | None = None) -> Final:
    """Reads what `save_final` has written.

    Args:
      folder: of one method and seed.
      like: one agent's variables, or their shapes, whose structure the result has; None: nested
        dictionaries by path, which is all that the files know.

    Raises:
      Damaged: if it is not as it was written.
      ValueError: if the variables are not of this structure.
    """
    check_whole(folder)
    files = sorted(path for path in folder.glob("agent-*.safetensors"))
    agents = [read_arrays(file) for file in files]
    try:
        stacked = {name: np.stack([one[name] for one in agents]) for name in agents[0]}
        slots: dict[int, dict[str, Any]] = {}
        for name, array in read_arrays(folder / PERMUTATIONS).items():
            slot, group = name.split("/", 1)
            slots.setdefault(int(slot), {})[group] = array
        measured = dict(json.loads((folder / MEASURED).read_text(encoding="utf-8")))
    except (LookupError, ValueError, TypeError, OSError) as error:
        raise Damaged(f"{folder} does not hold agents' networks: {error}") from error
    permutations = [slots[slot] for slot in sorted(slots)]
    return Final(
        nested(stacked) if like is None else structured(stacked, like, folder),
        {name: np.asarray(values) for name, values in measured.items()},
        permutations,
    )


def folder_of(out: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    """Where the final networks of a method lie in the folder of a run."""
    return out / WEIGHTS / f"{method}-seed{seed}"


def agent_file(agent: int) -> str:
    """The name of an agent's file."""
    return f"agent-{agent:05d}.safetensors"


def agents_of(variables: Variables) -> int:
    """The number of agents of stacked variables."""
    return len(jax.tree.leaves(variables)[0])


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree by their path, ``a/b/0``; keys of `jax.random` as their data.

    Raises:
      ValueError: if two have one path.
    """
    found: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in found:
            raise ValueError(f"Two leaves have the path {name!r}: they cannot be told apart.")
        found[name] = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return found


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by path as dictionaries of dictionaries."""
    tree: dict[str, Any] = {}
    for name, array in sorted(arrays.items()):
        *parents, last = name.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = array
    return tree


def structured(arrays: Mapping[str, np.ndarray], like: Variables, folder: pathlib.Path) -> Any:
    """Arrays by path in the structure of ``like``."""
    leaves = jax.tree_util.tree_leaves_with_path(like)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if set(paths) != set(arrays):
        one = sorted(set(paths) ^ set(arrays))[0]
        raise ValueError(f"{folder} holds networks of another model: {one} is not in both.")
    found: list[Any] = [arrays[path] for path in paths]
    for i, (_, leaf) in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found[i] = jax.random.wrap_key_data(found[i])
    return jax.tree.structure(like).unflatten(found)


def write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as safetensors; types that the format does not know as their bytes."""
    known = {np.dtype(dtype) for dtype in DTYPES.values()}
    raw = {name: array.dtype.name for name, array in arrays.items() if array.dtype not in known}
    shown = {
        name: as_bytes(array) if name in raw else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    safetensors.numpy.save_file(shown, file, metadata={RAW: json.dumps(raw)})


def as_bytes(array: np.ndarray) -> np.ndarray:
    """An array's bytes, in a last axis."""
    return np.ascontiguousarray(array)[..., None].view(np.uint8)


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` has written, or any other file of that format.

    Raises:
      Damaged: if it is no such file.
    """
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            raw = json.loads((opened.metadata() or {}).get(RAW, "{}"))
        found = {}
        for name, described in safetensors.deserialize(file.read_bytes()):
            dtype = DTYPES[described["dtype"]]
            array = np.frombuffer(described["data"], dtype).reshape(described["shape"])
            found[name] = array.view(np.dtype(raw[name]))[..., 0] if name in raw else array
        return found
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise Damaged(f"{file} cannot be read: {error}") from error
