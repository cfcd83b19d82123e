"""What a file answers on the test split, and the scores that a comparison takes from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.core.files import atomic_write_bytes
from hwprune.core.target import Target
from hwprune.devices.prepare import in_file
from hwprune.graph import OnnxTemplate, trace
from hwprune.graph.onnx.precision import to_precision
from hwprune.search.judge import _outputs
from hwprune.search.run_folder import fp32_onnx
from hwprune.search.settings import SearchSettings
from hwprune.search.shipping import shipped_outputs
from hwprune.training import Data, predict


def few(data: Data, count: int) -> Data:
    return replace(data, test=replace(data.test, images=data.test.images[:count], targets=data.test.targets[:count]))


def exported(dense: nn.Module, batch: int) -> bytes:
    example = torch.zeros(batch, 1, 8, 8)
    return OnnxTemplate.export(dense, trace(dense, example)).dense


@pytest.mark.parametrize(("batch", "count"), [(1, 5), (4, 10), (8, 3)])
def test_outputs_are_those_of_torch_whatever_the_batch(
    dense: nn.Module, few_digits: Data, batch: int, count: int
) -> None:
    data = few(few_digits, count)
    found = shipped_outputs(exported(dense, batch), data, batch)
    torch.testing.assert_close(found, predict(dense, data, "test"), rtol=1e-4, atol=1e-4)


def test_a_comparison_scores_the_file_where_it_rounds(dense: nn.Module, few_digits: Data, tmp_path: Path) -> None:
    data = few(few_digits, 6)
    plain = exported(dense, 1)
    half = to_precision(plain, "fp16")
    SearchSettings.make(latency="60%").write(tmp_path / "run.toml")
    atomic_write_bytes(tmp_path / "model.onnx", half)
    assert fp32_onnx(tmp_path).name == "model.onnx"
    atomic_write_bytes(tmp_path / "model_fp32.onnx", plain)
    assert fp32_onnx(tmp_path).name == "model_fp32.onnx"
    found = _outputs(tmp_path, dense, data)
    assert torch.equal(found, shipped_outputs(half, data, 1))
    difference = (found - predict(dense, data, "test")).abs().max()
    assert 1e-5 < difference < 0.05  # rounded, and no more than that


def test_which_targets_read_their_precision_in_the_file() -> None:
    assert in_file(Target("cuda", "tensorrt", "fp16"))
    assert in_file(Target("cuda", "tensorrt", "int8"))
    assert not in_file(Target("cuda", "tensorrt", "tf32"))
    assert not in_file(Target("cpu", "openvino", "bf16"))
    assert in_file(Target("cpu", "openvino", "int8"))
    assert not in_file(Target("cpu", "onnxruntime"))
