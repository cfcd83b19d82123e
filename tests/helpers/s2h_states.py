"""States of an S2HPruner search, and gradients by its weights and logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hwprune.methods import Problem
from hwprune.methods._s2h_search import S2HSearch
from hwprune.methods._saliency import taylor
from hwprune.methods.s2hpruner import S2HPruner

LEARNING = 0.3


def started(problem: Problem, **options: Any) -> S2HSearch:
    return S2HSearch(problem, S2HPruner(**options), taylor(problem, images=16).scores)


def scattered(search: S2HSearch, seed: int = 0) -> S2HSearch:
    """The search somewhere on its way: random logits, so that soft and hard network differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in search.choice.values:
            logits.copy_(torch.randn(logits.shape, generator=generator))
    return search


def masks_of(search: S2HSearch) -> list[Tensor]:
    values = list(search.choice.values)
    return search.grid.soft_masks(search.choice.probabilities(values, search.options.temperature))


def gradients(search: S2HSearch, loss: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a loss by the weights (zeros where it does not reach) and by the logits, concatenated."""
    named = dict(search.model.named_parameters())
    logits = list(search.choice.values)
    found = torch.autograd.grad(loss, [*named.values(), *logits], allow_unused=True, retain_graph=True)
    whole = [torch.zeros_like(t) if g is None else g for t, g in zip([*named.values(), *logits], found, strict=True)]
    return dict(zip(named, whole, strict=False)), torch.cat(whole[len(named) :])


def size(weights: dict[str, Tensor]) -> float:
    return sum(float(gradient.abs().sum()) for gradient in weights.values())


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-6)


def expected_widths(search: S2HSearch) -> list[Tensor]:
    return search.grid.expected(search.choice.now(search.options.temperature))
