"""The template: what is in its files, and its errors. Exactness for all families is tested beside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_tools import run
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.core.errors import GraphError, UsageError
from hwprune.graph import ChannelGraph, OnnxTemplate, cut, trace
from hwprune.graph.onnx.export import check_against_torch, export_network
from hwprune.graph.onnx.network import check_size, from_model

KEEP = {"conv1": [0, 2, 3], "body.conv": [1, 4]}


class Small(nn.Module):
    """A depthwise pair, a shared convolution, dropout, a buffer outside the state dict."""

    scale: Tensor

    def __init__(self, first: int = 6, second: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.body = nn.Module()
        self.body.conv = nn.Conv2d(first, second, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(second, 4)
        self.register_buffer("scale", torch.full((1, first, 1, 1), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.conv1(x))) * self.scale
        x = F.hardswish(self.body.conv(x)).mean((2, 3), keepdim=True)
        return self.fc(self.drop(torch.flatten(x, 1)))  # type: ignore[no-any-return]


Exported = tuple[Small, ChannelGraph, OnnxTemplate]


@pytest.fixture(scope="module")
def exported() -> Exported:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small()
        nn.init.normal_(model.bn1.weight)
        model.bn1.running_mean.normal_()
        graph = trace(model.eval(), torch.randn(2, 3, 6, 6))
    return model, graph, OnnxTemplate.export(model, graph)


def test_the_file_says_nothing_about_this_machine(exported: Exported) -> None:
    data = exported[2].dense
    model = onnx.load_model_from_string(data)
    assert model.producer_name == "hwprune"
    assert model.producer_version == ""
    assert not model.metadata_props
    assert not model.graph.value_info
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    for secret in (str(Path(__file__).parent), str(Path(torch.__file__).parents[1]), ".py", "torch"):
        assert secret.encode() not in data


def test_the_file_is_valid_and_of_an_opset_that_old_runtimes_read(exported: Exported) -> None:
    model = onnx.load_model_from_string(exported[2].at(KEEP))
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 6, 6]


def test_nodes_are_named_after_their_modules(exported: Exported) -> None:
    _, graph, template = exported
    names = [node.name for node in onnx.load_model_from_string(template.dense).graph.node]
    assert names == [
        "conv1/Conv", "Clip", "Mul", "body.conv/Conv", "HardSwish", "GlobalAveragePool", "Reshape", "fc/Gemm",
    ]  # fmt: skip
    layers = [template.name for template in graph.op_templates if template.kind in ("conv", "linear")]
    assert layers == ["conv1", "body.conv", "fc"]


def test_at_widths_keeps_the_first_units(exported: Exported) -> None:
    template = exported[2]
    assert template.at_widths({"conv1": 2}) == template.at({"conv1": [0, 1]})
    assert template.at({}) == template.dense
    assert len(template.at_widths({"conv1": 2, "body.conv": 2})) < len(template.dense)


def test_a_buffer_outside_the_state_dict_is_cut_with_the_network(exported: Exported) -> None:
    model, graph, template = exported
    small = cut(model, graph, KEEP)
    assert "scale" not in small.state_dict()
    shipped = template.with_state(KEEP, small.state_dict())
    assert check_against_torch(shipped, small, graph.example, 1e-5, run) < 1e-5


def test_with_state_ships_the_weights_it_is_given(exported: Exported) -> None:
    model, graph, template = exported
    small = cut(model, graph, KEEP)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    shipped = template.with_state(KEEP, small.state_dict())
    assert check_against_torch(shipped, small, graph.example, 1e-5, run) < 1e-5
    with pytest.raises(GraphError, match="the ONNX file differs from the module by"):
        check_against_torch(template.at(KEEP), small, graph.example, 1e-5, run)


def test_a_state_of_another_cut_is_refused(exported: Exported) -> None:
    model, _, template = exported
    with pytest.raises(GraphError, match=r"'conv1.weight' has the shape \(6, 3, 3, 3\) in the state.*\(3, 3, 3, 3\)"):
        template.with_state(KEEP, model.state_dict())
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "fc.bias"}
    with pytest.raises(GraphError, match=r"the state has no tensor 'fc.bias'"):
        template.with_state({}, state)


def test_unknown_groups_and_widths_are_refused(exported: Exported) -> None:
    with pytest.raises(UsageError, match=r"unknown removable channel group 'conv11'. Did you mean 'conv1'"):
        exported[2].at_widths({"conv11": 2})
    with pytest.raises(GraphError, match=r"width 0 of group 'conv1' is not in 1\.\.6"):
        exported[2].at_widths({"conv1": 0})


def test_exporting_is_silent_and_leaves_the_module_alone(capfd: pytest.CaptureFixture[str]) -> None:
    model = Small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = export_network(model, (torch.randn(2, 3, 6, 6),))
    assert model.training
    assert model.drop.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "conv1.weight" in network.stateful
    assert "BatchNormalization" in [node.op_type for node in network.nodes]
    assert logging.root.manager.disable == logging.NOTSET
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


class Branching(nn.Module):
    """What torch cannot export: the way depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_module_that_torch_cannot_export_is_an_error_of_one_line() -> None:
    with pytest.raises(GraphError, match="torch cannot export Branching to ONNX: ") as caught:
        export_network(Branching(), (torch.ones(1, 2),))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")


def _foreign(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="org.example", version=1)
    model.graph.node[1].domain = "org.example"


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_external, "'[a-z0-9._]+' lies in another file"), (_foreign, "is not a standard operator")],
)
def test_an_onnx_file_that_cannot_be_followed_is_refused(
    exported: Exported, damage: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.load_from_string(exported[2].dense)
    damage(model)
    with pytest.raises(GraphError, match=message):
        from_model(model, ())


def test_a_network_of_two_gigabytes_is_refused() -> None:
    huge = np.broadcast_to(np.zeros(1, np.float32), (1 << 29,))
    with pytest.raises(GraphError, match=r"too large for one ONNX file: its weights take 2\.00 GiB of at most 2 GiB"):
        check_size([huge])


def test_a_wrong_number_of_outputs_is_reported(exported: Exported) -> None:
    model, graph, template = exported
    with pytest.raises(GraphError, match="gives 0 outputs, the module 1"):
        check_against_torch(template.dense, model, graph.example, 1.0, lambda *_: [])
    with pytest.raises(GraphError, match=r"output 0 of the ONNX file has the shape \(1,\)"):
        check_against_torch(template.dense, model, graph.example, 1.0, lambda *_: [np.zeros(1)])
    with pytest.raises(GraphError, match="differs from the module by nan"):
        check_against_torch(template.dense, model, graph.example, 1.0, lambda *_: [np.full((2, 4), np.nan)])


class Unusual(nn.Module):
    """A shortcut padded by concatenation, a weight in an einsum, rows that are written over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1)
        self.mix, self.fc = nn.Parameter(torch.randn(10, 12)), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = torch.relu(self.conv2(x) + torch.cat([x, torch.zeros_like(x)], 1))
        x = torch.einsum("bchw,oc->bohw", x, self.mix).clone()
        x[:, :, 0] = x[:, :, 2] * 2
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@torch.no_grad()
def test_constant_channels_einsums_and_writes_are_cut() -> None:
    model, x = Unusual().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    keep = {group.name: [1, 2, 5] for group in graph.removable}
    assert sorted(graph.group(name).units for name in keep) == [6, 10]
    expected = cut(model, graph, keep)(x).numpy()
    found = run(OnnxTemplate.export(model, graph).at(keep), {"input": x.numpy()})[0]
    assert found == pytest.approx(expected, abs=1e-5)
