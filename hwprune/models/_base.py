"""The contract of a reference network: a frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn


class AbstractReference(ABC):
    """One reference network. `load_model` fills the options from `NAME?option=value` and calls `build` once.

    A subclass is a frozen dataclass, the only one in its file; every field has a default and a `help` in its metadata.
    """

    default_classes: ClassVar[int]
    default_input_shape: ClassVar[tuple[int, int, int]]

    @abstractmethod
    def build(self, classes: int, in_channels: int) -> nn.Module:
        """The network with fresh weights: input `(N, in_channels, H, W)`, output `(N, classes)` unless it says so."""
