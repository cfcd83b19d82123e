"""What single operators do to the channels that reach them, and what happens when a rule of ours fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced_families import traced

from hwprune.graph import ChannelGraph, cut, mask, trace
from hwprune.graph import call as calls
from hwprune.graph.call import Call
from hwprune.graph.layout import vector
from hwprune.testing.networks import FAMILIES


def units(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.units for group in graph.removable}


@torch.no_grad()
def check_cut(model: nn.Module, x: Tensor, graph: ChannelGraph) -> None:
    """Cut and masked network agree when the middle units of every group stay."""
    keep = {group.name: list(range(1, group.units - 1)) for group in graph.removable}
    assert keep
    assert torch.allclose(cut(model, graph, keep)(x), mask(model, graph, keep)(x), atol=1e-5)


class MaskedTokens(nn.Module):
    """A masked autoencoder's choice of tokens: a mask of two dims takes the place of both."""

    unseen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.head = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.position = nn.Parameter(torch.randn(1, 10, 16))
        self.register_buffer("unseen", torch.arange(10).repeat(2, 1) < 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        x = x[~self.unseen].reshape(x.shape[0], -1, x.shape[2])
        return self.head(F.gelu(self.wide(x)).mean(1))  # type: ignore[no-any-return]


def test_a_mask_takes_as_many_dims_as_it_has() -> None:
    model, x = MaskedTokens().eval(), torch.randn(2, 10, 12)
    graph = trace(model, x)
    assert units(graph) == {"embed": 16, "wide": 24}
    check_cut(model, x, graph)


class ChosenBySign(nn.Module):
    """Each output of one layer chooses which channel of the image comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen, self.fc = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (self.chosen(x.mean((0, 2, 3))) > 0).long()
        return self.fc(x.index_select(1, chosen).mean((2, 3)))  # type: ignore[no-any-return]


def test_channels_that_choose_others_stay() -> None:
    graph = trace(ChosenBySign().eval(), torch.randn(2, 3, 6, 6), verify=False)
    assert "it looks entries up by their number" in graph.group("chosen").reason


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv1(x))
        return self.fc(self.conv2(x).mean((2, 3)))  # type: ignore[no-any-return]


def _raises(call: Call) -> None:
    raise ValueError("cannot reshape array of size 10\ninto shape (12,)")


def _puts_labels_of_another_shape(call: Call) -> None:
    call.put(vector(1, call.labels(call.inputs[0], 1)[:-1]))


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (_raises, "ValueError: cannot reshape array of size 10"),
        (_puts_labels_of_another_shape, "its labels do not fit the output"),
    ],
)
def test_a_rule_that_fails_pins_and_says_so(monkeypatch: pytest.MonkeyPatch, broken: object, fault: str) -> None:
    monkeypatch.setitem(calls._RULES, "hardswish", broken)  # type: ignore[arg-type]
    graph = trace(Plain().eval(), torch.randn(2, 3, 8, 8))
    assert units(graph) == {"conv2": 8}
    assert f"hwprune's rule for the operator 'hardswish' failed ({fault})" in graph.group("conv1").reason


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rule_fails_on_the_families(family: str) -> None:
    assert not [pin for pin in traced(family)[2].pins if "failed (" in pin.reason]


class NewConstants(nn.Module):
    """Constants made from an activation: of its type and device alone, or of its shape too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Conv2d(11, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(x * x.new_full(x.shape, 0.5) + x.new_zeros(1))
        x = self.conv3(torch.cat([x, x.new_ones(x.shape[0], 1, *x.shape[2:])], 1))
        return self.fc(x.mean((2, 3)) + x.new_empty(6).fill_(1.0))  # type: ignore[no-any-return]


def test_a_new_constant_pins_no_channel_of_the_tensor_it_is_made_from() -> None:
    model, x = NewConstants().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert units(graph) == {"conv1": 8, "conv2": 10}
    assert "joins them with channels that cannot be removed" in graph.group("conv3").reason
    check_cut(model, x, graph)


class Windows(nn.Module):
    """Two convolutions; between them what `between` does to 8 channels of 6 x 6."""

    def __init__(self, between: Callable[[Tensor], Tensor], made: int = 8) -> None:
        super().__init__()
        self.between = between
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(made, 5, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.between(self.conv1(x))).mean((2, 3)))  # type: ignore[no-any-return]


def _onto_a_canvas(x: Tensor) -> Tensor:
    canvas = x.new_zeros(*x.shape[:2], 12, 12)
    canvas[:, :, 1::2, ::2] = x
    return canvas


@pytest.mark.parametrize(
    ("between", "made", "units_of_first"),
    [
        (lambda x: F.unfold(x, 3, padding=1).unflatten(2, (6, 6)), 72, 8),
        (lambda x: F.fold(x.flatten(2), (12, 12), 2, stride=2), 2, 2),
        (lambda x: x.unfold(2, 3, 1).unfold(3, 3, 3).mean((4, 5)), 8, 8),
        (lambda x: torch.tril(x) + x.triu(1), 8, 8),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), 8, 8),
        (_onto_a_canvas, 8, 8),
    ],
    ids=["unfold", "fold", "windows", "triangle", "circular", "canvas"],
)
def test_what_moves_positions_lets_channels_go(
    between: Callable[[Tensor], Tensor], made: int, units_of_first: int
) -> None:
    model, x = Windows(between, made).eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert units(graph) == {"conv1": units_of_first, "conv2": 5}
    keep = {"conv1": [1], "conv2": [0, 3]}
    with torch.no_grad():
        assert torch.allclose(cut(model, graph, keep)(x), mask(model, graph, keep)(x), atol=1e-5)


def test_channels_that_a_convolution_takes_for_samples_stay() -> None:
    blur = torch.ones(1, 1, 3, 3)
    model = Windows(lambda x: F.conv2d(x.reshape(-1, 1, 6, 6), blur, padding=1).reshape(2, -1, 6, 6)).eval()
    graph = trace(model, torch.randn(2, 3, 6, 6), verify=False)
    assert units(graph) == {"conv2": 5}
    assert "it takes them for samples" in graph.group("conv1").reason


def test_spectral_norm_leaves_its_layer_free() -> None:
    model, x = Plain(), torch.randn(2, 3, 8, 8)
    torch.nn.utils.parametrizations.spectral_norm(model.conv2)
    graph = trace(model.eval(), x)
    assert units(graph) == {"conv1": 6, "conv2.parametrizations.weight": 8}
    check_cut(model, x, graph)
