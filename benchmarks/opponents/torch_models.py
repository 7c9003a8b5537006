"""The zoo's architectures in PyTorch, as its users write them; channels-last throughout.

The same layers in the same order as `dimat_jax.models`: with the weights copied over, the outputs
are the same.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONVNET = ((16,), (32,), (64,))


class MLP(nn.Module):
    """Three hidden layers of ReLU units on flattened 32 x 32 images."""

    def __init__(self, num_classes: int, width: float):
        super().__init__()
        units = round(256 * width)
        sizes = (32 * 32 * 3, units, units, units)
        self.hidden = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.head = nn.Linear(units, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images ``[batch, channels, height, width]``."""
        x = x.permute(0, 2, 3, 1).flatten(1)  # Nothing moves: the images are channels-last.
        for layer in self.hidden:
            x = functional.relu(layer(x), inplace=True)
        return self.head(x)


class ConvNorm(nn.Module):
    """A 3 x 3 convolution and BatchNorm."""

    def __init__(self, inputs: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normalised features."""
        return self.norm(self.conv(x))


class Stages(nn.Module):
    """Stages of convolutions, each ending in a 2 x 2 maximum; then one dense layer."""

    def __init__(self, num_classes: int, stages: tuple[tuple[int, ...], ...], width: float):
        super().__init__()
        scaled = [[round(c * width) for c in stage] for stage in stages]
        channels = [c for stage in scaled for c in stage]
        self.layers = nn.ModuleList(map(ConvNorm, [3, *channels[:-1]], channels))
        self.lengths = [len(stage) for stage in scaled]
        side = 32 // 2 ** len(stages)
        self.head = nn.Linear(side * side * channels[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images ``[batch, channels, height, width]``."""
        layers = iter(self.layers)
        for length in self.lengths:
            for _ in range(length):
                x = functional.relu(next(layers)(x), inplace=True)
            x = functional.max_pool2d(x, 2)
        return self.head(x.permute(0, 2, 3, 1).flatten(1))


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut; a 3 x 3 projection where the shape changes (DIMAT)."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.first = ConvNorm(inputs, channels, stride)
        self.second = ConvNorm(channels, channels)
        same = stride == 1 and inputs == channels
        self.projection = nn.Identity() if same else ConvNorm(inputs, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the residual stream after the block."""
        y = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(y + self.projection(x), inplace=True)


class ResNet20(nn.Module):
    """Three stages of three basic blocks (He et al. 2016, section 4.2)."""

    def __init__(self, num_classes: int, width: float):
        super().__init__()
        channels = [round(c * width) for c in (16, 32, 64)]
        self.stem = ConvNorm(3, channels[0])
        self.blocks = nn.ModuleList()
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            for index in range(3):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images ``[batch, channels, height, width]``."""
        x = functional.relu(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


FACTORIES: dict[str, Callable[[int, float], nn.Module]] = {
    "mlp": MLP,
    "convnet": lambda num_classes, width: Stages(num_classes, CONVNET, width),
    "vgg16": lambda num_classes, width: Stages(num_classes, VGG16, width),
    "resnet20": ResNet20,
}
"""Name → ``(num_classes, width) -> module``, by the names of `dimat_jax.models`."""


def make(name: str, num_classes: int, width: float) -> nn.Module:
    """Makes a network with its weights channels-last."""
    return FACTORIES[name](num_classes, width).to(memory_format=torch.channels_last)
