"""What a benchmark says: its progress, its table, and the files it leaves."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from benchmarks.harness import figure, provenance, spread, write_json
from dimat_jax.registry import choose
from dimat_jax.report.tables import Table as Table
from dimat_jax.report.tables import show

Options = TypeVar("Options")
T = TypeVar("T")
Limits = dict[str, list[dict[str, float]]]
"""Library → `benchmarks.limits.Limit` as a dict, one per repetition."""


def parse(options: type[Options], description: str | None) -> Options:
    """The options that the command line asks for."""
    return tyro.cli(options, description=description)


def run(main: Callable[[], None]) -> None:
    """Runs a command; bad input is one sentence and exit code 2."""
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def chosen(names: Sequence[str], rows: Mapping[str, T]) -> dict[str, T]:
    """The rows of these names; all of them where there is none.

    Raises:
      ValueError: for a name that there is not.
    """
    return {name: rows[choose("row", name, rows)] for name in names or rows}


def progress(line: str) -> None:
    """Says how far it is, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def publish(name: str, options: Any, tables: Sequence[Table], measured: Any) -> None:
    """Prints the tables, and leaves ``NAME.json`` and ``NAME.md`` where the options ask for it."""
    from dimat_jax.report.terminal import terminal

    where = provenance(backend=options.backend)
    console = terminal()
    texts = []
    for table in tables:
        texts.append(show(table, console))
        console.print()
    text = "\n".join(texts)
    footer = sentence(where)
    console.print(footer, soft_wrap=True)
    if options.out is None:
        return
    asked = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    folder = pathlib.Path(options.out)
    write_json(folder / f"{name}.json", {**where, "options": asked, "measured": measured})
    (folder / f"{name}.md").write_text(f"{text}\n{footer}\n", encoding="utf-8")


def sentence(where: dict[str, Any]) -> str:
    """Where and with what it was measured, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    accelerator = f"{where['accelerator']}, " * bool(where["accelerator"])
    return (
        f"`{where['command']}` at {where['commit']} on {where['date']}: {accelerator}"
        f"{where['cores']} cores of "
        f"{where['processor']} (load {where['load']:.1f}), {versions}."
    )


def best(limits: Limits, kind: str) -> float:
    """The median of the library that comes out best: ``product`` (operations/s) or ``copy``."""
    return max(spread([limit[kind] for limit in found]).median for found in limits.values())


def limit_sentence(limits: Iterable[Limits]) -> str:
    """The machine's limits, as measured alongside the rows."""
    limits = list(limits)
    products = spread([best(one, "product") / 1e9 for one in limits])
    moved = spread([best(one, "copy") / 1e9 for one in limits])
    return (
        "The machine's limits, measured alongside: a float32 matrix product at "
        f"{figure(products.low)} to {figure(products.high)} GFLOP/s, a copy at {figure(moved.low)} "
        f"to {figure(moved.high)} GB/s."
    )
