"""A data set and a network so small that a training step takes about a millisecond."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.training import ArraySet, Augment, Data


def toy_data(count: int = 96, classes: int = 4) -> Data:
    """Noisy 3x6x6 uint8 images of `classes` patterns: `count` to train on, 32 and 48 to decide and report."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 255, (classes, 3, 6, 6), generator=random).float()

    def draw(size: int) -> ArraySet:
        targets = torch.randint(0, classes, (size,), generator=random)
        noise = 60 * torch.randn(size, 3, 6, 6, generator=random)
        return ArraySet((patterns[targets] + noise).clamp(0, 255).byte(), targets)

    train, val, test = draw(count), draw(32), draw(48)
    return Data("toy", train, val, test, classes, (127.0,) * 3, (70.0,) * 3, Augment(flip=True, crop=1))


def toy_network(seed: int = 0, classes: int = 4) -> nn.Sequential:
    """Convolution, batch norm, dropout, linear: all that a resumed training can get wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, classes),
        )
