"""Where a command writes: any text, in any encoding."""

import sys

from rich.console import Console


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """A console on which text is what it is: brackets in a folder's name are no markup.

    Args:
      stderr: whether it is standard error, else standard output.
      quiet: whether nothing is written at all.
    """
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def take_any_text() -> None:
    """Has standard output replace what its encoding lacks, ± in ASCII, say, as standard error does.

    A command's own streams: libraries leave them alone.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
