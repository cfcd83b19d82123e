"""The inspector's documents of TensorRT 8, 10 and 11: layers, ONNX names, types, what was inserted, what stayed fp32.

The documents of version 10 are real ones, written by trtexec on a GPU. Those of 8 and 11 are written here by hand,
after NVIDIA's descriptions of their form; no engine of these versions has been seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprune.core.measurement import LayerTime
from hwprune.core.target import FP32_OPS
from hwprune.graph.onnx import half
from hwprune.runtimes._tensorrt import inspector
from hwprune.runtimes._tensorrt.errors import RunFailed
from hwprune.runtimes._tensorrt.inspector import (
    fp32_layers,
    layer_times,
    operator_of,
    read_layers,
    type_in,
    with_node_names,
)

PROFILES = Path(__file__).parents[4] / "shared" / "data" / "tensorrt_profiles"
NETWORKS = {"alexnet": (8, 14), "mobilenet_v2": (53, 57), "resnet18": (21, 26)}  # layers with weights, all layers


def _tensor(name: str, shape: list[int], text: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": text}


def _document(layers: list[Any], *, ends: str = "Bindings") -> str:
    names = ["input", "output"]
    return json.dumps({"Layers": layers, ends: names if ends == "Bindings" else [{"Name": name} for name in names]})


LINEAR, WIDE = "Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"

# TensorRT 8.5: no "Metadata", no "StreamId"; reformats are layers between others
EIGHT = _document(
    [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1/Conv + relu1/Relu",
            "LayerType": "Reformat",
            "Inputs": [_tensor("input", [1, 3, 8, 8], LINEAR)],
            "Outputs": [_tensor("Reformatted Input Tensor 0 to conv1/Conv + relu1/Relu", [1, 3, 8, 8], WIDE)],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
        },
        {
            "Name": "conv1/Conv + relu1/Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [_tensor("Reformatted Input Tensor 0 to conv1/Conv + relu1/Relu", [1, 3, 8, 8], WIDE)],
            "Outputs": [_tensor("relu1", [1, 24, 8, 8], WIDE)],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 648},
        },
        {
            "Name": "norm/InstanceNormalization",
            "LayerType": "PluginV2",
            "Inputs": [_tensor("relu1", [1, 24, 8, 8], LINEAR)],
            "Outputs": [_tensor("norm", [1, 24, 8, 8], LINEAR)],
            "ParameterType": "Plugin",
        },
        {
            "Name": "left/Conv || right/Conv",
            "LayerType": "CaskConvolution",
            "Inputs": [_tensor("norm", [1, 24, 8, 8], LINEAR)],
            "Outputs": [_tensor("both", [1, 16, 8, 8], LINEAR)],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Float", "Count": 384},
        },
        {
            "Name": "Reformatting CopyNode for Output Tensor 0 to left/Conv || right/Conv",
            "LayerType": "Reformat",
            "Inputs": [_tensor("both", [1, 16, 8, 8], WIDE)],
            "Outputs": [_tensor("output", [1, 16, 8, 8], LINEAR)],
            "ParameterType": "Reformat",
        },
    ]
)


def _new_tensor(name: str, shape: list[int], kind: str, layout: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "DataType": kind, "Format": layout}


# TensorRT 11: "I/O Tensors" are objects, format and type stand apart, quantised weights are layers' own
ELEVEN = json.dumps(
    {
        "Layers": [
            {
                "Name": "input/QuantizeLinear",
                "LayerType": "Reformat",
                "Inputs": [_new_tensor("input", [1, 3, 8, 8], "Float", "Row major linear format (kLINEAR)")],
                "Outputs": [_new_tensor("q", [1, 3, 8, 8], "Int8", "Channel major format (kHWC4)")],
                "ParameterType": "Reformat",
                "Origin": "QDQ",
                "Metadata": "[ONNX Layer: input/QuantizeLinear]",
            },
            {
                "Name": "conv1.weight/QuantizeLinear + conv1/Conv + act/Relu",
                "LayerType": "CaskConvolution",
                "Inputs": [_new_tensor("q", [1, 3, 8, 8], "Int8", "Channel major format (kHWC4)")],
                "Outputs": [_new_tensor("a", [1, 16, 8, 8], "Float", "Row major linear format (kLINEAR)")],
                "ParameterType": "Convolution",
                "Weights": {"Type": "Int8", "Count": 432},
                "Metadata": "[ONNX Layer: conv1.weight/QuantizeLinear]\u001e[ONNX Layer: conv1/Conv]"
                "\u001e[ONNX Layer: act/Relu]",
            },
            {
                "Name": "__myl_SigMul_myl0_1",
                "LayerType": "kgen",
                "Inputs": [_new_tensor("a", [1, 16, 8, 8], "Float", "Row major linear format (kLINEAR)")],
                "Outputs": [_new_tensor("output", [1, 16, 8, 8], "Float", "Row major linear format (kLINEAR)")],
                "TacticName": "__myl_SigMul_0x1",
                "Metadata": "[ONNX Layer: silu/Sigmoid]\u001e[ONNX Layer: silu/Mul]",
            },
        ],
        "I/O Tensors": [
            {"Name": "input", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8]},
            {"Name": "output", "IOMode": "Output", "DataType": "Float", "Dimensions": [1, 16, 8, 8]},
        ],
    }
)


@pytest.mark.skipif(not PROFILES.is_dir(), reason="needs ../shared/data/tensorrt_profiles")
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_real_documents_of_version_10(network: str) -> None:
    text = (PROFILES / f"{network}_fp16.graph.json").read_text()
    profile = json.loads((PROFILES / f"{network}_fp16.profile.json").read_text())[1:]
    weighted, count = NETWORKS[network]
    layers = read_layers(text)
    assert len(layers) == len(profile) == count
    assert fp32_layers(text, "fp16") == ()
    assert {layer.computes_in for layer in layers if not layer.inserted} == {"fp16"}
    rows = layer_times(text, [(item["name"], item["averageMs"]) for item in profile])
    assert [row.kind for row in rows].count("Conv") + [row.kind for row in rows].count("Gemm") == weighted
    assert sum(row.latency_ms for row in rows) == pytest.approx(sum(item["averageMs"] for item in profile))
    assert not any("Reformat" in row.name or "shape_call" in row.name for row in rows)
    assert all(operator_of(row.name) == row.kind for row in rows)
    inserted = sum(layer.inserted for layer in layers)
    assert sum(int(row.note.split("; ")[1].split()[0]) for row in rows if "; " in row.note) == inserted > 0
    assert len(rows) == count - inserted


@pytest.mark.skipif(not PROFILES.is_dir(), reason="needs ../shared/data/tensorrt_profiles")
def test_a_real_first_convolution_takes_in_the_reformat_before_it() -> None:
    text = (PROFILES / "resnet18_fp16.graph.json").read_text()
    first = layer_times(text, [("/conv1/Conv + /relu/Relu", 0.030), (read_layers(text)[0].name, 0.008)])[0]
    assert first.name == "/conv1/Conv"
    assert first.latency_ms == pytest.approx(0.038)
    assert first.note == "/conv1/Conv + /relu/Relu; 1 inserted by TensorRT, 0.0080 ms"
    assert (first.in_shapes[0], first.out_shapes[0]) == ((1, 3, 224, 224), (1, 64, 112, 112))


def test_a_document_of_version_8() -> None:
    times = [(layer.name, 2.0**place) for place, layer in enumerate(read_layers(EIGHT))]
    rows = layer_times(EIGHT, times)
    assert [(row.name, row.kind, row.latency_ms) for row in rows] == [
        ("conv1/Conv", "Conv", 3.0),
        ("norm/InstanceNormalization", "InstanceNormalization", 4.0),
        ("left/Conv", "Conv", 24.0),
    ]
    assert fp32_layers(EIGHT, "fp16") == ("left/Conv",), "the file keeps an InstanceNormalization in fp32"


def test_a_document_of_version_11() -> None:
    rows = layer_times(ELEVEN, [("input/QuantizeLinear", 1.0), ("__myl_SigMul_myl0_1", 4.0)])
    assert [(row.name, row.kind, row.latency_ms) for row in rows] == [
        ("conv1/Conv", "Conv", 1.0),
        ("silu/Sigmoid", "Sigmoid", 4.0),
    ]
    layers = read_layers(ELEVEN)
    assert layers[1].nodes == ("conv1.weight/QuantizeLinear", "conv1/Conv", "act/Relu")
    assert [layer.computes_in for layer in layers] == ["int8", "int8", "fp32"]
    assert [tensor.kind for tensor in layers[1].inputs + layers[1].outputs] == ["int8", "fp32"]
    assert fp32_layers(ELEVEN, "fp16") == ("silu/Sigmoid",)
    assert fp32_layers(ELEVEN, "int8") == ()


def test_names_alone() -> None:
    text = _document(["conv1/Conv + relu/Relu", "Reformatting CopyNode for Input Tensor 0 to fc/Gemm", "fc/Gemm"])
    rows = layer_times(text, [("Reformatting CopyNode for Input Tensor 0 to fc/Gemm", 1.0), ("fc/Gemm", 2.0)])
    assert [(row.name, row.kind, row.latency_ms) for row in rows] == [
        ("conv1/Conv", "Conv", 0.0),
        ("fc/Gemm", "Gemm", 3.0),
    ]
    assert fp32_layers(text, "fp16") == ()


def _left(name: str, precision: str, **more: object) -> tuple[str, ...]:
    ends = {"Inputs": [_tensor("a", [1, 8], LINEAR)], "Outputs": [_tensor("b", [1, 8], LINEAR)]}
    return fp32_layers(_document([{"Name": name, "LayerType": "kgen", **ends, **more}]), precision)


def test_what_the_file_keeps_in_fp32_is_not_left_there_by_weak_typing() -> None:
    assert inspector.FP32_OPS == half.FP32_OPS == FP32_OPS
    for name in FP32_OPS:
        assert _left(f"norm/{name}", "fp16") == ()
        assert _left(f"norm/{name} + norm/Cast", "fp16") == ()
    assert _left("norm/Pow + norm/Mul", "fp16") == ("norm/Pow",)
    assert _left("ForeignNode", "fp16") == ("ForeignNode",)


def test_in_int8_only_layers_with_weights_count() -> None:
    assert _left("act/Sigmoid", "int8") == _left("attention/MatMul", "int8") == ()
    assert _left("fc/Gemm", "int8") == ("fc/Gemm",)
    assert _left("fc/MatMul", "int8", Weights={"Type": "Float", "Count": 64}) == ("fc/MatMul",)


def test_inserted_layers_in_a_row_go_to_the_layer_that_reads_the_last() -> None:
    chain = [
        {"Name": "r1", "LayerType": "Reformat", "Inputs": [{"Name": "input"}], "Outputs": [{"Name": "t1"}]},
        {"Name": "r2", "LayerType": "NoOp", "Inputs": [{"Name": "t1"}], "Outputs": [{"Name": "t2"}]},
        {
            "Name": "other/Conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "input"}],
            "Outputs": [{"Name": "o"}],
        },
        {"Name": "conv/Conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "t2"}], "Outputs": [{"Name": "c"}]},
        {"Name": "r3", "LayerType": "Reformat", "Inputs": [{"Name": "c"}], "Outputs": [{"Name": "output"}]},
        {"Name": "dummy_shape_call__mye0", "LayerType": "shape_call", "Inputs": [], "Outputs": []},
    ]
    rows = layer_times(_document(chain), [("r1", 1.0), ("r2", 2.0), ("conv/Conv", 4.0), ("r3", 8.0)])
    assert [(row.name, row.latency_ms) for row in rows] == [("other/Conv", 0.0), ("conv/Conv", 15.0)]
    assert rows[1].note == "conv/Conv; 4 inserted by TensorRT, 11.0000 ms"


def test_nothing_but_inserted_layers_stays_as_it_is() -> None:
    text = _document([{"Name": "copy", "LayerType": "Reformat", "Inputs": [], "Outputs": []}])
    assert [(row.name, row.kind, row.latency_ms) for row in layer_times(text, [("copy", 1.0)])] == [
        ("copy", "Reformat", 1.0)
    ]


def test_times_of_unknown_layers_are_not_lost() -> None:
    rows = layer_times(EIGHT, [("conv9/Conv + act9/Relu", 1.5), ("conv1/Conv + relu1/Relu", 1.0)])
    assert (rows[-1].name, rows[-1].kind, rows[-1].latency_ms) == ("conv9/Conv", "Conv", 1.5)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"Layers"', '{"Bindings": []}'])
def test_text_that_is_no_document(text: str) -> None:
    with pytest.raises(RunFailed, match="no list of layers"):
        read_layers(text)


def test_a_document_of_odd_parts_is_read_as_far_as_it_goes() -> None:
    odd = {"Name": "x", "Inputs": ["a", {"Dimensions": None}], "Outputs": None, "Weights": 3, "LayerType": None}
    (layer,) = read_layers(_document([odd]))
    assert [tensor.name for tensor in layer.inputs] == ["a", ""]
    assert (layer.computes_in, layer.kind, layer.nodes) == ("", "", ("x",))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_types_in_texts(text: str, kind: str) -> None:
    assert type_in(text) == kind


def test_rows_without_node_names_get_the_longest_that_fits() -> None:
    nodes = ["conv1/Conv", "conv10/Conv", "conv10/Relu", "classifier.1/Gemm", "conv10.weight/QuantizeLinear"]
    rows = (
        LayerTime("x", "", 1.0, note="{ForeignNode[conv10.weight/QuantizeLinear...conv10/Relu]}"),
        LayerTime("x", "", 1.0, note="{ForeignNode[conv10.weight/QuantizeLinear...conv10/Conv]}; 1 inserted"),
        LayerTime("x", "", 1.0, note="classifier_1/Gemm_myl55_1"),
        LayerTime("conv1/Conv", "Conv", 1.0, note="PWN(conv10/Relu)"),
        LayerTime("x", "kgen", 1.0, note="conv11/Conv"),
    )
    named = with_node_names(rows, nodes)
    assert [(row.name, row.kind) for row in named] == [
        ("conv10/Relu", "Relu"),
        ("conv10/Conv", "Conv"),
        ("classifier.1/Gemm", "Gemm"),
        ("conv1/Conv", "Conv"),
        ("x", "kgen"),
    ]
    assert [row.note for row in named] == [row.note for row in rows]
