"""Real engines from our ONNX on this CPU: TensorRT for RTX needs no GPU to build, and has the API of version 11.

What is shown: the parser takes every operator and type that we write, strongly typed, and the builder finds an engine,
through the same code that builds with TensorRT itself. What is not: that an engine runs, or how fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from onnx_tools import model_of
from torch import nn
from traced_families import traced

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.core.widths import Widths
from hwprune.graph import OnnxTemplate, trace
from hwprune.graph.check import lively
from hwprune.graph.onnx.precision import to_precision
from hwprune.models import load_model
from hwprune.runtimes._tensorrt import api
from hwprune.runtimes._tensorrt.builder import BuildOptions, PlanBuilder
from hwprune.runtimes._tensorrt.errors import ParseFailed
from hwprune.runtimes._tensorrt.log import Log
from hwprune.testing.network_blocks import OptionBBlock, ResNet, conv_bn
from hwprune.testing.networks import FAMILIES
from hwprune.testing.runtimes import conv_net

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.tensorrt_rtx, pytest.mark.timeout(900)]

SIZE = 96
PRECISIONS = ("fp32", "fp16", "int8")
OTHERS = tuple(sorted(FAMILIES.keys() - {"unet"}))
CUTS = ("mobilenetv2_0", "mobilenetv2_1", "resnet18_0")  # cut at random widths; the number is the seed


@pytest.fixture(scope="module")
def builder() -> PlanBuilder:
    trt = api.load("tensorrt_rtx")
    return PlanBuilder(trt, Log(trt), BuildOptions())


def _resnet18() -> nn.Module:
    stem = nn.Sequential(*conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
    plan = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks: list[nn.Module] = [OptionBBlock(*sizes) for sizes in (*plan, (512, 512, 1))]
    return ResNet(stem, blocks, 512)


@cache
def _template(network: str) -> tuple[OnnxTemplate, tuple[Widths, ...]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        example = (torch.randn(1, 3, SIZE, SIZE),)
        model = _resnet18() if network == "resnet18" else load_model(network, classes=100, input_shape=(3, SIZE, SIZE))
        graph = trace(lively(model, example), example, verify=False)  # tests/graph proves both families
    space = graph.space(tile=8)
    samples = tuple(space.sample(np.random.default_rng(seed)) for seed in range(2))
    return OnnxTemplate.export(model, graph), samples


def _model(name: str) -> bytes:
    network, _, seed = name.partition("_")
    template, samples = _template(network)
    return template.at_widths(samples[int(seed)]) if seed else template.dense


def _target(precision: str) -> Target:
    return Target("cuda", "tensorrt", precision)


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18", *CUTS])
def test_engines_of_our_networks(builder: PlanBuilder, name: str) -> None:
    model = _model(name)
    plans: Mapping[str, bytes] = {
        precision: builder.plan(to_precision(model, precision), _target(precision)) for precision in PRECISIONS
    }
    # a plan holds the weights in the type of the file, besides kernels
    assert len(plans["fp32"]) > len(model) * 0.95
    assert len(plans["fp16"]) < 0.65 * len(plans["fp32"])
    if name == "resnet18":  # in MobileNetV2's plan kernels outweigh the weights
        assert len(plans["int8"]) < 0.4 * len(plans["fp32"])


def test_a_cut_engine_is_smaller(builder: PlanBuilder) -> None:
    dense, cut = (builder.plan(_model(name), _target("fp32")) for name in ("resnet18", "resnet18_0"))
    assert len(cut) < len(dense)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["unet", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_engines_of_other_wiring(builder: PlanBuilder, family: str, precision: str) -> None:
    model, _, graph = traced(family)
    dense = OnnxTemplate.export(model, graph).dense
    target = Target("cuda", "tensorrt", precision, batch=graph.example[0].shape[0])
    assert builder.plan(to_precision(dense, precision), target)


def test_a_plan_is_built_once(builder: PlanBuilder) -> None:
    first = builder.plan(conv_net(16), _target("fp32"))
    assert builder.plan(conv_net(16), _target("fp32")) is first
    assert builder.plan(conv_net(24), _target("fp32")) is not first


def test_the_parser_says_what_it_does_not_take(builder: PlanBuilder) -> None:
    model = model_of([("Relu", ["input"], ["output"], {})], {}, inputs={"input": (1, 4)}, output="output")
    model.graph.node[0].op_type = "StringNormalizer"
    with pytest.raises(ParseFailed, match=r"TensorRT cannot load the model \(\d+ bytes\): node n0/Relu"):
        builder.plan(model.SerializeToString(), _target("fp32"))
    for data in (b"", b"not a model", conv_net(16)[:200]):
        with pytest.raises(UsageError, match=f"cannot load the model \\({len(data)} bytes\\)"):
            builder.plan(data, _target("fp32"))


def test_it_is_strongly_typed_and_says_so() -> None:
    trt = api.load("tensorrt_rtx")
    assert api.is_strongly_typed(trt, "auto")
    with pytest.raises(UsageError, match="has no weak typing"):
        api.is_strongly_typed(trt, "weak")


def test_a_missing_package_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError, match="cannot be imported") as caught:
        api.load("tensorrt_rtx")
    assert "pip install" in caught.value.hint
