"""What the presets need of accelerators that are not here: memory, and time at least.

    python -m experiments.estimates --devices h100 a100 v5e v4

Each row is `dimat_jax.estimate` of one configuration on one device, compiled for it if the packages
are there (``pip install libtpu jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
nvidia-cudnn-cu12``, those of JAX's own version), each in a process of its own. Rows that the folder
has already are kept unless they are asked for again.
"""

import csv
import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from dimat_jax.config import Config
from experiments import common

PAPER = dict(preset="paper")
CONFIGURATIONS: dict[str, dict] = {
    "quick": {},
    "paper": PAPER,
    "paper, VGG16": PAPER | dict(model="vgg16", width=1.0),
    "paper, ResNet-50": PAPER | dict(model="resnet50", width=1.0),
}
"""What is estimated, by name: options of `dimat_jax.Config`."""
COLUMNS = (
    *("configuration", "device", "devices", "held", "merging", "temporaries", "total", "there is"),
    *("fits", "epoch", "merge", "run"),
)
NAME = "estimates"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is estimated, and where that is written."""

    configurations: tuple[str, ...] = tuple(CONFIGURATIONS)
    """Which: quick, paper, or paper with another model."""
    devices: tuple[str, ...] = ("h100", "a100", "v5e", "v4")
    """On what."""
    out: pathlib.Path = pathlib.Path("docs/results")
    """The folder of estimates.csv and estimates.md."""
    compiles: bool = True
    """Whether programs are compiled; else what they compute with stays unknown."""
    minutes: float = 60.0
    """At most so many for one row; what takes longer is estimated without compiling."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return common.exit_code(lambda: write_all(common.command_line(Options, NAME, __doc__, given)))


def write_all(options: Options) -> None:
    """Estimates all that is asked for, and writes the table after each."""
    for name in options.configurations:
        for device in options.devices:
            row = row_in_own_process(name, device, options)
            write(options.out, [*(r for r in read(options.out) if r[:2] != row[:2]), row])
            print(" | ".join(row), flush=True)


def row_in_own_process(name: str, device: str, options: Options) -> list[str]:
    """A row; from a process of its own, for a compiler keeps what it has taken of memory."""
    said = ""
    for compiles in (True, False) if options.compiles else (False,):
        command = [sys.executable, "-m", f"experiments.{NAME}_row", name, device, str(compiles)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60 * options.minutes
            )
        except subprocess.TimeoutExpired:
            continue
        said = done.stderr.strip()[-300:]
        if done.returncode == 0:
            return next(csv.reader([done.stdout.splitlines()[-1]]))
    raise ValueError(f"No estimate of {name} on {device}: {said}")


def configuration(name: str) -> Config:
    """A configuration by its name."""
    return Config(**CONFIGURATIONS[common.choose("configuration", name, CONFIGURATIONS)])


def read(folder: pathlib.Path) -> list[list[str]]:
    """The rows that there are."""
    file = folder / f"{NAME}.csv"
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))[1:]


