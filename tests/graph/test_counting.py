"""Channel counts, MACs and parameters as functions of the widths, against the cut network itself."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced_families import random_keep, traced

from hwprune.core.ops import OpTemplate
from hwprune.graph import cut, trace
from hwprune.testing.networks import FAMILIES


def slow_macs(model: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs counted from the shapes that really run, module by module."""
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += args[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv2d):
            total += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += out.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model(*example)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_of_the_cut_network(family: str) -> None:
    model, example, graph = traced(family)
    for seed in range(3):
        keep = random_keep(graph, seed)
        widths = {name: len(kept) for name, kept in keep.items()}
        small = cut(model, graph, keep)
        assert graph.widths_of(keep) == graph.full(widths)
        assert graph.macs(widths) == slow_macs(small, example)
        assert graph.params(widths) == sum(parameter.numel() for parameter in small.parameters())
    assert graph.macs({}) == slow_macs(model, example)


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_equal_those_of_the_cut_network_traced_afresh(family: str) -> None:
    model, example, graph = traced(family)
    # At least two units: a dim of size 1 carries no labels, so its operator would be described otherwise.
    keep = {group.name: list(range(0, group.units, 2)) for group in graph.removable}
    fresh = trace(cut(model, graph, keep), example, verify=False)
    expected = [template.at(dict(fresh.dense())) for template in fresh.op_templates]
    assert list(graph.ops({name: len(kept) for name, kept in keep.items()})) == expected


@pytest.mark.parametrize("family", ["mobilenetv2", "densenet", "transformer", "grouped", "unet"])
def test_batches_of_widths(family: str) -> None:
    _, _, graph = traced(family)
    space = graph.space(min_keep=0)
    rng = random.Random(0)
    samples = [space.sample(rng) for _ in range(20)]
    values = np.array([sample.values_tuple() for sample in samples])
    assert graph.macs_batch(space, values).tolist() == [graph.macs(sample) for sample in samples]
    assert graph.params_batch(space, values).tolist() == [graph.params(sample) for sample in samples]


def test_the_space_lives_on_the_tile_grid() -> None:
    _, _, graph = traced("mobilenetv2")
    space = graph.space(tile=8, min_keep=0.5)
    allowed = dict(zip(space.names, space.widths, strict=True))
    assert allowed["blocks.0.body.0.0"] == (16, 24)
    assert allowed["blocks.2.body.0.0"] == (16, 24, 30)
    assert allowed["blocks.0.body.4"] == (8, 10)
    assert "fc" not in space.names


def test_a_tile_counts_channels_not_units() -> None:
    _, _, graph = traced("resnext")
    group = graph.group("blocks.1.body.0.0")
    assert (group.units, group.unit_channels) == (6, 2)
    allowed = dict(zip(graph.space(tile=4).names, graph.space(tile=4).widths, strict=True))
    assert allowed[group.name] == (2, 4, 6)


def test_operators_are_named_after_their_modules() -> None:
    model, _, graph = traced("resnet_option_b")
    modules = dict(model.named_modules())
    names = [template.name for template in graph.op_templates]
    assert len(set(names)) == len(names)
    weighted = [template for template in graph.op_templates if template.kind in ("conv", "linear", "norm")]
    assert all(template.name in modules for template in weighted)
    assert {module for module in modules if isinstance(modules[module], nn.Conv2d)} < {t.name for t in weighted}
    assert "blocks.0.add_0" in names


def test_activations_are_noted_as_fused() -> None:
    _, _, graph = traced("mobilenetv2")
    fused = {template.name: template.fused for template in graph.op_templates if template.kind == "conv"}
    assert fused["stem.0"] == "relu"
    assert fused["blocks.0.body.1"] == "relu6"
    assert fused["blocks.0.body.4"] == ""


def test_templates_survive_json() -> None:
    _, _, graph = traced("densenet")
    for template in graph.op_templates:
        assert OpTemplate.from_json(template.to_json()) == template
    assert all(math.prod(count.at(dict(graph.dense())) for count in p.shape) > 0 for p in graph.parameter_templates)


class Canvas(nn.Module):
    """An image written into the middle of an empty one, in one of several ways, and a network behind it."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write = write
        self.stem, self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        canvas = torch.zeros(len(x), 8, 10, 10)
        middle = canvas[:, :, 2:8][..., 2:8]
        if self.write == "set":
            canvas[:, :, 2:8, 2:8] = x
        elif self.write == "add":
            middle += x
        elif self.write == "out":
            torch.add(x, 1, out=middle)
        else:
            canvas.copy_(F.pad(x, (2, 2, 2, 2)))
            canvas = middle
        return self.last(F.relu(self.conv(canvas)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("write", ["set", "add", "out", "read"])
def test_a_tensor_filled_by_parts_hides_no_operator(write: str) -> None:
    model, example = Canvas(write).eval(), (torch.randn(2, 3, 8, 8),)
    graph = trace(model, example)
    assert graph.macs({}) == slow_macs(model, example)
    assert [op.name for op in graph.op_templates if op.kind == "conv"] == ["stem", "conv", "last"]
    keep = {group.name: [0, 2] for group in graph.removable}
    assert "conv" in keep
    assert graph.macs(dict.fromkeys(keep, 2)) == slow_macs(cut(model, graph, keep), example)
