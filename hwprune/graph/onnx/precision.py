"""The precision a network computes in, written into its ONNX file: what a strongly typed runtime takes as it stands.

A strongly typed runtime (TensorRT from version 10.12, and the only kind from 11) computes each operator in the type
that the file gives its tensors, so that the file, not a flag, decides. The inputs and outputs of the network keep
their types at every precision: the same data fit, and outputs can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from hwprune.core.errors import GraphError, UsageError
from hwprune.graph.onnx.half import to_half
from hwprune.graph.onnx.quantize import to_int8

UNCHANGED = ("fp32", "tf32")
PRECISIONS = (*UNCHANGED, "fp16", "int8")


def to_precision(model: bytes, precision: str, *, ranges: Mapping[str, float] | None = None) -> bytes:
    """The network in fp32, tf32, fp16 or int8, as ONNX bytes that pass the full check of types and shapes.

    `fp32` and `tf32` (a way to multiply fp32 numbers) are the file itself. `fp16`: weights and activations are
    FLOAT16, see `half.to_half`. `int8`: quantise-dequantise pairs around convolutions and linear layers, see
    `quantize.to_int8`; `ranges` gives the largest magnitude of activations by name, as `quantize.activation_ranges`
    finds them, and a fixed one stands in for the others. Raises `UsageError` for another precision, `GraphError`
    for bytes that are no model or a model that cannot be converted.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no ONNX file is written in {precision}", hint=f"known: {', '.join(PRECISIONS)}")
    if precision in UNCHANGED:
        return model
    parsed = parse_model(model)
    converted = to_half(parsed) if precision == "fp16" else to_int8(parsed, ranges or {})
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the network cannot be written in {precision}: {str(error).splitlines()[0]}") from error
    return bytes(converted.SerializeToString())


def parse_model(model: bytes) -> onnx.ModelProto:
    """The model in ONNX bytes; `GraphError` when they are none."""
    try:
        parsed = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise GraphError(f"not an ONNX model ({len(model)} bytes): {error}") from error
    if not parsed.graph.output:
        raise GraphError(f"not an ONNX model ({len(model)} bytes): it has no outputs")
    return parsed
