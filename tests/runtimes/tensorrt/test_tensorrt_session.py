"""Running: inputs, outputs, bytes without NumPy, graphs, layers, and the other ways to reach CUDA."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Gpu, KernelSession

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.core.tensors import RawTensor
from hwprune.runtimes._tensorrt.clock import DeviceClock
from hwprune.runtimes._tensorrt.cuda import Cuda
from hwprune.runtimes._tensorrt.cudart import CudaPythonCalls, load_calls
from hwprune.runtimes._tensorrt.errors import RunFailed
from hwprune.runtimes._tensorrt.layers import Shares
from hwprune.runtimes._tensorrt.session import example_bytes
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.testing.runtimes import conv_net

TARGET = Target(device="cuda", runtime="tensorrt")
IMAGE = np.random.default_rng(1).standard_normal((1, 8, 14, 14)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "code"), [("float16", "e"), ("float32", "f"), ("float64", "d")])
def test_inputs_are_finite_and_far_from_zero(dtype: str, code: str) -> None:
    values = struct.unpack(f"<10000{code}", example_bytes(dtype, 10_000))
    assert all(0.49 < abs(value) < 1.51 for value in values)
    assert abs(sum(values)) < 300
    assert len({round(value, 6) for value in values}) > 400
    assert example_bytes(dtype, 10_000) == example_bytes(dtype, 10_000)


def test_integer_inputs_are_ones() -> None:
    assert struct.unpack("<3q", example_bytes("int64", 3)) == (1, 1, 1)
    assert example_bytes("bool", 2) == b"\1\1"
    assert example_bytes("float32", 0) == b""


def test_after_inference_the_standard_inputs_are_timed_again(gpu: Gpu) -> None:
    session = gpu.runtime().open(conv_net(16), TARGET)
    (item,) = session._inputs()
    before = session._cuda.read(item.address, item.size_bytes)
    assert before == example_bytes("float32", IMAGE.size)
    session.infer({"input": np.zeros_like(IMAGE)})
    assert session._cuda.read(item.address, item.size_bytes) == before
    session.close()


def test_bytes_in_and_out(gpu: Gpu) -> None:
    session = gpu.runtime().open(conv_net(16), TARGET)
    (expected,) = session.infer({"input": IMAGE})
    (found,) = session.infer_raw({"input": RawTensor.of(IMAGE)})
    assert (found.dtype, found.shape) == ("float32", (1, 16, 14, 14))
    np.testing.assert_array_equal(found.array(), expected)
    session.close()


def test_inputs_of_another_type_are_refused(gpu: Gpu) -> None:
    session = gpu.runtime().open(conv_net(16), TARGET)
    with pytest.raises(UsageError, match="'input' is float64, not float32"):
        session.infer({"input": IMAGE.astype(np.float64)})
    session.close()


def test_a_closed_session_says_so(gpu: Gpu) -> None:
    before = gpu.runtime()._platform() and gpu.live()
    session = gpu.runtime().open(conv_net(16), TARGET)
    session.close()
    session.close()
    with pytest.raises(RunFailed, match="the session is closed"):
        session.run()
    assert gpu.live() == before


def test_kernels_are_counted(gpu: Gpu) -> None:
    for layers in (1, 5):
        session = gpu.runtime().open(conv_net(16, layers=layers), TARGET)
        assert session.kernels == layers + 1, "the convolutions and a reformat"
        assert session.facts["kernels"] == str(layers + 1)
        session.close()


def test_layer_times_add_up_to_the_network_though_the_profiler_inflates_them(gpu: Gpu) -> None:
    """The fake profiler adds 4 us to every layer; the network without it takes the sum of kernels and gaps."""
    runtime = gpu.runtime()
    model = conv_net(128, size=56)
    layers = runtime.layer_times(model, TARGET, runs=5)
    session = runtime.open(model, TARGET)
    whole = np.mean([runtime.clock(TARGET).time(session.run).time_ms for _ in range(20)])
    session.close()
    assert sum(layer.latency_ms for layer in layers) == pytest.approx(whole, rel=0.005)
    assert [layer.name for layer in layers] == ["conv0", "conv1", "conv2"]
    assert "1 inserted by TensorRT" in layers[0].note
    before = gpu.live()
    runtime.layer_times(model, TARGET, runs=2)
    assert gpu.live() == before


def test_without_a_graph_the_layers_still_add_up(gpu: Gpu) -> None:
    gpu.set(capture_error=900)
    layers = gpu.runtime().layer_times(conv_net(128, size=56), TARGET, runs=5)
    assert len(layers) == 3
    assert all(layer.latency_ms > 0 for layer in layers)


def test_names_from_the_onnx_file_where_the_engine_tells_none(gpu: Gpu) -> None:
    gpu.install("8.5.2")
    runtime = gpu.runtime()
    model = conv_net(16)
    layers = runtime.name_layers(runtime.layer_times(model, TARGET, runs=2), model)
    assert [layer.name for layer in layers] == ["conv0", "conv1", "conv2"]


def test_the_faster_half_of_the_profiled_runs_counts() -> None:
    shares = Shares()
    for slow in (1.0, 5.0, 1.0, 9.0):
        shares.add("conv", 3.0)
        shares.add("relu", slow)
        shares.next_run()
    assert shares.result() == [("conv", 0.75), ("relu", 0.25)]
    with pytest.raises(RunFailed, match="reported no layer"):
        Shares().result()


def test_the_fingerprint_is_the_gpus(gpu: Gpu) -> None:
    fingerprint = gpu.runtime().fingerprint(TARGET)
    flags = dict(fingerprint.flags)
    assert fingerprint.cores == 14
    assert flags["compute_capability"] == "8.7"
    assert flags["memory_mib"] == "8192"
    assert (flags["cuda"], flags["driver_cuda"]) == ("12.6", "12.6")
    assert (flags["graph"], flags["clock"], flags["aux_streams"]) == ("captured", "device", "0")


WITHOUT_NUMPY = """
import ctypes, sys
sys.modules["numpy"] = None
sys.path[:0] = sys.argv[1:2]
from hwprune.core.tensors import RawTensor
from hwprune.runtimes import tensorrt
from hwprune.runtimes._tensorrt.clock import DeviceClock
from hwprune.runtimes._tensorrt.cuda import Cuda
from hwprune.runtimes._tensorrt.cudart import load_calls
from hwprune.runtimes._tensorrt.session import example_bytes
from hwprune.runtimes._gauge import Reference, calibrate
from hwprune.runtimes._timing import TimingLoop
from hwprune.core.measurement import Fingerprint, Protocol
from hwprune.runtimes._base import AbstractSession

