"""A network to ship in half precision or int8, its ranges from real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_tools import run
from torch import Tensor, nn

from hwprune import api
from hwprune.core.errors import UsageError
from hwprune.search.precision import CALIBRATION_IMAGES, in_precision
from hwprune.testing.runtimes import conv_net
from hwprune.training import ArraySet, Data

SHAPE = (8, 14, 14)


def _data(scale: float, shape: tuple[int, ...] = SHAPE) -> Data:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(scale * rng.standard_normal((40, *shape)).astype(np.float32))
    part = ArraySet(images, torch.zeros(40, dtype=torch.int64))
    count = shape[0]
    return Data("made-up", part, part, part, 2, (0.0,) * count, (1.0,) * count)


def _scale(model: bytes, name: str) -> float:
    tensors = onnx.load_from_string(model).graph.initializer
    return next(float(numpy_helper.to_array(tensor)) for tensor in tensors if tensor.name == f"{name}:scale")


def test_int8_takes_its_ranges_from_the_images() -> None:
    example = torch.zeros(1, *SHAPE)
    small, large = (in_precision(conv_net(16), "int8", example, _data(scale), run, 0) for scale in (1.0, 10.0))
    assert _scale(large.model, "input") == pytest.approx(10 * _scale(small.model, "input"), rel=1e-3)
    assert large.example.shape == (1, *SHAPE)
    assert float(large.example.abs().max()) > 10  # an image, not the zeros that were given
    seen: list[int] = []

    def counting(model: bytes, inputs: object) -> list[np.ndarray]:
        seen.append(len(inputs["input"]))  # type: ignore[index]
        return run(model, inputs)  # type: ignore[arg-type]

    in_precision(conv_net(16, batch=3), "int8", torch.zeros(3, *SHAPE), _data(1.0), counting, 0)
    assert set(seen) == {3}
    assert sum(seen) in range(CALIBRATION_IMAGES - 2, CALIBRATION_IMAGES + 1)


def test_half_precision_needs_no_images() -> None:
    example = torch.zeros(1, *SHAPE)
    shipped = in_precision(conv_net(16), "fp16", example, None, run, 0)
    assert shipped.example is example
    assert shipped.tolerance == 0.02
    types = {tensor.data_type for tensor in onnx.load_from_string(shipped.model).graph.initializer}
    assert types == {TensorProto.FLOAT16}


def test_what_int8_cannot_do_without() -> None:
    with pytest.raises(UsageError, match="int8 needs images") as caught:
        in_precision(conv_net(16), "int8", torch.zeros(1, *SHAPE), None, run, 0)
    assert "--data" in caught.value.hint
    with pytest.raises(UsageError, match=r"takes inputs of \(8, 14, 14\), the images of made-up are \(3, 8, 8\)"):
        in_precision(conv_net(16), "int8", torch.zeros(1, *SHAPE), _data(1.0, (3, 8, 8)), run, 0)
    with pytest.raises(UsageError, match="no ONNX file is written in fp8"):
        in_precision(conv_net(16), "fp8", torch.zeros(1, *SHAPE), None, run, 0)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))  # type: ignore[no-any-return]


def test_export_compares_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 1, 8, 8)
    exported = api.export(Small(), example, tmp_path / "m.onnx", precision="int8", data="digits")
    assert 0 < exported.max_difference <= exported.tolerance == 0.3
    assert exported.size_bytes == len((tmp_path / "m.onnx").read_bytes())
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
