"""DnCNN (Zhang et al. 2017): 17 convolutions that estimate the noise of an image. Names as in SaoYan/DnCNN-PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.models._base import AbstractReference
from hwprune.models._layers import initialise, scaled


class DnCnnNetwork(nn.Module):
    """Convolutions without bias, batch normalisation and ReLU between them; the input minus their output."""

    def __init__(self, channels: int, depth: int, image_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(image_channels, channels, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(channels, image_channels, 3, padding=1, bias=False))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Noisy `(N, C, H, W)` to denoised `(N, C, H, W)`."""
        noise: Tensor = self.dncnn(images)
        return images - noise


@dataclass(frozen=True)
class DnCnn(AbstractReference):
    """0.56 M parameters at 17 layers, 64 channels and grey images; `classes` has no meaning here."""

    default_classes: ClassVar[int] = 1
    default_input_shape: ClassVar[tuple[int, int, int]] = (1, 64, 64)

    width: float = field(default=1.0, metadata={"help": "multiplies the 64 channels (rounded to 8)"})
    depth: int = field(default=17, metadata={"help": "number of convolutions, at least 3"})

    def __post_init__(self) -> None:
        if self.depth < 3:
            raise UsageError(f"dncnn has no variant with depth={self.depth}", hint="depth is at least 3; 17 is usual")

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input and output `(N, in_channels, H, W)`."""
        return DnCnnNetwork(scaled(64, self.width), self.depth, in_channels)
