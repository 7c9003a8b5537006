"""The main job: DIMAT against plain weight averaging, from the same pretrained agents.

    python -m experiments.cifar --agents 16

Paper: DIMAT (arXiv 2404.08079), algorithm 1 and table 2. By default 16 agents on a ring, each with
its own images and its own initial weights, train a small convolutional network, then merge and
train on by each method: under 4 minutes on two CPU cores. ``--preset paper`` has the published
network, data, number of agents and epochs (ResNet-20 of width 8 on CIFAR-100: DIMAT 73.99, WA
35.04), which takes a GPU and hours; what units are compared on stays as the options say (512 of
each agent's own images), where the published code takes the images of all: ``--matching-data
shared --statistics-data shared``.
"""

import sys
from collections.abc import Sequence

from experiments import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return common.run("cifar", __doc__, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
