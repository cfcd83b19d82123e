"""`hwprune bench --runtime a,b` from the command line to two real runtimes and back, and what a failing one says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Done

from hwprune.testing.runtimes import conv_net

Hw = Callable[..., Done]
SHORT = ("--protocol", "quick", "--rounds", "2", "--laps", "4")


@pytest.fixture
def models(workplace: Path) -> tuple[str, str]:
    (workplace / "wide.onnx").write_bytes(conv_net(96))
    (workplace / "narrow.onnx").write_bytes(conv_net(16))
    return "wide.onnx", "narrow.onnx"


@pytest.mark.timed
def test_two_runtimes_two_networks(hw: Hw, models: tuple[str, str]) -> None:
    pytest.importorskip("openvino")
    document = hw("bench", *models, "--runtime", "onnxruntime,openvino", *SHORT, "--json").json
    assert document["schema"] == "hwprune.bench/1"
    assert document["failures"] == []
    assert [(item["model"], item["runtime"], item["precision"]) for item in document["results"]] == [
        ("wide.onnx", "onnxruntime", "fp32"),
        ("wide.onnx", "openvino", "fp32"),
        ("narrow.onnx", "onnxruntime", "fp32"),
        ("narrow.onnx", "openvino", "fp32"),
    ]
    assert all(item["build_s"] > 0 and item["latency_ms"] > 0 for item in document["results"])
    assert [(item["baseline"], item["subject"]) for item in document["comparisons"]] == [
        ("wide.onnx on onnxruntime", "wide.onnx on openvino"),
        ("narrow.onnx on onnxruntime", "narrow.onnx on openvino"),
        ("wide.onnx on onnxruntime", "narrow.onnx on onnxruntime"),
        ("wide.onnx on openvino", "narrow.onnx on openvino"),
    ]
    assert all(item["ratio"] < 0.7 for item in document["comparisons"][2:])


def test_a_missing_package_does_not_lose_the_other_runtime(
    hw: Hw, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune.runtimes import openvino as plugin

    monkeypatch.setitem(sys.modules, "openvino", None)
    plugin._openvino.cache_clear()
    plugin._core.cache_clear()
    words = ("bench", "wide.onnx", "--runtime", "openvino,onnxruntime", *SHORT)
    done = hw(*words)
    assert done.code == 0
    assert "FAIL: wide.onnx on openvino: OpenVINO is not installed (pip install openvino)" in done.out
    assert "onnxruntime: version" in done.out
    assert hw(*words, "--fail-above", "1000ms").code == 1  # what is missing is not below a limit
    plugin._openvino.cache_clear()


def test_one_runtime_that_is_missing_is_an_error_with_the_command(
    hw: Hw, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune.runtimes import openvino as plugin

    monkeypatch.setitem(sys.modules, "openvino", None)
    plugin._openvino.cache_clear()
    plugin._core.cache_clear()
    done = hw("bench", "wide.onnx", "--runtime", "openvino", *SHORT)
    assert done.code == 3
    assert "hint: pip install openvino" in done.err
    plugin._openvino.cache_clear()


def test_an_unknown_runtime_is_a_wrong_command(hw: Hw, models: tuple[str, str]) -> None:
    done = hw("bench", "wide.onnx", "--runtime", "onnxruntime,openvine", *SHORT)
    assert done.code == 2
    assert "Did you mean 'openvino'?" in done.err
