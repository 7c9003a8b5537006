"""Language: decoders of characters, pretrained apart, then merged by DIMAT, WM and WA.

    python -m experiments.language --agents 8

The text is the language reference that every Python carries (``--dataset tiny_shakespeare``: Tiny
Shakespeare); losses are in nats per character. ``--partition by_class`` gives each agent contiguous
parts of it, so that they differ in topics or speakers. All options are those of
``experiments.cifar``.
"""

import sys
from collections.abc import Sequence

from experiments import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return common.run("language", __doc__, given, preset="language")


if __name__ == "__main__":
    sys.exit(main())
