"""The families of `hwprune.testing.networks` as ONNX templates, exported once a process, and random cuts of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cache

from torch import Tensor, nn
from traced_families import random_keep

from hwprune.graph import ChannelGraph, OnnxTemplate, trace
from hwprune.testing.networks import FAMILIES, build

__all__ = ["Together", "exported", "random_keep"]


class Together(nn.Module):
    """Several networks side by side: one export, which costs most of the time, for all of them."""

    def __init__(self, families: Iterable[str]) -> None:
        super().__init__()
        built = {family: build(family) for family in families}
        self.nets = nn.ModuleDict({family: model for family, (model, _) in built.items()})
        self.takes = [len(images) for _, images in built.values()]
        self.example = tuple(image for _, images in built.values() for image in images)

    def forward(self, *images: Tensor) -> list[Tensor]:
        left = iter(images)
        return [net(*itertools.islice(left, count)) for net, count in zip(self.nets.values(), self.takes, strict=True)]


@cache
def exported(
    family: str, batch: int = 2, without: tuple[str, ...] = ()
) -> tuple[nn.Module, ChannelGraph, OnnxTemplate]:
    """The network of a family, or of all but some ("together") side by side, its graph and template; batch 1 or 2."""
    if family == "together":
        model: nn.Module = Together(sorted(set(FAMILIES) - set(without))).eval()
        example = model.example
    else:
        model, example = build(family)
    example = tuple(image[:batch] for image in example)
    graph = trace(model, example)
    return model, graph, OnnxTemplate.export(model, graph)
