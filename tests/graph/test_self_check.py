"""What the self-check must see: mistakes behind closed gates, in edits, in discrete outputs and in training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.graph import trace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A stem, whatever `make` adds, and a head that subclasses put together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.make()
        self.eval()

    def make(self) -> None:
        """Add layers."""

    def head(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def removable(model: nn.Module) -> list[str]:
    return [group.name for group in trace(model, IMAGES).removable]


class Gated(Small):
    """A branch behind a number, with a mistake in it: the first eight channels, whoever they are, count twice."""

    gate: nn.Parameter

    def make(self) -> None:
        self.wide, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        wide = torch.cat([F.relu(self.wide(x))[:, :8] * 2, F.relu(self.wide(x))[:, 8:]], 1)
        return self.head(x + self.gate.tanh() * self.narrow(wide))


class Attention(Gated):
    """Attention whose temperature follows the number of channels that are left."""

    def make(self) -> None:
        self.query, self.key, self.value = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        query, key, value = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)
        scores = query.transpose(1, 2) @ key / math.sqrt(query.shape[1])
        return self.head(x + self.gate * (value @ scores.softmax(-1).transpose(1, 2)).view(x.shape))


@pytest.mark.parametrize("network", [Gated, Attention])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_closed_gate_hides_nothing(network: type[Gated], shape: tuple[int, ...]) -> None:
    found = []
    for value in (0.0, 1.0):
        model = network()
        model.gate = nn.Parameter(torch.full(shape, value))
        found.append(removable(model))
    assert found[0] == found[1] == ["stem"]
