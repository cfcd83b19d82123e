"""A VGG-like chain with batch normalisation (Simonyan and Zisserman 2015, adapted to 32x32 images as is usual)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.models._base import AbstractReference
from hwprune.models._layers import global_average, initialise, scaled

# channels of the convolutions; 0 is a 2x2 max pooling
LAYERS = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
}


class VggNetwork(nn.Module):
    """Convolutions, then either a global average or a flattening, then one or two linear layers."""

    def __init__(self, layers: tuple[int, ...], classes: int, in_channels: int, hidden: int) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = in_channels
        for out in layers:
            if out == 0:
                features.append(nn.MaxPool2d(2))
                continue
            features += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.features = nn.Sequential(*features)
        self.flattens = hidden > 0
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            *([nn.Linear(4 * channels, hidden), nn.ReLU()] if hidden else []),
            nn.Linear(hidden or channels, classes),
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, classes)`; H and W at least 32."""
        features = self.features(images)
        flat = torch.flatten(self.pool(features), 1) if self.flattens else global_average(features)
        logits: Tensor = self.classifier(flat)
        return logits


@dataclass(frozen=True)
class Vgg(AbstractReference):
    """VGG-11 or VGG-16 with batch normalisation: 9.2 M and 14.7 M parameters at width 1 and 10 classes."""

    default_classes: ClassVar[int] = 10
    default_input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    depth: int = field(default=16, metadata={"help": "11 or 16 layers"})
    width: float = field(default=1.0, metadata={"help": "multiplies all channels (rounded to 8)"})
    hidden: int = field(
        default=0, metadata={"help": "units of a hidden linear layer between flattening and output; 0: none"}
    )

    def __post_init__(self) -> None:
        if self.depth not in LAYERS or self.hidden < 0:
            raise UsageError(
                f"vgg has no variant with depth={self.depth} and hidden={self.hidden}", hint="depth 11 or 16"
            )

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input `(N, in_channels, H, W)`, logits `(N, classes)`."""
        layers = tuple(scaled(base, self.width) if base else 0 for base in LAYERS[self.depth])
        return VggNetwork(layers, classes, in_channels, self.hidden)
