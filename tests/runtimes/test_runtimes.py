"""The shipped runtimes keep the contract; what only one of them does is tested below."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from hwprune.core import plugins
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import WARNINGS, Target, explain, is_warning
from hwprune.core.tensors import RawTensor
from hwprune.runtimes import onnxruntime as ort_plugin
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes._host import cpu_model, undisturbed, usable_cores, waited_s
from hwprune.runtimes.onnxruntime import OnnxRuntime
from hwprune.runtimes.simulated import SimulatedRuntime
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.testing.runtimes import RuntimeConformance, conv_net


class TestOnnxRuntime(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = OnnxRuntime()


class TestSimulated(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = SimulatedRuntime()
    target: ClassVar[Target] = Target(device="simulated", runtime="simulated")


def test_both_are_found_by_name() -> None:
    assert {"onnxruntime", "simulated"} <= set(plugins.names("hwprune.runtimes"))
    assert plugins.load("hwprune.runtimes", "simulated", AbstractRuntime) is SimulatedRuntime  # type: ignore[type-abstract]


def test_a_runtime_brings_the_sentences_of_its_own_warnings() -> None:
    for name in plugins.names("hwprune.runtimes"):
        own = plugins.load("hwprune.runtimes", name, AbstractRuntime).own_warnings  # type: ignore[type-abstract]
        assert not own.keys() & WARNINGS.keys()
        assert all(key.isidentifier() and sentence and advice for key, (sentence, advice) in own.items())
        assert [explain(key) for key in own] == ["; ".join(words) for words in own.values()]
    assert is_warning("host_bound")
    assert is_warning("mixed_precision: conv1, conv2")
    sentence, advice = TensorRt.own_warnings["mixed_precision"]
    assert explain("mixed_precision: conv1") == f"{sentence} (conv1); {advice}"
    for text in ("of_a_runtime_that_is_gone: conv1", "the search ended early: no more candidates"):
        assert not is_warning(text)
        assert explain(text) == text


def test_bytes_go_in_and_out_as_arrays_do() -> None:
    session = OnnxRuntime().open(conv_net(16), Target())
    image = np.random.default_rng(3).standard_normal((1, 8, 14, 14)).astype(np.float32)
    (expected,) = session.infer({"input": image})
    (found,) = session.infer_raw({"input": RawTensor.of(image)})
    np.testing.assert_array_equal(found.array(), expected)
    assert session.warnings == ()
    session.close()


class TestOnnxRuntimeAlone:
    def test_one_thread_is_timed_by_its_cpu_time_and_more_by_the_wall(self) -> None:
        assert isinstance(OnnxRuntime().clock(Target()), ThreadCpuClock)
        assert isinstance(OnnxRuntime().clock(Target(threads=2)), WallClock)

    def test_refuses_more_threads_than_cores(self) -> None:
        with pytest.raises(UsageError, match="4096 threads on"):
            OnnxRuntime().check(Target(threads=4096))

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        ort_plugin._ort.cache_clear()
        with pytest.raises(DeviceError, match="not installed") as caught:
            OnnxRuntime().check(Target())
        assert caught.value.hint == "pip install onnxruntime"
        ort_plugin._ort.cache_clear()

    def test_a_free_batch_takes_the_targets(self) -> None:
        import onnx

        model = onnx.load_from_string(conv_net(16))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        session = OnnxRuntime().open(model.SerializeToString(), Target(batch=3))
        session.run()
        assert session.infer({"input": np.ones((3, 8, 14, 14), np.float32)})[0].shape == (3, 16, 14, 14)
        session.close()

    def test_a_free_size_is_refused(self) -> None:
        import onnx

        model = onnx.load_from_string(conv_net(16))
        for place in (model.graph.input[0], model.graph.output[0]):
            place.type.tensor_type.shape.dim[2].dim_param = "height"
        with pytest.raises(UsageError, match=r"free sizes besides the batch \(dimensions \[2\]\)"):
            OnnxRuntime().open(model.SerializeToString(), Target())

    def test_another_batch_comes_with_both_ways_out(self) -> None:
        with pytest.raises(UsageError, match="fixed to batch 1, the target says batch 4") as caught:
            OnnxRuntime().open(conv_net(16), Target(batch=4))
        assert "--batch 1" in caught.value.hint
        assert "an input of 4x8x14x14" in caught.value.hint

    @pytest.mark.timed
    def test_denormal_inputs_are_not_slow(self) -> None:
        """Without flushing, denormal inputs make the first convolution some hundred times slower."""
        session = OnnxRuntime().open(conv_net(32, layers=1), Target())
        clock = ThreadCpuClock()
        times = {}
        for name, value in (("normal", 1.0), ("denormal", 1e-39)):
            image = np.full((1, 8, 14, 14), value, np.float32)
            times[name] = min(clock.time(lambda image=image: session.infer({"input": image})).time_ms for _ in range(9))
        session.close()
        assert times["denormal"] < 10 * times["normal"]

    def test_profiles_leave_no_file(self, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile
        from pathlib import Path

        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.chdir(str(tmp_path))
        assert OnnxRuntime().layer_times(conv_net(16), Target(), runs=2)
        assert not list(Path(str(tmp_path)).iterdir())


class TestHost:
    def test_the_processor_has_a_name_and_cores(self) -> None:
        name, _, numbers = cpu_model().partition(" (")
        listed = Path("/proc/cpuinfo")
        if listed.exists() and "model name" in listed.read_text():
            assert f"model name\t: {name}\n" in listed.read_text()
            assert all(f"\t: {number}\n" in listed.read_text() for number in numbers.rstrip(")").split("/"))
        assert name
        assert 1 <= usable_cores() <= (os.cpu_count() or 1)

    def test_waiting_for_the_processor_only_grows(self) -> None:
        before = waited_s()
        sum(range(100_000))
        assert waited_s() >= before >= 0

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a thread")
    def test_pinning_is_undone(self) -> None:
        before = os.sched_getaffinity(0), os.sched_getscheduler(0)
        with undisturbed(1):
            assert len(os.sched_getaffinity(0)) == 1
            ThreadCpuClock().elsewhere()
        assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux can pin a thread")
    def test_several_threads_are_not_pinned(self) -> None:
        before = os.sched_getaffinity(0)
        with undisturbed(2):
            assert os.sched_getaffinity(0) == before

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a thread")
    def test_another_core_is_tried_in_turn(self) -> None:
        clock, seen = ThreadCpuClock(), set[int]()
        cores = os.sched_getaffinity(0)
        with undisturbed(1):
            for _ in cores:
                clock.elsewhere()
                seen |= os.sched_getaffinity(0)
        assert seen == cores


class TestSimulatedAlone:
    def test_latency_is_a_staircase_of_the_tile(self) -> None:
        times = {}
        for channels in (16, 17, 32, 33):
            session = SimulatedRuntime(overhead_us=0.0).open(conv_net(channels, layers=1), Target())
            times[channels] = session.latency_ms
        assert times[17] == pytest.approx(times[32])
        assert times[33] > times[32] > times[16]

    def test_latency_by_hand(self) -> None:
        """14 x 14 pixels, 9 taps, 8 -> 16 input and 32 output channels, 4e7 MACs a ms, and 2 us."""
        session = SimulatedRuntime().open(conv_net(32, layers=1), Target())
        assert session.latency_ms == pytest.approx(14 * 14 * 9 * 16 * 32 / 4e7 + 0.002)

    def test_options_have_help_and_are_checked(self) -> None:
        assert all(item.metadata.get("help") for item in fields(SimulatedRuntime))
        with pytest.raises(UsageError, match="tile=0"):
            SimulatedRuntime(tile=0)
        with pytest.raises(UsageError, match=r"spikes=1\.5"):
            SimulatedRuntime(spikes=1.5)
        with pytest.raises(UsageError, match="flip_s"):
            SimulatedRuntime(flip_s=0.0)

    def test_options_are_part_of_the_fingerprint(self) -> None:
        target = Target(device="simulated", runtime="simulated")
        found = SimulatedRuntime(tile=8).fingerprint(target).differences(SimulatedRuntime().fingerprint(target))
        assert found == ("flag tile: 8 != 16",)
