"""Every family of wiring: the cut ONNX file computes what the cut module computes, for random keep sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_families import exported, random_keep
from onnx_tools import run
from torch import nn

from hwprune.graph import cut
from hwprune.graph.onnx.export import check_against_torch
from hwprune.testing.networks import FAMILIES

TOLERANCE = 1e-5


families = pytest.mark.parametrize(
    "family", ["together", *(pytest.param(family, marks=pytest.mark.slow) for family in sorted(FAMILIES))]
)


@families
def test_the_dense_file_is_the_module(family: str) -> None:
    model, graph, template = exported(family)
    assert check_against_torch(template.dense, model, graph.example, TOLERANCE, run) < TOLERANCE
    onnx.checker.check_model(onnx.load_model_from_string(template.dense), full_check=True)


@families
def test_a_cut_file_is_the_cut_module(family: str) -> None:
    model, graph, template = exported(family)
    for seed in range(6):
        keep = random_keep(graph, seed)
        small = cut(model, graph, keep)
        state = small.state_dict()
        assert check_against_torch(template.with_state(keep, state), small, graph.example, TOLERANCE, run) < TOLERANCE
        data = template.at(keep)
        onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
        assert check_against_torch(data, small, graph.example, TOLERANCE, run) < TOLERANCE


@families
def test_first_units_are_what_at_widths_keeps(family: str) -> None:
    _, graph, template = exported(family)
    widths = {name: len(kept) for name, kept in random_keep(graph, 0).items()}
    assert template.at_widths(widths) == template.at({name: range(width) for name, width in widths.items()})
    assert template.at_widths(dict(graph.dense())) == template.dense


@families
def test_layers_are_named_after_their_modules(family: str) -> None:
    model, graph, template = exported(family)
    modules, first = dict(model.named_modules()), first_names(model)
    names = [node.name for node in onnx.load_model_from_string(template.dense).graph.node]
    assert len(set(names)) == len(names)
    layers = {first.get(name.partition("/")[0]) for name in names}
    for layer in graph.op_templates:
        if isinstance(modules.get(layer.name), nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.name in layers


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a module -> the name that it has first."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(module), name) for name, module in model.named_modules(remove_duplicate=False)}


def test_fused_kernels_keep_the_name_of_their_layer(tmp_path: Path) -> None:
    model, _, template = exported("together")
    kernels = _kernels(template.dense, tmp_path)
    modules, first = dict(model.named_modules()), first_names(model)
    found = {
        first.get(name.rpartition("/Conv")[0], "") for name, kind in kernels.items() if kind in ("Conv", "FusedConv")
    }
    convolutions = {name for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    # A layer whose result is an output of the network is called by that output.
    assert convolutions - found == {"nets.c2f.coarse", "nets.c2f.head", "nets.subpixel.tail", "nets.unet.head"}
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
