"""A model that travels light: weights whose values do not matter for a latency become short repeating blocks.

A network is profiled at many widths with weights that nobody trained for them. Sent to a device as they are, 14 MB
stay 13 MB compressed, since weights look random. What the latency does depend on is kept: shapes, types, which
weights are zero or denormal (none), and activations in the normal range of floats. Blocks have no mean and the
standard deviation of the tensor they replace; their lengths are primes that differ from one tensor to the next, so
that the repetition of one layer's outputs does not meet the repetition of the next layer's weights, which would make
activations grow with every layer. Verification sends the real weights.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.core.errors import UsageError

PRIMES = (127, 131, 137, 139, 149, 151, 157, 163)
LEAST_ELEMENTS = 512  # smaller tensors are sent as they are, their mantissas shortened
LEAST_ROUNDED = 32
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_UPPER_HALF = np.uint32(0xFFFF0000)


def lightened(model: bytes) -> bytes:
    """The same network with the same latency and other weights, which compress to less than a hundredth.

    Only large float32 weights of convolutions and matrix products are replaced; biases and other vectors lose the
    lower half of their mantissa (0.4 %). Quantised and half-precision models come back as they are: convert after.
    Raises `UsageError` for bytes that are no model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise UsageError(f"{len(model)} bytes are no ONNX model: {error}") from error
    weights = {name for node in proto.graph.node if node.op_type in WEIGHTED for name in node.input[:2]}
    shared = {name for node in proto.graph.node if node.op_type not in WEIGHTED for name in node.input}
    place = 0
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if tensor.name in weights - shared and array.size >= LEAST_ELEMENTS:
            _replace(tensor, _repeating(array, place))
            place += 1
        elif array.ndim == 1 and array.size >= LEAST_ROUNDED:
            _replace(tensor, _shortened(array))
    return bytes(proto.SerializeToString())


def _repeating(array: np.ndarray, place: int) -> np.ndarray:
    """A block of random values over and over, with the array's root mean square; zeros stay zeros altogether."""
    length = PRIMES[place % len(PRIMES)]
    block = np.random.default_rng(place).standard_normal(length)
    block -= block.mean()
    scale = np.sqrt(np.mean(np.square(array, dtype=np.float64)) / np.mean(block**2))
    values = _shortened((block * scale).astype(np.float32))
    return np.resize(values, array.shape)


def _shortened(array: np.ndarray) -> np.ndarray:
    """Values whose lower 16 bits are zero: as many digits as bfloat16 has, and half as many bytes once compressed."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) & _UPPER_HALF
    return bits.view(np.float32)


def _replace(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
