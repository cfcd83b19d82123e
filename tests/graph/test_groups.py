"""Which channels belong together, by name, on networks whose coupling is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.graph import ChannelGraph, cut, mask, trace
from hwprune.testing.networks import build


def graph_of(family: str) -> ChannelGraph:
    model, example = build(family)
    return trace(model, example)


def units(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.units for group in graph.removable}


def test_a_chain_has_one_group_a_layer_and_a_fixed_output() -> None:
    graph = graph_of("chain")
    assert units(graph) == {"conv1": 8, "conv2": 12, "fc1": 20}
    output = graph.group("fc2")
    assert not output.removable
    assert "output of the network" in output.reason
    assert graph.group("conv2").consumers == ("fc1",)
    flattened = next(item for item in graph.consumer_slices("conv2") if item.parameter == "fc1.weight")
    assert flattened.dim == 1
    assert flattened.units.tolist() == np.repeat(np.arange(12), 16).tolist()


def test_residual_layers_share_a_group() -> None:
    graph = graph_of("resnet_option_b")
    assert graph.group("stem.0").producers == ("stem.0", "blocks.0.conv2")
    stage = graph.group("blocks.1.conv2")
    assert stage.producers == ("blocks.1.conv2", "blocks.1.downsample.0", "blocks.2.conv2")
    assert stage.consumers == ("blocks.2.conv1", "blocks.3.conv1", "blocks.3.downsample.0")


def test_option_a_channels_sit_behind_the_padding() -> None:
    """The shortcut puts channel i of 8 at i + 4 of 16 and at i + 12 of 32; padded channels stay."""
    graph = graph_of("resnet_option_a")
    kept = graph.kept_indices({"stem.0": [0, 5]})
    assert kept["blocks.0.conv2.weight"][0].tolist() == [0, 5]
    assert kept["blocks.1.conv2.weight"][0].tolist() == [0, 1, 2, 3, 4, 9, 12, 13, 14, 15]
    assert kept["blocks.3.conv2.weight"][0].tolist() == [*range(12), 12, 17, *range(20, 32)]
    assert "cannot be removed" in graph.group("blocks.1.conv2").reason


class PadShortcut(nn.Module):
    """A shortcut that keeps its padding in attributes, one of them beside an equal number that means otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = 2, 2
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = self.conv2(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_padding_kept_in_attributes_follows_the_cut() -> None:
    model, x = PadShortcut().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert units(graph) == {"conv1": 4, "conv2": 2, "conv2#2": 2}
    keep = {"conv1": [0, 2], "conv2": [1], "conv2#2": [0]}
    small = cut(model, graph, keep)
    assert (small.before, small.after, model.before) == (1, 1, 2)
    assert torch.allclose(small(x), mask(model, graph, keep)(x), atol=1e-6)


class Splits(nn.Module):
    """Two groups of equal size, each with its own number in an attribute, and a third number that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.left, self.right = 8, 8, 8
        self.conv, self.out = nn.Conv2d(3, 17, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, left, right = self.conv(x).split([1, self.left, self.right], 1)
        return self.fc(torch.cat([right * self.scale, left, one], 1).mean((2, 3)))  # type: ignore[no-any-return]


def test_equal_numbers_follow_their_own_group() -> None:
    model, x = Splits().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    assert units(graph) == {"conv#2": 8, "conv#3": 8}
    assert "single channel" in graph.group("conv").reason
    keep = {"conv#2": [0, 3, 4], "conv#3": [1, 2, 5, 6, 7]}
    small = cut(model, graph, keep)
    assert (small.scale, small.left, small.right) == (8, 3, 5)
    assert torch.allclose(small(x), mask(model, graph, keep)(x), atol=1e-5)


def test_depthwise_follows_its_producer_and_consumes_nothing() -> None:
    graph = graph_of("mobilenetv2")
    hidden = graph.group("blocks.0.body.0.0")
    assert hidden.producers == ("blocks.0.body.0.0", "blocks.0.body.1")
    assert hidden.consumers == ("blocks.0.body.4",)
    assert graph.group("blocks.0.body.4").producers == ("blocks.0.body.4", "blocks.1.body.4")


def test_concatenation_keeps_groups_apart() -> None:
    graph = graph_of("densenet")
    assert units(graph) == {"stem": 8, "convs.0": 6, "convs.1": 6, "convs.2": 6, "transition.2": 13}
    item = next(i for i in graph.consumer_slices("convs.1") if i.parameter == "transition.2.weight")
    assert item.positions.tolist() == list(range(14, 20))


def test_transposed_convolution_produces_on_dim_1() -> None:
    graph = graph_of("unet")
    assert [(i.parameter, i.dim) for i in graph.producer_slices("up2")] == [("up2.weight", 1), ("up2.bias", 0)]
    assert [(i.parameter, i.dim) for i in graph.consumer_slices("bottom.0")] == [("up2.weight", 0)]


def test_grouped_convolutions_lose_equal_positions() -> None:
    graph = graph_of("grouped")
    stem = graph.group("stem.0")
    assert (stem.units, stem.unit_channels) == (4, 3)
    assert graph.kept_indices({"stem.0": [1]})["stem.0.weight"][0].tolist() == [1, 5, 9]
    assert graph.group("grouped.0").unit_channels == 3


def test_group_norm_loses_whole_groups() -> None:
    model, example = build("group_norm")
    graph = trace(model, example)
    assert (graph.group("conv1").units, graph.group("conv1").unit_channels) == (4, 4)
    small = cut(model, graph, {"conv1": [0, 3]})
    assert (small.norm1.num_groups, small.norm1.num_channels) == (2, 8)


def test_attention_loses_equal_positions_of_each_head() -> None:
    model, example = build("transformer")
    graph = trace(model, example)
    assert units(graph) == {"attention.0.qkv": 8, "mlp.0.0": 24, "attention.1.qkv": 8, "mlp.1.0": 24}
    small = cut(model, graph, {"attention.0.qkv": [0, 1, 5]})
    assert small.attention[0].head_dim == 3
    assert small.attention[1].head_dim == 8
    assert small.attention[0].qkv.weight.shape == (18, 16)


def test_layer_norm_pins_unless_allowed() -> None:
    model, example = build("transformer")
    pinned = trace(model, example).group("patch")
    assert not pinned.removable
    assert "mean and variance" in pinned.reason
    allowed = trace(model, example, allow_inexact=True)
    stream = allowed.group("patch")
    assert stream.removable
    assert "LayerNorm" in stream.reason or "layer_norm" in stream.reason
    assert cut(model, allowed, {"patch": list(range(8))})(*example).shape == (2, 5)


def test_protected_modules_stay() -> None:
    model, example = build("resnet_option_b")
    graph = trace(model, example, protect=["blocks.1"])
    assert not graph.group("blocks.1.conv1").removable
    assert not graph.group("blocks.1.conv2").removable
    assert graph.group("blocks.0.conv1").removable
    assert graph.group("blocks.1.conv1").reason == "protected on request"
    pins = [(pin.module, pin.channels) for pin in graph.pins if pin.op == "protect"]
    assert pins == [("blocks.1", 16)] * 2


@pytest.mark.parametrize(
    ("protect", "stays"),
    [
        (["blocks.[!12]"], {"stem.0", *(f"blocks.{n}.conv1" for n in (0, 3, 4)), "blocks.3.conv2"}),
        ("blocks.0.conv1", {"blocks.0.conv1"}),
        (["blocks.*.conv1"], {f"blocks.{n}.conv1" for n in range(5)}),
        (["blocks.[1]"], {"blocks.1.conv1", "blocks.1.conv2"}),
    ],
)
def test_a_pattern_protects(protect: list[str] | str, stays: set[str]) -> None:
    model, example = build("resnet_option_b")
    whole, graph = trace(model, example), trace(model, example, protect=protect)
    assert {g.name for g in whole.removable} - {g.name for g in graph.removable} == stays


def test_what_stays_anyway_keeps_its_own_reason() -> None:
    model, example = build("resnet_option_b")
    outputs = [group for group in trace(model, example).groups if not group.removable]
    graph = trace(model, example, protect=["*"])
    assert not graph.removable
    assert [graph.group(group.name) for group in outputs] == outputs
    assert len([pin for pin in graph.pins if pin.op == "protect"]) == len(graph.groups) - len(outputs)


class Shared(nn.Module):
    """One convolution used twice, one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1, bias=False)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.conv(F.relu(self.stem(x)))))
        return self.fc((self.left(x) * self.right(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_shared_modules_and_tensors() -> None:
    model, x = Shared().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert units(graph) == {"stem": 8, "left": 6}
    keep = {"stem": [1, 2, 6], "left": [0, 4]}
    kept = graph.kept_indices(keep)
    assert kept["left.weight"][1].tolist() == kept["right.weight"][1].tolist() == [1, 2, 6]
    small = cut(model, graph, keep)
    assert small.left.weight is small.right.weight
    assert torch.allclose(small(x), mask(model, graph, keep)(x), atol=1e-6)


def one_layer(function: Callable[[Tensor], Tensor], channels: int = 8) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(function(F.relu(self.conv(x))))  # type: ignore[no-any-return]

    model = Net().eval()
    model(torch.randn(2, 3, 4, 4))
    return model


PINNING = {
    "literal view": (lambda x: x.mean((2, 3)).view(-1, 8), "does not run without"),
    "literal slice": (lambda x: x[:, 2:7].mean((2, 3)), ""),
    "one channel": (lambda x: x[:, 3].flatten(1), "picks a channel by its number"),
    "mean over channels": (lambda x: (x - x.mean(1, keepdim=True)).mean((2, 3)), "combines these channels"),
    "softmax over channels": (lambda x: x.softmax(1).mean((2, 3)), "combines these channels"),
    "no rule": (lambda x: torch.linalg.inv(x.mean((2, 3)).diag_embed()).flatten(1), "no rule for the operator"),
    "constant vector": (lambda x: (x * torch.arange(8.0).reshape(8, 1, 1)).mean((2, 3)), "cannot be removed"),
    "constant matrix": (lambda x: x.mean((2, 3)) @ torch.ones(8, 4), "cannot be removed"),
    "random index": (lambda x: x[:, torch.tensor([0, 2, 1])].mean((2, 3)), "combines these channels"),
    "reverse": (lambda x: x.flip(1).mean((2, 3)), "combines these channels"),
}


@pytest.mark.parametrize("case", PINNING)
def test_what_a_cut_would_break_is_pinned(case: str) -> None:
    function, reason = PINNING[case]
    model, x = one_layer(function), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    pinned = [group for group in graph.groups if group.name.startswith("conv") and not group.removable]
    assert pinned
    assert reason in pinned[0].reason
    for group in graph.removable:
        keep = {group.name: [0]}
        assert torch.allclose(cut(model, graph, keep)(x), mask(model, graph, keep)(x), atol=1e-6)


def test_a_pin_names_operator_module_and_line() -> None:
    graph = trace(
        one_layer(lambda x: torch.linalg.inv(x.mean((2, 3)).diag_embed()).flatten(1)), torch.randn(2, 3, 4, 4)
    )
    pin = next(pin for pin in graph.pins if "no rule" in pin.reason)
    assert pin.op == "diag_embed"
    assert "test_groups.py:" in pin.source
    assert pin.channels == 8
    assert "diag_embed" in graph.group("conv").reason


WORKING = {
    "global context": lambda x: (x.flatten(2) @ x.flatten(2).sum(1, keepdim=True).transpose(1, 2)).flatten(1),
    "halves": lambda x: (x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :]).mean((2, 3)),
    "glu": lambda x: F.glu(x, 1).mean((2, 3)),
    "stack": lambda x: torch.stack([x, x.exp()], 2).mean((3, 4)).flatten(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]).amax(1),
    "twice": lambda x: torch.cat([x, x.mul(0), x], 1).mean((2, 3)),
    "in place": lambda x: x.add_(1).mul_(2).mean((2, 3)),
    "normalised": lambda x: F.instance_norm(x).amax((2, 3)),
    "pixel shuffle by views": lambda x: (
        x.view(x.shape[0], -1, 2, 2, *x.shape[2:]).permute(0, 1, 4, 2, 5, 3).reshape(x.shape[0], -1, 8, 8).amax((2, 3))
    ),
    "unshuffle": lambda x: F.pixel_unshuffle(x, 2).mean((2, 3)),
    "zeros like": lambda x: torch.cat([x, torch.zeros_like(x)], 1).mean((2, 3)),
    "einsum": lambda x: torch.einsum("nchw,nchw->nc", x, x),
}


@pytest.mark.parametrize("case", WORKING)
@torch.no_grad()
def test_wiring_that_stays_removable(case: str) -> None:
    model, x = one_layer(WORKING[case]), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    if case == "global context":  # sums over channels: soundly refused
        assert not graph.group("conv").removable
        return
    group = graph.group("conv")
    assert group.removable, group.reason
    keep = {"conv": [group.units - 1]}
    assert torch.allclose(cut(model, graph, keep)(x), mask(model, graph, keep)(x), atol=1e-6)


def test_two_groups_that_fail_only_together_are_found() -> None:
    class Ratio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Linear(14, 3)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.left(x), self.right(x)], 1)
            scale = 1.0 if both.shape[1] > 8 else 2.0
            return self.fc(both.mean((2, 3))) * scale  # type: ignore[no-any-return]

    graph = trace(Ratio().eval(), torch.randn(2, 3, 4, 4))
    assert [group.name for group in graph.removable] == ["left"]
    assert "changes what the others compute" in graph.group("right").reason
