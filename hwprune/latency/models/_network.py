"""Small smooth networks, many at once: `K` members trained side by side as one batch, read with numpy alone.

Members differ in their starting weights and in the samples they may see, so an ensemble and all the folds of a
cross-validation cost one training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.latency.features import Array

_DECIMALS = 6  # of the weights kept; a stored network is a third of the size and predicts the same


@dataclass(frozen=True)
class Members:
    """`K` networks `inputs -> SiLU -> SiLU -> 1`: weights `[K, in, out]` and biases `[K, 1, out]` by layer."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def __call__(self, inputs: Array) -> Array:
        """Outputs `[K, B]` for inputs `[B, D]`."""
        hidden = np.broadcast_to(inputs, (len(self.weights[0]), *inputs.shape))
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = _silu(hidden @ weight + bias)
        return np.asarray((hidden @ self.weights[-1] + self.biases[-1])[..., 0])

    def take(self, members: Sequence[int]) -> Members:
        """Some of the members."""
        index = list(members)
        return Members(tuple(w[index] for w in self.weights), tuple(b[index] for b in self.biases))

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes equal members."""
        return {"weights": [w.tolist() for w in self.weights], "biases": [b.tolist() for b in self.biases]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Members:
        """The members that `to_json` wrote."""
        weights = tuple(np.array(w, dtype=np.float64) for w in document["weights"])
        return cls(weights, tuple(np.array(b, dtype=np.float64) for b in document["biases"]))


def train_members(
    inputs: Array, targets: Array, seen: Array, *, hidden: int, decay: float, steps: int, seed: int
) -> Members:
    """Train `K` members on inputs `[N, D]`, each with its own targets `[K, N]` and sample weights `seen` `[K, N]`.

    Huber loss, AdamW with a cosine rate, full batches. The last layer starts at zero, so an untrained member says 0.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    sizes = (inputs.shape[1], hidden, hidden, 1)
    shapes = [(len(seen), a, b) for a, b in itertools.pairwise(sizes)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) * s[1] ** -0.5 for s in shapes]
    weights[-1].zero_()
    biases = [torch.zeros(s[0], 1, s[2], dtype=torch.float64) for s in shapes]
    for tensor in (*weights, *biases):
        tensor.requires_grad_(True)
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    x, y, mask = torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(seen)
    mask = mask / mask.sum(dim=1, keepdim=True)
    for _ in range(steps):
        out = x.expand(len(seen), *x.shape)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            out = torch.nn.functional.silu(out @ weight + bias)
        out = (out @ weights[-1] + biases[-1])[..., 0]
        loss = (mask * torch.nn.functional.huber_loss(out, y, reduction="none")).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    rounded = [np.round(tensor.detach().numpy(), _DECIMALS) for tensor in (*weights, *biases)]
    return Members(tuple(rounded[: len(shapes)]), tuple(rounded[len(shapes) :]))


def _silu(x: Array) -> Array:
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))
