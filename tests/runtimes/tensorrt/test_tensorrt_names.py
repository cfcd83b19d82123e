"""Every attribute of TensorRT that the code touches is in all versions from 8.5.2 to 11.4, or asked for first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from trt_names import Bindings, findings, touches

import hwprune.runtimes

FOLDER = Path(hwprune.runtimes.__file__).parent
SOURCES = (FOLDER / "tensorrt.py", *sorted((FOLDER / "_tensorrt").glob("*.py")))


@pytest.fixture(scope="module")
def bindings(names_file: Path) -> Bindings:
    return Bindings(names_file)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_attribute_exists_or_is_guarded(path: Path, bindings: Bindings) -> None:
    assert findings(path.read_text(), bindings) == []


def test_the_versions_are_those_we_promise(bindings: Bindings) -> None:
    assert {"8.5.2", "8.6.1", "10.3.0", "10.13.3.9", "11.0.0.114", "11.4.0.106"} <= set(bindings.versions)


def test_the_scan_sees_what_it_is_about() -> None:
    seen = {(touch.kind, touch.name) for path in SOURCES for touch in touches(ast.parse(path.read_text()))}
    assert len(seen) > 60
    assert {
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "report_to_profiler"),
        ("IBuilderConfig", "max_aux_streams"),
        ("IBuilderConfig", "set_timing_cache"),
        ("ITimingCache", "serialize"),
        ("BuilderFlag", "TF32"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ICudaEngine", "get_tensor_dtype"),
        ("OnnxParser", "num_errors"),
        ("EngineInspector", "get_engine_information"),
        ("", "OnnxParser"),
    } <= seen


PLANTED = {
    "self._builder.frobnicate()": "no version has Builder.frobnicate",
    "trt.BuilderFlag.TURBO": "no version has BuilderFlag.TURBO",
    "trt.Frobnicator": "no version has tensorrt.Frobnicator",
    "flag = trt.BuilderFlag.FP16": "BuilderFlag.FP16 is missing in 11.0.0.114, 11.4.0.106 and not guarded",
    "config.max_aux_streams = 0": "IBuilderConfig.max_aux_streams is missing in 8.5.2 and not guarded",
    "self.engine.device_memory_size": "is missing in 11.0.0.114",
    "if hasattr(config, 'max_aux_stream'): pass": "no version has IBuilderConfig.max_aux_stream",
    "if hasattr(context, 'max_aux_streams'):\n        config.max_aux_streams = 0": "no version has IExecutionContext",
    "x = builder.create_builder_config()": "'x' holds what is called 'config' elsewhere",
    "builder.create_network(0).frobnicate()": "no version has INetworkDefinition.frobnicate",
    "flag = getattr(trt.BuilderFlag, name)": "getattr hides the name",
    "place.trt.ILogger.CATASTROPHE": "no version has ILogger.CATASTROPHE",
}


@pytest.mark.parametrize("line", PLANTED)
def test_the_scan_can_fail(line: str, bindings: Bindings) -> None:
    found = findings(f"def build(trt, self, config, builder, context, place, name):\n    {line}\n", bindings)
    assert any(PLANTED[line] in text for text in found), found


def test_a_guard_holds_in_its_function_only(bindings: Bindings) -> None:
    guarded = "def a(config):\n    if hasattr(config, 'max_aux_streams'):\n        config.max_aux_streams = 0\n"
    assert findings(guarded, bindings) == []
    assert findings(guarded + "def b(config):\n    config.max_aux_streams = 0\n", bindings)
