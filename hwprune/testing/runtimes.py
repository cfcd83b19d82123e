"""The tests every runtime inherits.

A new runtime in `hwprune/runtimes/` gets its tests with
`class TestMine(RuntimeConformance): runtime = Mine()`.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.core.errors import UsageError
from hwprune.core.measurement import PRECISIONS, Fingerprint, Target
from hwprune.devices.reference import ConvChain
from hwprune.runtimes._base import AbstractRuntime

CLOCKS = ("thread_cpu", "wall", "virtual", "device")


def conv_net(channels: int, *, layers: int = 3, size: int = 14, batch: int = 1) -> bytes:
    """ONNX bytes of a chain of 3x3 convolutions with ReLU; the input is `batch x 8 x size x size`."""
    chain = ConvChain(8)
    for layer in range(layers):
        chain.conv(f"conv{layer}", channels, 3)
    return chain.bytes("conv_net", (batch, 8, size, size))


def halving_net() -> bytes:
    """ONNX bytes of a 1x1 convolution that halves every value of a `1 x 16 x 14 x 14` input."""
    weight = np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1) / 2
    shape = [1, 16, 14, 14]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "half"], ["output"], "conv", kernel_shape=[1, 1])],
        "halving_net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class RuntimeConformance:
    """Subclass it and set `runtime`; set `target` for a device other than this CPU."""

    runtime: ClassVar[AbstractRuntime]
    target: ClassVar[Target] = Target()

    def test_serves_its_target(self) -> None:
        self.runtime.check(self.target)
        assert self.target.precision in self.runtime.precisions

    def test_refuses_a_precision_it_cannot_compute_in(self) -> None:
        foreign = [name for name in PRECISIONS if name not in self.runtime.precisions]
        for name in foreign:
            with pytest.raises(UsageError, match=name):
                self.runtime.check(Target(precision=name))

    def test_the_fingerprint_is_complete_and_repeats(self) -> None:
        fingerprint = self.runtime.fingerprint(self.target)
        document = fingerprint.to_json()
        assert all(document[name] for name in ("device", "cpu_model", "runtime", "runtime_version", "precision", "os"))
        assert Fingerprint.from_json(document) == fingerprint
        assert self.runtime.fingerprint(self.target).differences(fingerprint) == ()

    def test_a_simulation_says_so(self) -> None:
        fingerprint = self.runtime.fingerprint(self.target)
        assert ("SIMULATED" in fingerprint.cpu_model) == self.runtime.simulated
        assert ("SIMULATED" in fingerprint.target().label()) == self.runtime.simulated
        assert (self.runtime.clock(self.target).name == "virtual") == self.runtime.simulated

    def test_the_clock_is_known_and_goes_forward(self) -> None:
        clock = self.runtime.clock(self.target)
        session = self.runtime.open(conv_net(16), self.target)
        begin = clock.now_s()
        with self.runtime.measuring(self.target):
            lap = clock.time(session.run)
        session.close()
        assert clock.name in CLOCKS
        assert lap.time_ms > 0
        assert lap.wall_ms > 0
        assert clock.now_s() > begin

    def test_thread_time_is_the_time_of_the_thread_that_computes(self) -> None:
        """A runtime that computes in a thread of its own would take no CPU time of the caller's."""
        clock = self.runtime.clock(self.target)
        if clock.name != "thread_cpu":
            pytest.skip(f"timed by the clock '{clock.name}'")
        session = self.runtime.open(conv_net(64), self.target)
        with self.runtime.measuring(self.target):
            session.run()
            own, whole = time.thread_time(), time.process_time()
            while time.process_time() - whole < 0.05:
                session.run()
            own, whole = time.thread_time() - own, time.process_time() - whole
        session.close()
        assert own > 0.8 * whole

    def test_denormals_are_treated_as_the_fingerprint_says(self) -> None:
        """The product of two normal numbers that is too small to be one."""
        said = dict(self.runtime.fingerprint(self.target).flags).get("denormals", "")
        if not said:
            pytest.skip("the fingerprint says nothing of denormals")
        session = self.runtime.open(halving_net(), self.target)
        found = session.infer({"input": np.full((1, 16, 14, 14), 2e-38, np.float32)})[0]
        session.close()
        assert found.any() != (said == "flushed")

    def test_outputs_are_those_of_the_onnx_reference(self) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = conv_net(16, batch=self.target.batch)
        image = np.random.default_rng(1).standard_normal((self.target.batch, 8, 14, 14)).astype(np.float32)
        session = self.runtime.open(model, self.target)
        found = session.infer({"input": image})
        session.close()
        expected = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"input": image})
        assert len(found) == len(expected)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=1e-4)

    def test_refuses_wrong_inputs(self) -> None:
        session = self.runtime.open(conv_net(16), self.target)
        image = np.zeros((1, 8, 14, 14), np.float32)
        with pytest.raises(UsageError, match="inputs"):
            session.infer({"picture": image})
        with pytest.raises(UsageError, match="inputs"):
            session.infer({"input": image[:, :, :7]})
        session.close()

    @pytest.mark.parametrize("bytes_", [b"", b"not a model", conv_net(16)[:200]], ids=["empty", "text", "torn"])
    def test_refuses_bytes_that_are_no_model(self, bytes_: bytes) -> None:
        with pytest.raises(UsageError, match=f"cannot load the model \\({len(bytes_)} bytes\\)"):
            self.runtime.open(bytes_, self.target)

    def test_refuses_another_batch(self) -> None:
        with pytest.raises(UsageError, match="fixed to batch 3") as caught:
            self.runtime.open(conv_net(16, batch=3), self.target)
        assert "batch 3" in caught.value.hint

    def test_more_work_takes_longer(self) -> None:
        clock = self.runtime.clock(self.target)
        narrow, wide = (self.runtime.open(conv_net(channels), self.target) for channels in (16, 128))
        with self.runtime.measuring(self.target):
            for session in (narrow, wide, narrow, wide):
                session.run()
            pairs = [(clock.time(narrow.run).time_ms, clock.time(wide.run).time_ms) for _ in range(20)]
        narrow.close()
        wide.close()
        assert sum(slow > fast for fast, slow in pairs) >= 18

    def test_layer_times_name_the_convolutions_in_order(self) -> None:
        model = conv_net(32)
        with self.runtime.measuring(self.target):
            layers = self.runtime.layer_times(model, self.target, runs=5)
        layers = self.runtime.name_layers(layers, model)
        convolutions = [layer for layer in layers if layer.kind == "Conv"]
        assert [layer.name.split("_")[0].split(".")[0] for layer in convolutions] == ["conv0", "conv1", "conv2"]
        assert all(layer.latency_ms >= 0 for layer in layers)
        assert convolutions[0].in_shapes[0] == (1, 8, 14, 14)
        assert convolutions[0].out_shapes[0] == (1, 32, 14, 14)

    def test_sessions_are_independent(self) -> None:
        image = np.ones((1, 8, 14, 14), np.float32)
        first, second = (self.runtime.open(conv_net(16), self.target) for _ in range(2))
        expected = second.infer({"input": image})[0]
        first.close()
        with self.runtime.measuring(self.target):
            second.run()
        np.testing.assert_array_equal(second.infer({"input": image})[0], expected)
        second.close()
