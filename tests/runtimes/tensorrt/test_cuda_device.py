"""Which GPU a thread uses, and how the host waits for it: what CUDA keeps for each thread and each device."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_gpu import Gpu

from hwprune.core.measurement import Target
from hwprune.runtimes._nvidia import nvml
from hwprune.runtimes._tensorrt.cuda import SPINNING, Cuda
from hwprune.runtimes._tensorrt.cudart import CtypesCalls
from hwprune.testing.runtimes import conv_net


def second_gpu(chip: Gpu) -> Cuda:
    """The GPU number 1 of two."""
    chip.set(devices=2)
    return Cuda(CtypesCalls(chip.library), 1, now_s=chip.now_s)


def in_a_new_thread(work: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def after(work: Callable[[], object], chip: Gpu) -> Callable[[], int]:
    """Do it, then say which GPU this thread uses."""

    def done() -> int:
        assert chip.library.fake_device() == 0, "CUDA begins every thread with GPU 0"
        work()
        return int(chip.library.fake_device())

    return done


@pytest.mark.parametrize("use", ["synchronise", "memory_bytes", "event", "ensure_alive"])
def test_every_thread_that_uses_a_gpu_uses_the_right_one(use: str, chip: Gpu) -> None:
    cuda = second_gpu(chip)
    assert chip.library.fake_device() == 1
    assert in_a_new_thread(after(getattr(cuda, use), chip)) == 1


def test_a_thread_may_use_two_gpus_in_turn(chip: Gpu) -> None:
    second = second_gpu(chip)
    first = chip.cuda()
    seen = []
    for cuda in (first, second, second, first):
        cuda.synchronise()
        seen.append(chip.library.fake_device())
    assert seen == [0, 1, 1, 0]


def test_threads_that_end_leave_nothing_to_the_next(chip: Gpu) -> None:
    """A thread's number is given to another one soon after it has ended."""
    cuda = second_gpu(chip)
    found: list[int] = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: found.append(after(cuda.synchronise, chip)()))
        thread.start()
        thread.join()
    assert found == [1] * 5


def test_an_engine_is_built_and_run_on_the_gpu_that_was_asked_for(gpu: Gpu) -> None:
    gpu.set(devices=2)
    runtime = gpu.runtime(gpu=1)

    def build() -> None:
        runtime.open(conv_net(16), Target(device="cuda", runtime="tensorrt")).close()

    assert in_a_new_thread(after(build, gpu)) == 1


def test_two_gpus_have_a_platform_each(gpu: Gpu) -> None:
    gpu.set(devices=2)
    first, second = gpu.runtime(), gpu.runtime(gpu=1)
    assert first._platform() is not second._platform()
    assert first._platform() is first._platform()
    assert [runtime._platform().cuda.index for runtime in (first, second)] == [0, 1]


def test_the_host_waits_by_spinning_where_cuda_lets_it(chip: Gpu) -> None:
    chip.cuda()
    assert chip.library.fake_flags() == SPINNING
    chip.set(flags_error=36)
    chip.cuda().synchronise()


def test_the_state_that_is_told_is_that_of_the_gpu_cuda_uses(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CUDA_VISIBLE_DEVICES=1 number 0 of CUDA is number 1 of NVML: the same place on the bus."""
    library = tmp_path / "libnvidia-ml.so.1"
    source = Path(__file__).parents[2] / "helpers" / "fake_nvml.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setattr(nvml, "LIBRARIES", (str(library),))
    gpu.set(pci_bus=0x42)
    runtime = gpu.runtime()
    throttle = runtime._platform().throttle
    try:
        fingerprint = runtime.fingerprint(Target(device="cuda", runtime="tensorrt"))
        assert fingerprint.cpu_model == dict(fingerprint.flags)["gpu"] == "NVIDIA Second GPU"
        assert next(item.detail for item in runtime.findings() if item.name == "GPU").startswith("number 1 of ")
        assert throttle._card is not None
        assert throttle._card.number() == "1"
    finally:
        throttle.close()