calls = load_calls("ctypes", sys.argv[2])
library = calls.library
library.fake_now_s.restype = ctypes.c_double
library.fake_reset()
cuda = Cuda(calls, now_s=library.fake_now_s)
address = cuda.allocate(16)
cuda.write(address, example_bytes("float32", 4))
assert RawTensor("float32", (4,), cuda.read(address, 16)).data == example_bytes("float32", 4)

class Session(AbstractSession):
    def __init__(self, us):
        self.graph = cuda.capture(lambda: library.fake_kernel(ctypes.c_double(1e3 * us), 0))
    def run(self):
        self.graph.launch()
    def infer(self, inputs):
        return []
    def close(self):
        self.graph.close()

clock = DeviceClock(cuda)
kernel = Session(60)
fingerprint = Fingerprint("d", "c", 1, "r", "1", "fp32", 1, 1, "o")
gauge = Reference(kernel, clock, calibrate(kernel, clock, limit_s=0.1))
loop = TimingLoop(gauge, clock, reference_ms=0.0608, fingerprint=fingerprint)
found = loop.measure({"net": lambda: Session(499.2)}, Protocol.quick())["net"]
assert abs(found.latency_ms / 0.5 - 1) < 0.003, found.latency_ms
assert not any(name.split(".")[0] in ("numpy", "torch", "onnx") for name, module in sys.modules.items() if module)
print("measured", sys.version_info[:2])
"""


@pytest.mark.parametrize("python", [sys.executable, "python3.8"], ids=["this Python", "Python 3.8"])
def test_measures_without_numpy_or_any_package(python: str, cudart: Path, tmp_path: Path) -> None:
    """What runs on a board: the standard library, from Python 3.8 on."""
    script = tmp_path / "measure.py"
    script.write_text(WITHOUT_NUMPY)
    repository = Path(__file__).parents[3]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        probe = subprocess.run([python, "-c", "import ctypes"], capture_output=True, env=environment)
    except FileNotFoundError:
        pytest.skip("this machine has no Python 3.8")
    if probe.returncode:
        pytest.skip("this machine's Python 3.8 does not start")
    command = [python, "-I", "-S", str(script), str(repository), str(cudart)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("measured")


class FakeCudaPython(types.SimpleNamespace):
    """cuda-python's form over the fake CUDA runtime: tuples with an enumeration first, enumerations for choices."""

    class cudaError_t(int):  # noqa: N801
        pass

    class cudaMemcpyKind(int):  # noqa: N801
        pass

    class cudaStreamCaptureMode(int):  # noqa: N801
        pass

    class cudaDeviceAttr(int):  # noqa: N801
        pass

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._calls = load_calls("ctypes", str(path))
        self.seen: set[type] = set()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if name in ("cudaGetErrorName", "cudaGetErrorString"):
            return lambda code: (self.cudaError_t(0), f"error {int(code)}".encode())

        def call(*values: int) -> tuple[Any, ...]:
            self.seen |= {type(value) for value in values}
            code, *results = self._calls.call(name, *map(int, values))
            if name == "cudaGraphGetNodes":
                results = [[], *results]
            return (self.cudaError_t(code), *(results or ()))

        return call


