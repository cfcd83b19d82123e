"""Building: flags of every version, plans built once, one builder, timing caches saved and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import Gpu

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.core.specs import cache_folder
from hwprune.graph.onnx.precision import to_precision
from hwprune.runtimes._tensorrt.errors import MEMORY, BuildFailed, CudaError
from hwprune.runtimes._tensorrt.platform import platform
from hwprune.runtimes._tensorrt.timing_cache import SAVE_EVERY, default_folder
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.testing.runtimes import conv_net

TARGET = Target(device="cuda", runtime="tensorrt")
EVERY = ("8.5.2", "8.6.1", "10.0.1", "10.3.0", "10.12.0.36", "10.13.3.9", "11.0.0.114", "11.4.0.106")
STRONG = {"10.12.0.36": {"EXPLICIT_BATCH", "STRONGLY_TYPED"}, "10.13.3.9": {"EXPLICIT_BATCH", "STRONGLY_TYPED"}}
FLAGS = {"fp32": set(), "tf32": {"TF32"}, "fp16": {"FP16"}, "int8": {"FP16", "INT8"}}


def target_of(precision: str) -> Target:
    return Target(device="cuda", runtime="tensorrt", precision=precision)


@pytest.mark.parametrize("precision", FLAGS)
@pytest.mark.parametrize("version", EVERY)
def test_the_whole_way_on_every_version(version: str, precision: str, gpu: Gpu) -> None:
    """Build, run, infer and profile with that version's names and no others; the flags are the policy's."""
    gpu.install(version)
    runtime, target = gpu.runtime(), target_of(precision)
    runtime.check(target)
    model = to_precision(conv_net(16), precision)
    session = runtime.open(model, target)
    session.run()
    assert session.infer({"input": np.ones((1, 8, 14, 14), np.float32)})[0].shape == (1, 16, 14, 14)
    session.close()
    assert any(layer.kind == "Conv" for layer in runtime.layer_times(model, target, runs=2))
    (build,) = gpu.script.builds
    weak = tuple(map(int, version.split(".")[:2])) < (10, 12)
    assert build["flags"] == (FLAGS[precision] if weak else FLAGS[precision] & {"TF32"})
    assert build["network"] == STRONG.get(
        version, {"STRONGLY_TYPED"} if version >= "11" and not weak else {"EXPLICIT_BATCH"}
    )
    assert build["pools"] == {"WORKSPACE": 1 << 30}
    assert build["iterations"] == 8
    assert build["level"] == (None if version == "8.5.2" else 3)
    flags = dict(runtime.fingerprint(target).flags)
    assert flags["typing"] == ("weak" if weak else "strong")
    assert flags["optimisation_level"] == ("not settable" if version == "8.5.2" else "3")
    assert flags["tactic_mib"] == ("not settable" if version == "8.5.2" else "no limit")
    assert flags["kernel_timings"] == "8"
    assert runtime.fingerprint(target).runtime_version == version


def test_strong_typing_can_be_asked_for_where_it_exists(gpu: Gpu) -> None:
    gpu.install("10.3.0")
    gpu.runtime(typing="strong").open(conv_net(16), target_of("fp16")).close()
    assert gpu.script.builds[-1]["network"] == {"EXPLICIT_BATCH", "STRONGLY_TYPED"}
    assert gpu.script.builds[-1]["flags"] == set()
    gpu.install("8.6.1")
    with pytest.raises(UsageError, match=r"TensorRT 8\.6\.1 has no strong typing"):
        gpu.runtime(typing="strong").check(TARGET)
    gpu.install("11.4.0.106")
    with pytest.raises(UsageError, match=r"TensorRT 11\.4\.0\.106 has no weak typing"):
        gpu.runtime(typing="weak").check(TARGET)


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "11.4.0.106"])
def test_the_memory_in_which_kernels_are_tried_can_be_limited(version: str, gpu: Gpu) -> None:
    gpu.install(version)
    runtime = gpu.runtime(tactic_mib=512, workspace_mib=256, kernel_timings=3)
    runtime.open(conv_net(16), TARGET).close()
    (build,) = gpu.script.builds
    tactics = {} if version == "8.5.2" else {"TACTIC_DRAM": 512 << 20}
    assert build["pools"] == {"WORKSPACE": 256 << 20, **tactics}
    assert build["iterations"] == 3
    flags = dict(runtime.fingerprint(TARGET).flags)
    assert flags["tactic_mib"] == ("512" if tactics else "not settable")
    assert flags["kernel_timings"] == "3"


def test_what_to_do_when_memory_runs_out_is_said_in_one_way(gpu: Gpu) -> None:
    runtime = gpu.runtime()
    gpu.script.build_error = "out of memory"
    with pytest.raises(BuildFailed) as unbuilt:
        runtime.open(conv_net(16), TARGET)
    gpu.script.build_error = None
    gpu.set(memory_left=10_000)
    with pytest.raises(CudaError) as unplaced:
        runtime.open(conv_net(16), TARGET)
    assert MEMORY in unbuilt.value.hint
    assert unplaced.value.hint == MEMORY


def test_the_same_bytes_are_built_once(gpu: Gpu) -> None:
    runtime = gpu.runtime()
    for _ in range(3):
        runtime.open(conv_net(16), TARGET).close()
    runtime.layer_times(conv_net(16), TARGET, runs=1)
    assert len(gpu.script.builds) == 1
    runtime.open(conv_net(32), TARGET).close()
    runtime.open(conv_net(16), target_of("fp16")).close()
    assert len(gpu.script.builds) == 3
    assert gpu.script.builders == 1


def test_plans_are_forgotten_when_they_take_too_much(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprune.runtimes._tensorrt.builder.PLANS_BYTES", 2 * len(conv_net(32)))
    runtime = gpu.runtime()
    for channels in (16, 32, 48, 16):
        runtime.open(conv_net(channels), TARGET).close()
    assert len(gpu.script.builds) == 4, "the oldest was forgotten"
    runtime.open(conv_net(16), TARGET).close()
    assert len(gpu.script.builds) == 4


def test_a_free_batch_takes_the_targets(gpu: Gpu) -> None:
    import onnx

    model = onnx.load_from_string(conv_net(16))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    session = gpu.runtime().open(model.SerializeToString(), Target(device="cuda", runtime="tensorrt", batch=3))
    assert session.infer({"input": np.ones((3, 8, 14, 14), np.float32)})[0].shape == (3, 16, 14, 14)
    session.close()


def test_a_free_size_is_refused(gpu: Gpu) -> None:
    import onnx

    model = onnx.load_from_string(conv_net(16))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UsageError, match=r"input 'input' has free sizes besides the batch \(dimensions \[2\]\)"):
        gpu.runtime().open(model.SerializeToString(), TARGET)


class TestTimingCache:
    def files(self, gpu: Gpu) -> list[Path]:
        return sorted(gpu.cache.glob("*"))

    def build(self, runtime: TensorRt, count: int) -> None:
        for number in range(count):
            runtime.open(conv_net(16, size=14 + number), TARGET).close()

    def test_one_cache_serves_all_builds_and_is_saved_now_and_then(self, gpu: Gpu) -> None:
        runtime = gpu.runtime()
        self.build(runtime, 1)
        (file,) = self.files(gpu)
        first = file.read_bytes()
        self.build(runtime, SAVE_EVERY)
        assert file.read_bytes() == first
        self.build(runtime, SAVE_EVERY + 1)
        assert file.read_bytes() != first
        assert len({id(build["cache"]) for build in gpu.script.builds}) == 1
        assert self.files(gpu) == [file], "a temporary file was left"

    def test_the_next_process_goes_on_with_it(self, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        platform.cache_clear()
        runtime = gpu.runtime()
        session = runtime.open(conv_net(32), TARGET)
        assert session.warnings == ()
        assert gpu.script.builds[-1]["cache"]._entries == b"xx"
        session.close()
        runtime._platform().save()
        assert self.files(gpu)[0].read_bytes().endswith(b"\nxx")

    def test_it_is_not_shared_between_fingerprints(self, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        platform.cache_clear()
        self.build(gpu.runtime(workspace_mib=64), 1)
        assert gpu.script.builds[-1]["cache"]._entries == b"x"
        assert len(self.files(gpu)) == 2

    def test_another_fingerprints_file_is_refused_even_under_the_right_name(self, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        (file,) = self.files(gpu)
        head, _, blob = file.read_bytes().partition(b"\n")
        header = json.loads(head)
        header["fingerprint"]["flags"]["compute_capability"] = "9.0"
        file.write_bytes(json.dumps(header).encode() + b"\n" + blob)
        assert self.opened_again(gpu) == ("timing_cache_refused: it was made under another fingerprint",)
        assert gpu.script.builds[-1]["cache"]._entries == b"x"

    @pytest.mark.parametrize("damage", ["blob", "header", "empty", "text"])
    def test_a_damaged_file_is_refused(self, damage: str, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        (file,) = self.files(gpu)
        whole = file.read_bytes()
        damaged = {"blob": whole[:-1] + b"y", "header": whole[5:], "empty": b"", "text": b"[]\nx"}
        file.write_bytes(damaged[damage])
        assert self.opened_again(gpu) == ("timing_cache_refused: it is damaged",)

    def test_one_that_tensorrt_refuses_is_not_used(self, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        gpu.script.foreign_timing_cache = True
        (warning,) = self.opened_again(gpu)
        assert warning.startswith("timing_cache_refused: TensorRT says")
        assert gpu.script.builds[-1]["cache"]._entries == b"x"

    def test_one_that_tensorrt_makes_nothing_of_is_not_used(self, gpu: Gpu) -> None:
        self.build(gpu.runtime(), 1)
        gpu.script.no_timing_cache = "saved"
        (warning,) = self.opened_again(gpu)
        assert warning.startswith("timing_cache_refused: TensorRT says")
        assert gpu.script.builds[-1]["cache"]._entries == b"x"

    def test_without_any_the_engines_are_built_all_the_same(self, gpu: Gpu) -> None:
        gpu.script.no_timing_cache = "any"
        self.build(gpu.runtime(), 2)
        assert [build["cache"] for build in gpu.script.builds] == [None, None]
        assert self.files(gpu) == []

    def test_it_is_not_shared_between_clocks_that_the_fingerprint_does_not_know(self, gpu: Gpu) -> None:
        """NVML reads a clock, but not whether it is locked: the fingerprint says nothing of it."""
        for mhz, entries in ((210, b"x"), (1590, b"x"), (1605, b"xx"), (None, b"x")):
            platform.cache_clear()
            runtime = gpu.runtime()
            runtime._platform().throttle.clock_mhz = lambda mhz=mhz: mhz  # type: ignore[method-assign,misc]
            self.build(runtime, 1)
            assert gpu.script.builds[-1]["cache"]._entries == entries
            runtime._platform().save()
        assert sorted(file.stem.partition("-")[2] for file in self.files(gpu)) == ["", "1600MHz", "200MHz"]

    def test_a_folder_that_cannot_be_written_costs_nothing_but_time(self, gpu: Gpu, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        gpu.cache = tmp_path / "file" / "cache"
        self.build(gpu.runtime(), 2)
        assert gpu.script.builds[-1]["cache"]._entries == b"xx"

    def test_the_folder_is_the_users(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for folder in ("mine", "~/mine"):
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("HWPRUNE_CACHE", folder)
            assert default_folder() == cache_folder() / "tensorrt" == Path(folder).expanduser() / "tensorrt"
        monkeypatch.delenv("HWPRUNE_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_folder() == cache_folder() / "tensorrt" == tmp_path / "hwprune" / "tensorrt"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_folder() == cache_folder() / "tensorrt" == tmp_path / ".cache" / "hwprune" / "tensorrt"

    def test_a_folder_in_the_users_home(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """In a device file no shell has expanded it."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        gpu.cache = Path("~/timings")
        self.build(gpu.runtime(), 1)
        assert len(list((tmp_path / "timings").glob("*.timing"))) == 1
        assert not (tmp_path / "~").exists()

    def opened_again(self, gpu: Gpu) -> tuple[str, ...]:
        """The warnings of the first session of another process."""
        platform.cache_clear()
        session = gpu.runtime().open(conv_net(32), TARGET)
        session.close()
        return session.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"typing": "loose"}, "typing='loose' is not one of auto, strong, weak"),
        ({"mixed": "maybe"}, "mixed='maybe' is not one of warn, refuse"),
        ({"optimisation_level": 0}, "optimisation_level=0 is not one of 1 to 5"),
        ({"workspace_mib": 0}, "workspace_mib=0 must be 1 or more"),
        ({"aux_streams": -1}, "aux_streams=-1 0 or more"),
        ({"tactic_mib": -1}, "tactic_mib=-1 must be 0 or more"),
        ({"kernel_timings": 0}, "kernel_timings=0 1 or more"),
        ({"cuda": "rocm"}, "cuda='rocm' is not one of auto, ctypes, cuda-python, pycuda"),
        ({"gpu": -1}, "gpu=-1 must be 0 or more"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRt(**options)  # type: ignore[arg-type]


def test_an_unknown_package_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown package 'tensorflow'"):
        TensorRt(package="tensorflow").check(TARGET)


def test_several_threads_are_refused(gpu: Gpu) -> None:
    with pytest.raises(UsageError, match="a GPU has no threads to choose"):
        gpu.runtime().check(Target(device="cuda", runtime="tensorrt", threads=2))


def test_tf32_takes_a_gpu_that_has_it(gpu: Gpu) -> None:
    tf32 = Target(device="cuda", runtime="tensorrt", precision="tf32")
    gpu.runtime().check(tf32)
    gpu.set(capability=7.5)
    with pytest.raises(UsageError, match=r"this GPU has no TF32: its compute capability is 7\.5") as caught:
        gpu.runtime().check(tf32)
    assert caught.value.hint == "use fp32 or fp16"
    gpu.runtime().check(TARGET)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    platform.cache_clear()
    with pytest.raises(DeviceError, match="TensorRT cannot be imported") as caught:
        TensorRt().check(TARGET)
    assert "pip install tensorrt" in caught.value.hint


def test_versions_without_named_tensors_are_too_old(gpu: Gpu) -> None:
    module = gpu.install("8.6.1")
    del module.IExecutionContext.execute_async_v3
    with pytest.raises(DeviceError, match=r"TensorRT 8\.6\.1 is too old") as caught:
        gpu.runtime()
    assert "JetPack 5.1" in caught.value.hint
