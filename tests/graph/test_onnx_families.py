"""Every family of wiring: the cut ONNX file computes what the cut module computes, for random keep sets."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_tools import run
from torch import Tensor, nn

from hwprune.graph import ChannelGraph, OnnxTemplate, cut, trace
from hwprune.graph.onnx.export import check_against_torch
from hwprune.testing.networks import FAMILIES, build

TOGETHER = (
    "chain densenet grouped mobilenetv1 mobilenetv2 resnet18 resnet50 resnet_option_a resnet_option_b shuffle"
    " squeeze_excite unet"
)
TOLERANCE = 1e-5
_CACHE: dict[str, tuple[nn.Module, ChannelGraph, OnnxTemplate]] = {}


class Together(nn.Module):
    """Several networks side by side: one export, which costs most of the time, for all of them."""

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        built = {family: build(family) for family in families}
        self.nets = nn.ModuleDict({family: model for family, (model, _) in built.items()})
        self.example = tuple(example for _, (example,) in built.values())

    def forward(self, *images: Tensor) -> list[Tensor]:
        return [net(image) for net, image in zip(self.nets.values(), images, strict=True)]


def _exported(family: str) -> tuple[nn.Module, ChannelGraph, OnnxTemplate]:
    if family not in _CACHE:
        if family == "together":
            model: nn.Module = Together(TOGETHER.split()).eval()
            example = model.example
        else:
            model, example = build(family)
        graph = trace(model, example, verify=family != "together")  # its families are verified one by one
        _CACHE[family] = (model, graph, OnnxTemplate.export(model, graph))
    return _CACHE[family]


def _random_keep(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    rng = random.Random(seed)
    return {
        group.name: sorted(rng.sample(range(group.units), rng.randint(1, group.units)))
        for group in graph.groups
        if group.removable and rng.random() < 0.8
    }


families = pytest.mark.parametrize(
    "family", ["together", *(pytest.param(family, marks=pytest.mark.slow) for family in sorted(FAMILIES))]
)


@families
def test_the_dense_file_is_the_module(family: str) -> None:
    model, graph, template = _exported(family)
    assert check_against_torch(template.dense, model, graph.example, TOLERANCE, run) < TOLERANCE
    onnx.checker.check_model(onnx.load_model_from_string(template.dense), full_check=True)


@families
def test_a_cut_file_is_the_cut_module(family: str) -> None:
    model, graph, template = _exported(family)
    for seed in range(6):
        keep = _random_keep(graph, seed)
        small = cut(model, graph, keep)
        state = small.state_dict()
        assert check_against_torch(template.with_state(keep, state), small, graph.example, TOLERANCE, run) < TOLERANCE
        data = template.at(keep)
        onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
        assert check_against_torch(data, small, graph.example, TOLERANCE, run) < TOLERANCE


@families
def test_first_units_are_what_at_widths_keeps(family: str) -> None:
    _, graph, template = _exported(family)
    widths = {name: len(kept) for name, kept in _random_keep(graph, 0).items()}
    assert template.at_widths(widths) == template.at({name: range(width) for name, width in widths.items()})
    assert template.at_widths(dict(graph.dense())) == template.dense


@families
def test_layers_are_named_after_their_modules(family: str) -> None:
    model, graph, template = _exported(family)
    modules = dict(model.named_modules())
    names = [node.name for node in onnx.load_model_from_string(template.dense).graph.node]
    assert len(set(names)) == len(names)
    for layer in graph.op_templates:
        if isinstance(modules.get(layer.name), nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert any(name.startswith(f"{layer.name}/") for name in names), layer.name


def test_fused_kernels_keep_the_name_of_their_layer(tmp_path: Path) -> None:
    model, _, template = _exported("together")
    kernels = _kernels(template.dense, tmp_path)
    modules = dict(model.named_modules())
    found = {name.rpartition("/Conv")[0] for name, kind in kernels.items() if kind in ("Conv", "FusedConv")}
    convolutions = {name for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    # A layer whose result is an output of the network is called by that output.
    assert convolutions - found == {"nets.unet.head"}
    assert found - convolutions == {""}


def _kernels(data: bytes, folder: Path) -> Mapping[str, str]:
    """What ONNX Runtime executed: name after fusion -> operator."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node"]
    return {event["name"].removesuffix("_kernel_time"): event["args"]["op_name"] for event in nodes}
