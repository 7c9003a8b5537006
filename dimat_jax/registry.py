"""Looking things up by name, with a helpful error for a wrong one."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns ``name`` if it is allowed.

    Args:
      kind: what is being named, for the message (``"model"``).
      name: the name given.
      allowed: the names there are.

    Raises:
      ValueError: if ``name`` is not among them; names the nearest one and all of them.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {kind} {name!r}.{hint} There are: {', '.join(allowed)}.")


def make(kind: str, name: str, table: Mapping[str, Callable], *args: Any, **options: Any) -> Any:
    """Calls ``table[name](*args, **options)``.

    Raises:
      ValueError: if the name is unknown, or the factory does not take an option or lacks one.
    """
    factory = table[choose(kind, name, table)]
    signature = inspect.signature(factory)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r}: {error}. It takes {signature}.") from error
    return factory(*args, **options)
