"""OpenVINO keeps the contract, computes in the precision it was asked for, and in the thread that is timed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.devices.prepare import prepare
from hwprune.runtimes import openvino as plugin
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes._host import usable_cores
from hwprune.runtimes.onnxruntime import OnnxRuntime
from hwprune.runtimes.openvino import OpenVino
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytest.importorskip("openvino")

TARGET = Target(runtime="openvino")
BF16 = Target(runtime="openvino", precision="bf16")
INT8 = Target(runtime="openvino", precision="int8")
IMAGE = np.random.default_rng(3).standard_normal((1, 8, 14, 14)).astype(np.float32)


def has(capability: str) -> bool:
    return capability in plugin._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def error_of(target: Target) -> float:
    """The relative difference to ONNX Runtime in fp32."""
    outputs = []
    for runtime, where in ((OpenVino(), target), (OnnxRuntime(), Target())):
        session = runtime.open(conv_net(64), where)
        outputs.append(session.infer({"input": IMAGE})[0])
        session.close()
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())


class TestOpenVino(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = OpenVino()
    target: ClassVar[Target] = TARGET


class TestPrecision:
    def test_fp32_is_fp32_though_bf16_is_openvinos_default_where_the_processor_has_it(self) -> None:
        assert OpenVino().fingerprint(TARGET).precision == "fp32"
        assert error_of(TARGET) < 1e-6

    @pytest.mark.skipif(not has("BF16"), reason="this processor has no bf16")
    def test_bf16_is_really_computed_and_the_fingerprint_has_read_it_back(self) -> None:
        OpenVino().check(BF16)
        assert OpenVino().fingerprint(BF16).precision == "bf16"
        assert 1e-4 < error_of(BF16) < 3e-2

    @pytest.mark.skipif(not has("INT8"), reason="this processor has no int8")
    def test_int8_is_really_computed_where_the_model_is_quantised(self) -> None:
        OpenVino().check(INT8)
        assert OpenVino().fingerprint(INT8).precision == "int8"
        model = prepare(conv_net(64), INT8)
        session = OpenVino().open(model, INT8)
        assert session.facts == {"layers": "3 in int8"}
        found = session.infer({"input": IMAGE})[0]
        session.close()
        plain = OpenVino().open(conv_net(64), TARGET)
        assert plain.facts == {}
        expected = plain.infer({"input": IMAGE})[0]
        plain.close()
        assert 1e-4 < float(np.abs(found - expected).max() / np.abs(expected).max()) < 0.2
        layers = OpenVino().name_layers(OpenVino().layer_times(model, INT8, runs=2), model)
        convolutions = [layer for layer in layers if layer.kind == "Conv"]
        assert [layer.name for layer in convolutions] == ["conv0", "conv1", "conv2"]
        assert all("I8" in layer.note for layer in convolutions)

    def test_the_fingerprint_says_what_is_computed_not_what_was_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A processor without bf16 takes the hint and computes in fp32."""
        settings = plugin._settings
        monkeypatch.setattr(plugin, "_settings", lambda hint, threads, **more: settings("f32", threads, **more))
        plugin._computed_in.cache_clear()
        assert OpenVino().fingerprint(BF16).precision == "fp32"
        plugin._computed_in.cache_clear()

    def test_bf16_is_refused_where_the_processor_lacks_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Plain:
            def get_property(self, device: str, name: str) -> list[str]:
                return ["FP32"]

        monkeypatch.setattr(plugin, "_core", Plain)
        OpenVino().check(TARGET)
        with pytest.raises(UsageError, match="does not compute in bf16"):
            OpenVino().check(BF16)

    def test_settings_that_were_not_taken_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = plugin._settings
        monkeypatch.setattr(plugin, "_settings", lambda hint, threads, **more: settings("f32", threads, **more))
        with pytest.raises(DeviceError, match="asked for bf16 on 1 threads and uses f32"):
            OpenVino().open(conv_net(16), BF16)


