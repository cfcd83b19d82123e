"""Tiny networks, one for each family of wiring that surgery must get exactly right. For tests and plugins' tests.

`FAMILIES` maps a name to a function that returns the network with random weights and an example input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwprune.graph.check import lively
from hwprune.testing.network_blocks import (
    Bottleneck,
    C2f,
    Chain,
    DenseNet,
    GroupedTransposed,
    GroupNormNet,
    InvertedResidual,
    OptionABlock,
    OptionBBlock,
    Registered,
    ResNet,
    Shuffle,
    SqueezeExcite,
    SubPixel,
    Tied,
    Transformer,
    TwoInputs,
    UNet,
    conv_bn,
)

Built = tuple[nn.Module, tuple[Tensor, ...]]


def _image(size: int, batch: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, size, size),)


def _option(block: Callable[[int, int, int], nn.Module]) -> Built:
    blocks = [block(8, 8, 1), block(8, 16, 2), block(16, 16, 1), block(16, 32, 2), block(32, 32, 1)]
    return ResNet(conv_bn(3, 8), blocks, 32), _image(12)


def _resnet18() -> Built:
    stem = nn.Sequential(*conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
    blocks: list[nn.Module] = [OptionBBlock(8, 8, 1), OptionBBlock(8, 12, 2), OptionBBlock(12, 12, 1)]
    return ResNet(stem, blocks, 12), _image(24)


def _resnet50(groups: int = 1) -> Built:
    blocks: list[nn.Module] = [Bottleneck(8, 8, 16, 1, groups), Bottleneck(16, 12, 24, 2, groups)]
    return ResNet(conv_bn(3, 8), blocks, 24), _image(12)


def _mobilenetv1() -> Built:
    layers = [(8, 12, 1), (12, 16, 2), (16, 16, 1)]
    blocks: list[nn.Module] = [nn.Sequential(conv_bn(a, a, 3, s, a), conv_bn(a, b, 1)) for a, b, s in layers]
    return ResNet(conv_bn(3, 8, 3, 2), blocks, 16), _image(16)


def _mobilenetv2() -> Built:
    blocks: list[nn.Module] = [
        InvertedResidual(8, 24, 10, 1),
        InvertedResidual(10, 30, 10, 1),
        InvertedResidual(10, 30, 12, 2),
        conv_bn(12, 20, 1),
    ]
    return ResNet(conv_bn(3, 8, 3, 2), blocks, 20), _image(16)


FAMILIES: dict[str, Callable[[], Built]] = {
    "chain": lambda: (Chain(), _image(16)),
    "resnet_option_a": lambda: _option(OptionABlock),
    "resnet_option_b": lambda: _option(OptionBBlock),
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "resnext": lambda: _resnet50(groups=2),
    "mobilenetv1": _mobilenetv1,
    "mobilenetv2": _mobilenetv2,
    "densenet": lambda: (DenseNet(), _image(8)),
    "unet": lambda: (UNet(), _image(8)),
    "squeeze_excite": lambda: (SqueezeExcite(), _image(8)),
    "grouped": lambda: (GroupedTransposed(), _image(8)),
    "shuffle": lambda: (Shuffle(), _image(8)),
    "c2f": lambda: (C2f(), _image(16)),
    "subpixel": lambda: (SubPixel(), _image(8)),
    "transformer": lambda: (Transformer(), _image(16)),
    "two_inputs": lambda: (TwoInputs(), (*_image(8), *_image(8))),
    "group_norm": lambda: (GroupNormNet(), _image(8)),
    "registered": lambda: (Registered(), _image(12)),
    "tied": lambda: (Tied(), _image(8)),
}


def build(family: str, seed: int = 0) -> Built:
    """The network of a family in eval mode, its weights drawn from the seed and its signal alive in every layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, example = FAMILIES[family]()
    return lively(model, example), example
