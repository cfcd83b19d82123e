"""What a user reads when a model cannot be traced or a cut makes no sense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from traced_families import traced

from hwprune.core.errors import GraphError, UsageError
from hwprune.graph import cut, mask, trace
from hwprune.testing.networks import build


@pytest.mark.parametrize("remove", [cut, mask])
@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"conv3": [0]}, "no channel group 'conv3'. Did you mean 'conv"),
        ({"conv1": []}, "group 'conv1' would keep no unit"),
        ({"conv1": [0, 8]}, "index 8 is out of range for group 'conv1'"),
        ({"conv1": [-1]}, "index -1 is out of range"),
        ({"conv1": [2, 2]}, "indices kept of group 'conv1' repeat"),
        ({"fc2": [0]}, "group 'fc2' cannot be cut: output: it is an output of the network"),
    ],
)
def test_senseless_keeps(remove: object, keep: dict[str, list[int]], message: str) -> None:
    model, _, graph = traced("chain")
    with pytest.raises(GraphError) as caught:
        remove(model, graph, keep)  # type: ignore[operator]
    assert message in caught.value.message
    assert caught.value.hint


def test_senseless_widths() -> None:
    _, _, graph = traced("chain")
    with pytest.raises(GraphError, match="group 'conv1' cannot have width 0"):
        graph.macs({"conv1": 0})
    with pytest.raises(GraphError, match="group 'fc2' cannot be cut"):
        graph.ops({"fc2": 2})
    with pytest.raises(UsageError, match="a tile of 0 channels"):
        graph.space(tile=0)
    with pytest.raises(UsageError, match="min_keep=2 is not between"):
        graph.space(min_keep=2)
    with pytest.raises(UsageError, match=r"widths of shape \(3,\) do not fit 3 groups"):
        graph.macs_batch(graph.space(), torch.ones(3).numpy())


def test_a_wrong_input_shape_names_the_module() -> None:
    model, _ = build("chain")
    with pytest.raises(GraphError, match=r"does not run on the example input \(1, 4, 16, 16\): Runtime") as caught:
        trace(model, torch.randn(1, 4, 16, 16))
    assert "conv1" in caught.value.hint


def test_not_a_tensor() -> None:
    model, _ = build("chain")
    with pytest.raises(GraphError, match="the example input is not a tensor"):
        trace(model, [1, 2])  # type: ignore[arg-type]


def test_no_tensor_comes_out() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(GraphError, match="Silent returns no tensor"):
        trace(Silent(), torch.randn(1, 3))


def test_a_model_that_cannot_be_copied() -> None:
    model, example = build("chain")
    model.conv1.weight.data.requires_grad_()
    model.derived = model.conv1.weight * 2
    with pytest.raises(GraphError, match="Chain cannot be copied"):
        trace(model, example)


def test_an_unknown_protected_name() -> None:
    model, example = build("chain")
    with pytest.raises(GraphError, match="nothing to protect: no group or module 'conv'"):
        trace(model, example, protect=["conv"])


def test_a_lazy_layer_that_never_ran() -> None:
    with pytest.raises(GraphError, match=r"'0\.weight' of Sequential has no shape yet") as caught:
        trace(nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 8, 8))
    assert "run the model once" in caught.value.hint


def test_a_model_that_runs_with_its_own_weights_only() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            nn.init.zeros_(self.first.bias)

        def forward(self, x: Tensor) -> Tensor:
            assert not self.first.bias.detach().numpy().any(), "the bias is there"
            return self.last(self.first(x))  # type: ignore[no-any-return]

    model, x = Picky(), torch.randn(1, 3, 8, 8)
    with pytest.raises(GraphError, match=r"Picky runs on the example input, but not with other .* the bias is there"):
        trace(model, x)
    assert [group.name for group in trace(model, x, verify=False).removable] == ["first"]
