"""Every family of wiring: the cut ONNX file computes what the cut module computes, for random keep sets."""

from __future__ import annotations

import random
from collections.abc import Mapping

import onnx
import pytest
from onnx_tools import run
from torch import nn

from hwprune.graph import ChannelGraph, OnnxTemplate, cut, trace
from hwprune.graph.onnx_export import check_against_torch
from hwprune.testing.networks import FAMILIES, build

# One export a family takes about a second; those whose operators appear in others too run with -m slow.
FAST = ("chain", "densenet", "grouped", "mobilenetv2", "resnet_option_a", "shuffle", "squeeze_excite", "unet")
TOLERANCE = 1e-5
_CACHE: dict[str, tuple[nn.Module, ChannelGraph, OnnxTemplate]] = {}


def _exported(family: str) -> tuple[nn.Module, ChannelGraph, OnnxTemplate]:
    if family not in _CACHE:
        model, example = build(family)
        graph = trace(model, example)
        _CACHE[family] = (model, graph, OnnxTemplate.export(model, graph))
    return _CACHE[family]


def _random_keep(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    rng = random.Random(seed)
    return {
        group.name: sorted(rng.sample(range(group.units), rng.randint(1, group.units)))
        for group in graph.groups
        if group.removable and rng.random() < 0.8
    }


def _slow_unless_fast() -> list[object]:
    return [family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in sorted(FAMILIES)]


families = pytest.mark.parametrize("family", _slow_unless_fast())


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


@pytest.mark.parametrize("family", ["mobilenetv2", "resnet_option_a"])
def test_fused_kernels_keep_the_name_of_their_layer(family: str, tmp_path: object) -> None:
    model, _, template = _exported(family)
    kernels = _kernels(template.dense, tmp_path)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    found = {kernel.rpartition("/Conv")[0] for kernel, kind in kernels.items() if kind in ("Conv", "FusedConv")}
    assert found == convolutions


def _kernels(data: bytes, folder: object) -> Mapping[str, str]:
    """What ONNX Runtime executed: name after fusion -> operator."""
    import json
    from pathlib import Path

    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = f"{folder}/profile"
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    session.run(None, {"input": np.zeros(shape, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node"]
    return {event["name"].removesuffix("_kernel_time"): event["args"]["op_name"] for event in nodes}