def test_cuda_python_serves_as_well(chip: Gpu) -> None:
    module = FakeCudaPython(chip.path)
    cuda = Cuda(CudaPythonCalls(module), now_s=chip.now_s)
    clock = DeviceClock(cuda)
    session = KernelSession(chip, cuda, (100.0,) * 5)
    assert clock.time(session.run).time_ms == pytest.approx(0.504, rel=0.003)
    assert session._graph is not None
    assert session._graph.nodes == 5
    address = cuda.allocate(4)
    cuda.write(address, b"four")
    assert cuda.read(address, 4) == b"four"
    assert (cuda.attribute("major"), cuda.attribute("minor")) == (8, 7)
    assert {module.cudaMemcpyKind, module.cudaStreamCaptureMode, module.cudaDeviceAttr} <= module.seen
    chip.set(memory_left=0)
    with pytest.raises(DeviceError, match="error 2"):
        cuda.allocate(100)


class TestWhereCudaIsLookedFor:
    def test_a_path_that_is_no_cuda_runtime_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "libcudart.so").write_bytes(b"not a library")
        with pytest.raises(DeviceError, match=r"cannot load the CUDA runtime from .*libcudart\.so"):
            load_calls("ctypes", str(tmp_path / "libcudart.so"))

    def test_without_any_there_is_advice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from hwprune.runtimes._tensorrt import cudart as module

        monkeypatch.setattr(module, "_candidates", lambda: iter(()))
        monkeypatch.setattr(module, "_cuda_python", lambda: None)
        with pytest.raises(DeviceError, match=r"libcudart.* was not found") as caught:
            load_calls("auto")
        assert "option cudart" in caught.value.hint
        with pytest.raises(DeviceError, match="cuda-python is not installed") as caught:
            load_calls("cuda-python")
        assert caught.value.hint == "pip install cuda-python"

    def test_cuda_python_is_the_second_choice(self, cudart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from hwprune.runtimes._tensorrt import cudart as module

        monkeypatch.setattr(module, "_cuda_python", lambda: FakeCudaPython(cudart))
        monkeypatch.setattr(module, "_candidates", lambda: iter([str(cudart)]))
        assert load_calls("auto").name == "ctypes"
        monkeypatch.setattr(module, "_candidates", lambda: iter(()))
        assert load_calls("auto").name == "cuda-python"

    @pytest.mark.parametrize("backend", ["auto", "ctypes"])
    def test_one_that_the_driver_serves_is_taken(
        self, backend: str, chip: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A CUDA 13 of the system's on a driver for 12, and the libcudart 12 of TensorRT's own wheel."""
        from hwprune.runtimes._tensorrt import cudart as module

        newer = tmp_path / "libcudart.so.13"
        shutil.copy(chip.path, newer)
        library = ctypes.CDLL(str(newer))
        library.fake_reset()
        library.fake_set(b"count_error", ctypes.c_double(35))
        monkeypatch.setattr(module, "_cuda_python", lambda: None)
        monkeypatch.setattr(module, "_candidates", lambda: iter([str(newer), str(chip.path)]))
        assert load_calls(backend).source == str(chip.path)
        Cuda(load_calls(backend)).close()
        monkeypatch.setattr(module, "_candidates", lambda: iter([str(newer)]))
        with pytest.raises(DeviceError, match=r"\(35\): see its name, asked through .*libcudart\.so\.13") as caught:
            Cuda(load_calls(backend))
        assert "option cudart" in caught.value.hint
        if backend == "auto":
            chip.reset()
            monkeypatch.setattr(module, "_cuda_python", lambda: FakeCudaPython(chip.path))
            assert load_calls(backend).name == "cuda-python"


def test_a_libcudart_in_the_users_home(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a device file no shell has expanded it."""
    monkeypatch.setenv("HOME", str(gpu.path.parent))
    assert TensorRt(cudart=f"~/{gpu.path.name}")._platform().cuda.attribute("major") == 8


def test_pycuda_gives_its_primary_context_and_never_a_second(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    primary = types.SimpleNamespace(push=lambda: done.append("push"))
    device = types.SimpleNamespace(retain_primary_context=lambda: done.append("retain") or primary)
    driver = types.ModuleType("pycuda.driver")
    driver.Context = types.SimpleNamespace(pop=lambda: done.append("pop"))  # type: ignore[attr-defined]
    driver.init = lambda: done.append("init")  # type: ignore[attr-defined]
    driver.Device = lambda number: done.append(f"device {number}") or device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    runtime = gpu.runtime(cuda="pycuda")
    assert done == ["init", "device 0", "retain", "push"]
    assert "pycuda.autoinit" not in sys.modules
    session = runtime.open(conv_net(16), TARGET)
    assert session.kernels == 4
    session.close()
    for leave in reversed(at_exit):
        leave()
    assert done[4:] == ["pop"], "pycuda aborts a process that ends with a context on its stack"


def test_a_missing_pycuda_is_named(cudart: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(DeviceError, match="pycuda is not installed"):
        TensorRt(cudart=str(cudart), cuda="pycuda").check(TARGET)


def test_a_capture_that_the_engine_breaks_leaves_the_stream_usable(chip: Gpu) -> None:
    """Allocating while a stream is captured invalidates the capture; what comes after it works."""
    cuda = chip.cuda()

    def enqueue() -> None:
        cuda.allocate(8)

    assert cuda.capture(enqueue) is None
    session = KernelSession(chip, cuda, (10.0,))
    session.run()
    cuda.synchronise()
    assert not cuda.lost
    assert math.isclose(DeviceClock(cuda).time(session.run).time_ms, 0.0108, rel_tol=0.05)


def test_a_run_that_is_refused_while_it_is_captured_leaves_no_graph(chip: Gpu) -> None:
    cuda = chip.cuda()
    network = KernelSession(chip, cuda, (10.0,) * 3, graph=False)

    def enqueue() -> None:
        network.enqueue()
        raise RunFailed("refused halfway")

    assert cuda.capture(enqueue) is None
    assert chip.live()["graphs"] == 0
    assert network.unrolled(2) is not None
