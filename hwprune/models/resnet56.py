"""ResNet-56 for 32x32 images (He et al. 2016, section 4.2): 0.85 M parameters at 10 classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hwprune.models._resnet_cifar import AbstractCifarResNet


@dataclass(frozen=True)
class ResNet56(AbstractCifarResNet):
    """Three stages of 9 basic blocks with 16, 32 and 64 channels."""

    blocks: ClassVar[int] = 9