class TestThreads:
    def test_one_thread_is_timed_by_its_cpu_time_and_more_by_the_wall(self) -> None:
        assert isinstance(OpenVino().clock(TARGET), ThreadCpuClock)
        assert isinstance(OpenVino().clock(Target(runtime="openvino", threads=2)), WallClock)

    def test_a_worker_thread_of_openvino_would_be_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the caller's CPU time says nothing, and the wall clock is used."""
        compile_model = plugin._core().compile_model

        class Elsewhere:
            def __init__(self, request: object) -> None:
                self._request = request

            def infer(self) -> None:
                worker = threading.Thread(target=self._request.infer)  # type: ignore[attr-defined]
                worker.start()
                worker.join()

        class Core:
            def compile_model(self, *arguments: object) -> object:
                compiled = compile_model(*arguments)

                class Compiled:
                    def create_infer_request(self) -> Elsewhere:
                        return Elsewhere(compiled.create_infer_request())

                return Compiled()

        monkeypatch.setattr(plugin, "_core", Core)
        monkeypatch.setattr(plugin, "_PROBE_CHANNELS", 256)
        plugin._caller_computes.cache_clear()
        assert isinstance(OpenVino().clock(TARGET), WallClock)
        plugin._caller_computes.cache_clear()

    @pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
    def test_the_number_of_threads_is_honoured(self) -> None:
        session = OpenVino().open(conv_net(64), Target(runtime="openvino", threads=2))
        session.run()
        assert session.compiled.get_property("INFERENCE_NUM_THREADS") == 2
        session.close()

    def test_refuses_more_threads_than_cores(self) -> None:
        with pytest.raises(UsageError, match="4096 threads on"):
            OpenVino().check(Target(runtime="openvino", threads=4096))


class TestInputs:
    def test_a_free_batch_takes_the_targets(self) -> None:
        import onnx

        model = onnx.load_from_string(conv_net(16))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        session = OpenVino().open(model.SerializeToString(), Target(runtime="openvino", batch=3))
        session.run()
        assert session.infer({"input": np.ones((3, 8, 14, 14), np.float32)})[0].shape == (3, 16, 14, 14)
        session.close()

    def test_a_free_size_is_refused(self) -> None:
        import onnx

        model = onnx.load_from_string(conv_net(16))
        for place in (model.graph.input[0], model.graph.output[0]):
            place.type.tensor_type.shape.dim[2].dim_param = "height"
        with pytest.raises(UsageError, match=r"free sizes besides the batch \(dimensions \[2\]\)"):
            OpenVino().open(model.SerializeToString(), TARGET)

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        plugin._openvino.cache_clear()
        plugin._core.cache_clear()
        with pytest.raises(DeviceError, match="not installed") as caught:
            OpenVino().check(TARGET)
        assert caught.value.hint == "pip install openvino"
        plugin._openvino.cache_clear()


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """OpenVINO's telemetry counts imports in the home folder and sends them."""
    code = (
        "import sys; from hwprune.runtimes import openvino as plugin; plugin._core();"
        "print([name for name in sys.modules if 'openvino_telemetry' in name])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


class TestLayerTimes:
    def test_what_is_fused_is_under_the_name_of_its_convolution(self) -> None:
        model = conv_net(32)
        layers = OpenVino().name_layers(OpenVino().layer_times(model, TARGET, runs=5), model)
        convolutions = [layer for layer in layers if layer.kind == "Conv"]
        assert [layer.name for layer in convolutions] == ["conv0", "conv1", "conv2"]
        assert all("fused: conv" in layer.note and ".relu" in layer.note for layer in convolutions)
        assert all("f32" in layer.note for layer in convolutions)
        assert not [layer for layer in layers if layer.kind == "Relu"]

    def test_a_node_that_is_not_in_every_record_counts_with_its_mean(self) -> None:
        """OpenVINO calls a node that took less than a microsecond not run."""

        def record(*times_us: int) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(
                    node_name=f"n{place}",
                    node_type="Relu",
                    exec_type="jit",
                    status=SimpleNamespace(name="EXECUTED" if us else "NOT_RUN"),
                    real_time=timedelta(microseconds=us),
                )
                for place, us in enumerate(times_us)
            ]

        layers = plugin._layers([record(10, 1, 0), record(10, 0, 0), record(90, 9, 0)], [])
        assert [(layer.name, layer.latency_ms) for layer in layers] == [("n0", 0.01), ("n1", 0.0005)]

    @pytest.mark.timed
    def test_layers_add_up_to_the_network(self) -> None:
        model = conv_net(128, size=28)
        runtime = OpenVino()
        session = runtime.open(model, TARGET)
        clock = runtime.clock(TARGET)
        with runtime.measuring(TARGET):
            for _ in range(5):
                session.run()
            layers = runtime.layer_times(model, TARGET, runs=15)
            whole = sorted(clock.time(session.run).time_ms for _ in range(15))[4]
        session.close()
        assert 0.5 * whole < sum(layer.latency_ms for layer in layers) < 2 * whole
