"""The families of `hwprune.testing.networks` as ONNX templates, exported once a process, and random cuts of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import Tensor, nn
from traced_families import random_keep

from hwprune.graph import ChannelGraph, OnnxTemplate, trace
from hwprune.testing.networks import build

__all__ = ["TOGETHER", "Together", "exported", "random_keep"]

TOGETHER = (
    "chain densenet grouped mobilenetv1 mobilenetv2 registered resnet18 resnet50 resnet_option_a resnet_option_b"
    " shuffle squeeze_excite tied unet"
)


class Together(nn.Module):
    """Several networks side by side: one export, which costs most of the time, for all of them."""

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        built = {family: build(family) for family in families}
        self.nets = nn.ModuleDict({family: model for family, (model, _) in built.items()})
        self.example = tuple(example for _, (example,) in built.values())

    def forward(self, *images: Tensor) -> list[Tensor]:
        return [net(image) for net, image in zip(self.nets.values(), images, strict=True)]


@cache
def exported(family: str, batch: int = 2) -> tuple[nn.Module, ChannelGraph, OnnxTemplate]:
    """The network of a family, or of those in `TOGETHER` side by side, with its graph and template; batch 1 or 2."""
    if family == "together":
        model: nn.Module = Together(TOGETHER.split()).eval()
        example = model.example
    else:
        model, example = build(family)
    example = tuple(image[:batch] for image in example)
    graph = trace(model, example, verify=family != "together")  # its families are verified one by one
    return model, graph, OnnxTemplate.export(model, graph)
