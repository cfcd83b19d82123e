"""The residual network of He et al. 2016, section 4.2, for 32x32 images: three stages of basic blocks.

Parameter names are those of akamaster/pytorch_resnet_cifar10, so its published weights load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from hwprune.models._base import AbstractReference
from hwprune.models._layers import global_average, initialise, scaled


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels `before` and `after` the existing ones. No parameters."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, before + C + after, ceil(H / 2), ceil(W / 2))`."""
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, option)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, channels, H / stride, W / stride)`."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(images))


def _shortcut(in_channels: int, channels: int, stride: int, option: str) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    if option == "A" and stride == 2:
        before = (channels - in_channels) // 2
        return PadShortcut(before, channels - in_channels - before)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class CifarResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks with `channels` each, global average, linear classifier."""

    def __init__(
        self, blocks: tuple[int, ...], channels: tuple[int, ...], classes: int, in_channels: int, option: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[0], blocks[0], 1, option)
        self.layer2 = _stage(channels[0], channels[1], blocks[1], 2, option)
        self.layer3 = _stage(channels[1], channels[2], blocks[2], 2, option)
        self.linear = nn.Linear(channels[2], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, classes)`."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(global_average(out))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, option)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, option) for _ in range(blocks - 1)))


@dataclass(frozen=True)
class AbstractCifarResNet(AbstractReference):
    """What ResNet-20, 32 and 56 share; the depth is 6 * `blocks` + 2."""

    default_classes: ClassVar[int] = 10
    default_input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    blocks: ClassVar[int]

    width: float = field(default=1.0, metadata={"help": "multiplies the channels 16, 32, 64"})
    option: Literal["A", "B"] = field(default="A", metadata={"help": "shortcut: A zero-padded, B 1x1 convolution"})

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input `(N, in_channels, H, W)`, logits `(N, classes)`."""
        channels = tuple(scaled(base, self.width) for base in (16, 32, 64))
        return CifarResNet((self.blocks,) * 3, channels, classes, in_channels, self.option)
