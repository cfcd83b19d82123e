"""The quick start: a residual network for 8x8 grey digits, wide enough that a tile of 16 leaves much to choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from hwprune.models._base import AbstractReference
from hwprune.models._layers import scaled
from hwprune.models._resnet_cifar import CifarResNet


@dataclass(frozen=True)
class DigitsResNet(AbstractReference):
    """Three stages of two basic blocks with 64, 96 and 128 channels at 8x8, 4x4 and 2x2 pixels.

    9 channel groups to choose from, 1.0 M parameters, 16.7 M MACs; shortcuts by 1x1 convolution.
    """

    default_classes: ClassVar[int] = 10
    default_input_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)

    width: float = field(default=1.0, metadata={"help": "multiplies the channels 64, 96, 128 (rounded to 8)"})

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input `(N, in_channels, 8, 8)`, logits `(N, classes)`."""
        channels = tuple(scaled(base, self.width) for base in (64, 96, 128))
        return CifarResNet((2, 2, 2), channels, classes, in_channels, "B")
