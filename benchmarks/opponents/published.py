"""One round of DIMAT with the published code's passes over the data, in PyTorch, made fast.

What it does in a merge (arXiv 2404.08079 and its code): before matching, the BatchNorm statistics
of every network that takes part are reset and recomputed over all training images of all agents;
then all of them run once more over all these images, and the features are correlated; after the
merge the result's statistics are recomputed over all of them. On a ring every agent does so for
itself and its two neighbours: 7 passes per agent. Fully connected, all are merged once, in agent
0's frame: 2 passes per agent and one more. The permutations are not applied to the weights, which
would take milliseconds.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from benchmarks.harness import cores
from benchmarks.opponents import torch_loop
from benchmarks.opponents.passes import passes_of
from benchmarks.opponents.torch_models import ResNet20
from benchmarks.work import Work, noise

FORWARD_BATCH = 100


def round_block(
    work: Work, topology: str, share: float, tests: int, measured_tests: int
) -> Callable[[], dict[str, float]]:
    """A block that measures one round: merge, evaluation, an epoch of training, evaluation.

    Every kind of pass is measured over a share of its images, and multiplied by how many there are.

    Args:
      work: the agents, and an epoch of their training; the model must be resnet20.
      topology: ring or fully_connected.
      share: of the images of a pass that are measured.
      tests: test images of an evaluation.
      measured_tests: those of them that are measured.

    Returns:
      A function that returns the seconds of each part of one whole round.
    """
    torch.set_num_threads(cores())
    images, labels = noise(work.images)
    agents = torch_loop.make_agents(work, images, labels)
    device = agents[0].images.device
    pool = torch.from_numpy(images[: max(FORWARD_BATCH, round(share * len(images)))]).to(device)
    test = [torch.from_numpy(x).to(device) for x in noise(measured_tests, seed=1)]
    steps = max(1, round(share * work.steps))
    part = [a._replace(images=a.images[: steps * work.batch]) for a in agents]
    passes, share = passes_of(topology, work.agents), len(pool) / len(images)
    group = [agent.model for agent in agents[: passes.networks]]
    tables: list[np.ndarray] = []

    def block() -> dict[str, float]:
        def seconds(function: Callable[[], object]) -> float:
            start = time.perf_counter()
            function()
            torch_loop.synchronize(device)
            return time.perf_counter() - start

        trained = seconds(lambda: torch_loop.train(part, work.batch))
        return {
            "statistics": passes.resets * seconds(lambda: reset(group[0], pool)) / share,
            "match": passes.groups * seconds(lambda: tables.extend(match(group, pool))) / share,
            "assign": passes.groups * seconds(lambda: assign(tables)),
            "mix": passes.groups * seconds(lambda: average(group)),
            "train": trained * work.steps / steps,
            "evaluate": 2
            * seconds(lambda: torch_loop.evaluate(part, *test))
            * (tests / measured_tests),
        }

    return block


@torch.no_grad()
def reset(model: nn.Module, images: torch.Tensor) -> None:
    """Recomputes the BatchNorm statistics: the average of those of all batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in images.split(FORWARD_BATCH):
        model(torch_loop.normalize(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.inference_mode()
def match(models: Sequence[ResNet20], images: torch.Tensor) -> list[np.ndarray]:
    """Correlates the features of the first network with those of every other one.

    Returns:
      For each other network and each place a table ``[units, units]``.
    """
    sums: list[list[torch.Tensor]] = []
    for batch in images.split(FORWARD_BATCH):
        x = torch_loop.normalize(batch)
        first, *others = (features_of(model, x) for model in models)
        added = [products(f, g) for other in others for f, g in zip(first, other, strict=True)]
        before = sums or [[torch.zeros_like(y) for y in one] for one in added]
        sums = [
            [a.add_(b) for a, b in zip(*pair, strict=True)]
            for pair in zip(before, added, strict=True)
        ]
    rows = [len(images) * (32 // 2**stage) ** 2 for stage in stages()] * (len(models) - 1)
    return [correlation(one, n).cpu().numpy() for one, n in zip(sums, rows, strict=True)]


def products(f: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    """The sums over rows that a correlation of units is made of."""
    return [f.sum(0), g.sum(0), f.square().sum(0), g.square().sum(0), f.T @ g]


def correlation(sums: Sequence[torch.Tensor], n: int) -> torch.Tensor:
    """Pearson's correlation of units, 0 for constant ones.

    Args:
      sums: over ``n`` rows, of one network's features, of the other's, of the squares of both, and
        of their products.
      n: number of rows.
    """
    f, g, ff, gg, fg = sums
    deviations = [(xx / n - (x / n) ** 2).clamp_min(0).sqrt() for x, xx in ((f, ff), (g, gg))]
    table = (fg / n - torch.outer(f, g) / n**2) / torch.outer(*deviations)
    return table.nan_to_num(0.0, 0.0, 0.0)


def stages() -> list[int]:
    """The stage of each place that `features_of` reads."""
    return [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]


def features_of(model: ResNet20, x: torch.Tensor) -> list[torch.Tensor]:
    """The inside of each of the nine blocks, then each residual stream where it ends.

    Returns:
      Post-activation features ``[images * pixels, units]``; nothing is copied.
    """
    inside: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    hooks = [
        block.second.register_forward_pre_hook(lambda module, args: inside.append(args[0]))
        for block in model.blocks
    ]
    hooks += [
        model.blocks[last].register_forward_hook(lambda module, args, out: ends.append(out))
        for last in (2, 5, 8)
    ]
    model.eval()
    model(x)
    for hook in hooks:
        hook.remove()
    return [y.permute(0, 2, 3, 1).flatten(0, 2) for y in [*inside, *ends]]


def assign(tables: list[np.ndarray]) -> list[np.ndarray]:
    """The permutation that maximises the sum of correlations, for each table; empties the list."""
    chosen = [linear_sum_assignment(table, maximize=True)[1] for table in tables]
    tables.clear()
    return chosen


@torch.no_grad()
def average(models: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """The mean of the networks' weights."""
    states = [model.state_dict() for model in models]
    return {name: torch.stack([s[name].float() for s in states]).mean(0) for name in states[0]}
