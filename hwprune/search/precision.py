"""A network to ship in another precision than fp32: half, or int8 with ranges of activations from real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwprune.core.errors import UsageError
from hwprune.graph.onnx.precision import parse_model, to_precision
from hwprune.graph.onnx.quantize import activation_ranges
from hwprune.training import Data

Infer = Callable[[bytes, Mapping[str, np.ndarray]], Sequence[np.ndarray]]

CALIBRATION_IMAGES = 64
# how far outputs may be from torch's, relative to the largest output where that exceeds 1
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-4, "fp16": 0.02, "int8": 0.3}


@dataclass(frozen=True)
class Shipped:
    """ONNX bytes, the input they are to be compared with torch on, and how far they may be off."""

    model: bytes
    example: Tensor
    tolerance: float


def in_precision(model: bytes, precision: str, example: Tensor, data: Data | None, infer: Infer, seed: int) -> Shipped:
    """The network in a precision. For int8 the ranges come from training images, and the example is of them too.

    Raises `UsageError` for an unknown precision, int8 without data, and data of another shape than the input.
    """
    if precision != "int8":
        converted = to_precision(model, precision)  # refuses a name it does not know
        return Shipped(converted, example, TOLERANCES[precision])
    if data is None:
        raise UsageError("int8 needs images to find the ranges of activations", hint="name them with --data")
    if tuple(example.shape[1:]) != tuple(data.input_shape):
        raise UsageError(
            f"the network takes inputs of {tuple(example.shape[1:])}, the images of {data.name} are {data.input_shape}",
            hint="calibrate with the data the network is for",
        )
    name = parse_model(model).graph.input[0].name
    batches = _images(data, len(example), seed)
    ranges = activation_ranges(model, [{name: images.numpy()} for images in batches], infer)
    return Shipped(to_precision(model, "int8", ranges=ranges), batches[0], TOLERANCES["int8"])


def _images(data: Data, batch: int, seed: int) -> list[Tensor]:
    """Normalised training images in batches, as many as calibration takes."""
    count = max(CALIBRATION_IMAGES // batch, 1)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    chosen = order.repeat(-(-count * batch // len(order)))[: count * batch].view(count, batch)
    return [data.batch("train", indices)[0].contiguous() for indices in chosen]
