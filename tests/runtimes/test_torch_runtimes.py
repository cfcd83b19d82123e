"""Torch, eager and compiled, keeps the contract and leaves the process as it was."""

from __future__ import annotations

import shutil
import sys
import time
from typing import ClassVar

import numpy as np
import pytest
import torch

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes._torch import session as machinery
from hwprune.runtimes.torch_eager import TorchEager
from hwprune.runtimes.torch_inductor import TorchInductor
from hwprune.testing.runtimes import RuntimeConformance, conv_net

EAGER = Target(runtime="torch_eager")
INDUCTOR = Target(runtime="torch_inductor")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class TestTorchEager(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = TorchEager()
    target: ClassVar[Target] = EAGER


@needs_compiler
class TestTorchInductor(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = TorchInductor()
    target: ClassVar[Target] = INDUCTOR


class TestShared:
    def test_threads_and_denormals_are_put_back(self) -> None:
        before, flushed = torch.get_num_threads(), machinery.flushes_denormals()
        for kept in (True, False):
            torch.set_flush_denormal(kept)
            with machinery.settings(2):
                assert torch.get_num_threads() == 2
                assert machinery.flushes_denormals()
            assert torch.get_num_threads() == before
            assert machinery.flushes_denormals() == kept
        torch.set_flush_denormal(flushed)  # ONNX Runtime sets it once a process and counts on it afterwards

    def test_one_thread_is_timed_by_its_cpu_time_and_more_by_the_wall(self) -> None:
        assert isinstance(TorchEager().clock(EAGER), ThreadCpuClock)
        assert isinstance(TorchEager().clock(Target(runtime="torch_eager", threads=2)), WallClock)

    def test_refuses_more_threads_than_cores(self) -> None:
        with pytest.raises(UsageError, match="4096 threads on"):
            TorchEager().check(Target(runtime="torch_eager", threads=4096))

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machinery.torch_package.cache_clear()
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(DeviceError, match="torch is not installed") as caught:
            TorchEager().check(EAGER)
        assert caught.value.hint == "pip install torch"

    def test_an_unknown_operator_is_named(self) -> None:
        import onnx

        model = onnx.load_from_string(conv_net(16))
        node = onnx.helper.make_node("LpPool", [model.graph.output[0].name], ["pooled"], "odd", kernel_shape=[2, 2])
        model.graph.node.append(node)
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, [1, 16, 13, 13]))
        with pytest.raises(UsageError, match=r"operators here: LpPool \(node 'odd'\)"):
            TorchEager().open(model.SerializeToString(), EAGER)


class TestEagerAlone:
    def test_images_are_channels_last(self) -> None:
        session = TorchEager().open(conv_net(16), EAGER)
        assert session.examples[0].is_contiguous(memory_format=torch.channels_last)
        weights = [value for value in session.module.parameters() if value.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        assert len(weights) == 3
        session.close()

    @pytest.mark.timed
    def test_layers_add_up_to_the_network(self) -> None:
        model, runtime = conv_net(128, size=28), TorchEager()
        session, clock = runtime.open(model, EAGER), runtime.clock(EAGER)
        with runtime.measuring(EAGER):
            for _ in range(5):
                session.run()
            layers = runtime.layer_times(model, EAGER, runs=15)
            whole = sorted(clock.time(session.run).time_ms for _ in range(15))[4]
        session.close()
        assert [layer.kind for layer in layers] == ["Conv", "Relu"] * 3
        assert 0.5 * whole < sum(layer.latency_ms for layer in layers) < 2 * whole


@needs_compiler
class TestInductorAlone:
    def test_weights_are_frozen_and_what_follows_a_convolution_is_fused(self) -> None:
        layers = TorchInductor().layer_times(conv_net(32), INDUCTOR, runs=3)
        assert [layer.note for layer in layers if layer.kind == "Conv"] == ["mkldnn::_convolution_pointwise"] * 3
        assert not any("relu" in layer.name for layer in layers)

    @pytest.mark.timed
    def test_the_time_of_compiling_is_a_fact(self) -> None:
        begin = time.perf_counter()
        session = TorchInductor().open(conv_net(24), INDUCTOR)
        assert 0 < float(session.facts["compile_s"]) <= time.perf_counter() - begin + 0.1
        session.close()

    def test_nothing_is_compiled_while_measuring(self) -> None:
        """Another number of threads would make torch compile anew, and without the settings of the first time."""
        runtime = TorchInductor()
        session = runtime.open(conv_net(16), INDUCTOR)
        with runtime.measuring(INDUCTOR):
            session.run()
            torch.set_num_threads(2)
            with pytest.raises(RuntimeError, match="recompile"):
                session.run()
        session.close()

    def test_what_torch_forgets_is_compiled_again_in_the_same_way(self) -> None:
        """`torch.export`, which other runtimes convert with, resets what `torch.compile` knows."""
        runtime = TorchInductor()
        session = runtime.open(conv_net(16), INDUCTOR)
        image = np.ones((1, 8, 14, 14), np.float32)
        expected = session.infer({"input": image})[0]
        torch._dynamo.reset()
        with runtime.measuring(INDUCTOR):
            session.run()
        torch._dynamo.reset()
        np.testing.assert_array_equal(session.infer({"input": image})[0], expected)
        with torch.profiler.profile() as profiler:
            session.infer({"input": image})
        session.close()
        assert any("mkldnn::_convolution_pointwise" in event.name for event in profiler.events())

    def test_a_missing_compiler_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(DeviceError, match=r"C\+\+ compiler") as caught:
            TorchInductor().check(INDUCTOR)
        assert "g++" in caught.value.hint

    def test_a_kernel_that_is_not_of_its_node_keeps_its_own_name(self) -> None:
        runtime = TorchInductor()
        layers = runtime.layer_times(conv_net(32), INDUCTOR, runs=2)
        named = runtime.name_layers(layers, conv_net(48))
        assert [layer.name for layer in named] == [layer.name for layer in layers]

    def test_outputs_are_torchs(self) -> None:
        image = np.random.default_rng(0).standard_normal((1, 8, 14, 14)).astype(np.float32)
        outputs = []
        for runtime, target in ((TorchInductor(), INDUCTOR), (TorchEager(), EAGER)):
            session = runtime.open(conv_net(40), target)
            outputs.append(session.infer({"input": image})[0])
            session.close()
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
