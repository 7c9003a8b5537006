"""The table of methods in the documentation, made from their records.

    python -m dimat_jax.report.methods docs/methods.md

writes it into a page, between two lines that say so.
"""

import pathlib
import re
import sys
from collections.abc import Mapping

from dimat_jax.algorithms import METHODS, Algorithm, Message
from dimat_jax.report.tables import Table, to_markdown

BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"


def method_table(methods: Mapping[str, Algorithm]) -> Table:
    """A line for each method: its name, label, formula, message and source."""
    lines = [
        [f"`{name}`", found.label, found.update, messages(found), linked(found.source)]
        for name, found in methods.items()
    ]
    return Table("", ["method", "label", "update", "a message holds", "source"], lines)


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def messages(algorithm: Algorithm) -> str:
    """What an agent sends: before the first round, at each merge, in each step, at the end."""
    when = {
        "gossip": "each step",
        "initial": "once, at first",
        "merge": "each round",
        "final": "once, at the end",
    }
    found = [f"{holds(part.message)}; {when[name]}" for name, part in algorithm.parts().items()]
    return " and ".join(found) or "nothing"


def holds(message: Message) -> str:
    """What a message holds, in words."""
    counted = {
        "parameters": message.parameters,
        "statistics": message.statistics,
        "a number": message.scalars,
    }
    held = [
        f"{number} × {what}" if number > 1 else what for what, number in counted.items() if number
    ]
    text = ", ".join(held) or "one network along a tree"
    if message.messages > 1:
        text += f", {message.messages} such"
    if message.to_server:
        text += ", to a server and back"
    if message.to_everyone:
        text += ", to all others whatever the graph"
    return text


def main(page: str) -> None:
    """Replaces the table of a page.

    Raises:
      ValueError: if the page has no place for it.
    """
    path = pathlib.Path(page)
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(
            f"{page} has no lines {BEGIN!r} and {END!r} for the table to stand between."
        )
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    table = to_markdown(method_table(METHODS))
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
