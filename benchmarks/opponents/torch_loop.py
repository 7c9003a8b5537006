"""Training in PyTorch, one agent after the other: what the paper's code does, made fast.

Channels-last, images resident as uint8, augmentation on whole batches, a fused optimizer, all
cores; float32 as ours.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness import cores
from benchmarks.opponents import torch_models
from benchmarks.work import NUM_CLASSES, Work, noise

PADDING = 4


class Agent(NamedTuple):
    """One agent: its network, its optimizer and its data.

    Attributes:
      model: the network.
      forward: the same, or what `torch.compile` made of it.
      optimizer: SGD with momentum.
      images: uint8 ``[examples, height, width, channels]``.
      labels: int64 ``[examples]``.
    """

    model: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    images: torch.Tensor
    labels: torch.Tensor


def make_agents(
    work: Work, images: np.ndarray, labels: np.ndarray, compiled: bool = False
) -> list[Agent]:
    """Makes all agents of a piece of work, each with its own weights and an equal part of the data.

    Args:
      work: how many agents, of which model.
      images: uint8 ``[examples, height, width, channels]``.
      labels: integers ``[examples]``.
      compiled: whether the networks run through `torch.compile`.
    """
    device = device_of(work.backend)
    parts = zip(
        torch.from_numpy(images).to(device).chunk(work.agents),
        torch.from_numpy(labels.astype(np.int64)).to(device).chunk(work.agents),
        strict=True,
    )
    return [make_agent(work, *part, device, compiled) for part in parts]


def make_agent(
    work: Work, images: torch.Tensor, labels: torch.Tensor, device: torch.device, compiled: bool
) -> Agent:
    """Makes one agent with initial weights of its own."""
    model = torch_models.make(work.model, NUM_CLASSES, work.width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate, momentum=0.9, fused=True)
    forward = torch.compile(model) if compiled else model
    return Agent(model, forward, optimizer, images, labels)


def device_of(backend: str | None) -> torch.device:
    """The device on which PyTorch runs where JAX runs on this backend."""
    gpu = backend == "gpu" or (backend is None and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


def train(agents: Sequence[Agent], batch: int) -> None:
    """One epoch of every agent, one after the other; waits for the device."""
    for agent in agents:
        agent.model.train()
        order = torch.randperm(len(agent.images), device=agent.images.device)
        for rows in order.split(batch):
            train_step(agent, rows)
    synchronize(agents[0].images.device)


def train_step(agent: Agent, rows: torch.Tensor) -> None:
    """One step of one agent on the given rows of its data."""
    agent.optimizer.zero_grad(set_to_none=True)
    x = normalize(flip_and_crop(agent.images[rows]))
    functional.cross_entropy(agent.forward(x), agent.labels[rows]).backward()
    agent.optimizer.step()


def flip_and_crop(images: torch.Tensor) -> torch.Tensor:
    """Mirrors each image with probability 1/2 and crops it at random from a black frame."""
    batch, height, width, _ = images.shape
    flip = torch.rand(batch, 1, 1, 1, device=images.device) < 0.5
    images = torch.where(flip, images.flip(2), images)
    framed = functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    windows = framed.unfold(1, height, 1).unfold(2, width, 1)  # a view: nothing is copied
    corners = torch.randint(2 * PADDING + 1, (2, batch), device=images.device)
    chosen = windows[torch.arange(batch, device=images.device), corners[0], corners[1]]
    return chosen.permute(0, 2, 3, 1)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Bytes, channels last, to floats ``[batch, channels, height, width]``, channels-last."""
    x = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return x.float().sub_(127.5).mul_(1 / 64)


def epochs(work: Work, compiled: bool = False) -> Callable[[], None]:
    """A block that trains all agents for an epoch on random images, on all cores."""
    torch.set_num_threads(cores())
    agents = make_agents(work, *noise(work.images), compiled=compiled)
    return lambda: train(agents, work.batch)


@torch.inference_mode()
def evaluate(agents: Sequence[Agent], images: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """The number of test images that each agent classifies correctly."""
    correct = []
    for agent in agents:
        agent.model.eval()
        batches = zip(images.split(250), labels.split(250), strict=True)
        hits = sum((agent.model(normalize(x)).argmax(1) == y).sum() for x, y in batches)
        correct.append(int(hits))
    return correct


def synchronize(device: torch.device) -> None:
    """Waits for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