def write(folder: pathlib.Path, rows: list[list[str]]) -> None:
    """Writes rows as a CSV file and as a page."""
    from dimat_jax.estimate.accelerators import ACCELERATORS
    from dimat_jax.report.tables import Table, to_markdown

    place = {name: i for i, name in enumerate([*CONFIGURATIONS, *ACCELERATORS])}
    rows = sorted(rows, key=lambda row: [place.get(x, 0) for x in row[:2]])
    with (folder / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    vendors = [
        [name, a.label, f"{a.operations / 1e12:g}", f"{(a.bandwidth or 0) / 1e12:g}",
         f"{a.memory * a.usable / 1e9:.3g}", a.source]
        for name, a in ACCELERATORS.items()
    ]  # fmt: skip
    columns = ["device", "label", "10¹² operations/s", "TB/s", "GB for a run", "source"]
    tables = to_markdown(Table("", list(COLUMNS), rows)), to_markdown(Table("", columns, vendors))
    (folder / f"{NAME}.md").write_text(PAGE.format(*tables) + f"\n{COMPARED}", encoding="utf-8")


COMPARED = """## Against what was measured

The training epoch compiled for an H100 that is not here, and what [the benchmark](gpu.md) had on
one (JAX 0.11.2; here 0.10.2), batches of 32 images:

| agents | compiled: temporaries and arguments | measured: memory | roofline, images/s | measured |
|---|---:|---:|---:|---:|
| 4 ResNet-20s | 0.96 GB | 1.0 GB | 156,000 | 39,594 |
| 16 ResNet-20s | 3.75 GB | 3.8 GB | 156,000 | 46,607 |
| 64 ResNet-20s | 14.95 GB | 14.9 GB | 156,000 | 48,899 |
| 16 ResNet-20s of width 4 | 15.3 GB | 15.4 GB | 38,000 | 14,694 |
| 16 convnets | 0.30 GB | 0.6 GB | 2,768,000 | 502,577 |

The roofline is that of bytes in all of them; by operations alone it is 3 to 12 times as high.

Rows without temporaries: five ResNet-50s did not compile for an H100 within 6 minutes on two busy
cores, and were not tried for the A100; the paper's networks were not compiled for TPUs.

## Patches of images: kept or made again

The paper's training epoch (ResNet-20 of width 8, batches of 100), compiled and not run. *moved*: on
the H100 what the instructions of one step read and write, added up over the compiled program; on
the v5e what XLA's `cost_analysis` says, of two agents.

| device | agents | convolutions | temporaries | moved in a step | transposes |
|---|---:|---|---:|---:|---:|
| h100 | 5 | products, patches kept | 28.7 GB | 174 GB | 19 |
| h100 | 5 | products, patches made again | 7.0 GB | 211 GB | 21 |
| h100 | 5 | products, one for each place in the window | 28.0 GB | 318 GB | 19 |
| h100 | 5 | grouped | 8.2 GB | 73 GB | 87 |
| v5e | 2 | products, patches kept | 7.1 GB | 100 GB | 8 |
| v5e | 2 | products, patches made again | 3.6 GB | 119 GB | 8 |

Patches that are made again for the gradient (`jax.checkpoint` around each product) give the same
numbers to rounding and take a quarter of the temporaries on the H100 and half on the v5e; 20 % more
is moved. So they are kept where those of all agents at once take at most 0.6 of a device's memory
(`execution.placement.with_patches`), and else made again. Grouped convolutions are no fallback: on
the H100 they take more memory than that. 0.6, because what is computed with is 1.15 times the
patches' 24.8 GB there. On TPUs XLA does not keep all patches, and the rule is on the safe side.

A product for each place in the window has no patches, but XLA keeps the slices of the images
instead. The transposes of the grouped form bring the agents' axis next to the channels, as cuDNN's
grouped convolutions have it, and back: 30 of its 73 GB. It was not compiled for the v5e within 20
minutes. Bytes alone do not say what is faster: products of ResNet-20 of width 1 were
[measured](gpu.md) at 1.76 times the speed of grouped convolutions.
"""
PAGE = """# What the presets need of accelerators

`python -m experiments.estimates`; for one run, `python -m experiments.cifar --preset paper
--estimate h100`, or `dj.estimate(config, "h100")`. Nothing here was run on these devices: the
programs of the run are compiled for them by XLA on a machine that has none, and the compiler says
what they need.

{0}

Bytes are of one device. *held*: variables and optimizers of the agents there, the same of the
pretrained agents, from whom every method begins, what methods remember, and the examples.
*merging*: the networks of neighbours that a merge holds. *temporaries*: what the largest program
computes with, as its compiler says; `-` where nothing was compiled, and *total* is then a lower
bound and *fits* open. A GPU's share is the three quarters that JAX takes by default
(`XLA_PYTHON_CLIENT_MEM_FRACTION`). GPUs are compiled for without trying kernels
(`--xla_gpu_autotune_level=0`): on the device another algorithm, with another workspace, may be
chosen.

*epoch* (local training of all agents), *merge* and *run* are lower bounds: a roofline, the more of
the operations of all matrix products at the device's peak and of the bytes of their operands and
results at its bandwidth. Elementwise work, compilation, the assignment on the host and the links
between devices are left out, and no program reaches a peak.

{1}
"""


if __name__ == "__main__":
    sys.exit(main())
