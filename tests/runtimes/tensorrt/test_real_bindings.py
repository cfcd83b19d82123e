"""The real Python bindings, from PyPI, over empty libraries: no GPU and no TensorRT, but every name and signature.

Needs a package index, a C compiler and Linux on x86-64: run with -m network.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from trt_names import touches

import hwprune.runtimes

pytestmark = pytest.mark.network
HELPERS = Path(__file__).parents[2] / "helpers"
REPOSITORY = Path(hwprune.runtimes.__file__).parents[2]
FOLDER = Path(hwprune.runtimes.__file__).parent
VERSIONS = {
    "8.6.1": "tensorrt-bindings",
    "10.0.1": "tensorrt-cu12-bindings",
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin", "libnvparsers")


def downloaded(package: str, version: str, folder: Path) -> Path:
    """A wheel, unpacked into `folder`. Skips where this Python or machine has none."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "-d", str(folder), f"{package}=={version}"], capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"there is no wheel of {package} {version} for Python {platform.python_version()} here")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "wheel")
    return folder / "wheel"


def stubs(major: str, folder: Path) -> Path:
    """The empty libraries that the bindings are linked with."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the empty libraries take a C compiler")
    folder.mkdir()
    for name in LIBRARIES:
        library = folder / f"{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HELPERS / "fake_nvinfer.c"], check=True)
    return folder


def wanted() -> list[tuple[str, str]]:
    """What the code touches unconditionally."""
    sources = (FOLDER / "tensorrt.py", *sorted((FOLDER / "_tensorrt").glob("*.py")))
    found = {
        (touch.kind, touch.name): touch.guarded
        for path in sources
        for touch in sorted(touches(ast.parse(path.read_text())), key=lambda touch: touch.guarded)
    }
    return [
        key for key, guarded in found.items() if not guarded and not key[0].startswith("__") and key[1] != "__init__"
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_our_code_runs_on_the_real_bindings(version: str, tmp_path: Path) -> None:
    wheel = downloaded(VERSIONS[version], version, tmp_path)
    libraries = stubs(version.split(".")[0], tmp_path / "stubs")
    (tmp_path / "touches.json").write_text(json.dumps(wanted()))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join((str(wheel), str(REPOSITORY))),
    }
    command = [sys.executable, str(HELPERS / "real_bindings.py"), str(tmp_path / "touches.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == version
    assert found["missing"] == []
    assert found["said"] == 2, "a warning and an error, no information"
    assert found["errors_first"]
    assert found["shares"] == [["conv", 0.25], ["relu", 0.75]]
    strong = tuple(int(part) for part in version.split(".")[:2]) >= (10, 12)
    assert found["strong"] == strong
    assert found["flags"] == {"8": 1, "10": 3 if strong else 1, "11": 1}[version.split(".")[0]]
    assert found["refused"].startswith("EngineRefused: TensorRT could not make its builder")


def without_driver() -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")


def test_the_real_cuda_python_takes_our_calls(tmp_path: Path) -> None:
    without_driver()
    wheels = [
        downloaded(package, version, tmp_path / package)
        for package, version in (("cuda-bindings", "13.5.0"), ("cuda-pathfinder", "1.9.0"))
    ]
    path = os.pathsep.join(map(str, (*wheels, REPOSITORY)))
    command = [sys.executable, str(HELPERS / "real_cuda_python.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert "cudaErrorInsufficientDriver (35)" in found["refused"]


def test_a_real_cuda_runtime_says_that_there_is_no_driver(tmp_path: Path) -> None:
    """On a machine without an NVIDIA driver; where there is one, its GPU is counted."""
    from hwprune.core.errors import DeviceError
    from hwprune.runtimes._tensorrt.cuda import Cuda
    from hwprune.runtimes._tensorrt.cudart import SIGNATURES, load_calls

    without_driver()
    wheel = downloaded("nvidia-cuda-runtime-cu12", "12.9.79", tmp_path)
    (library,) = wheel.rglob("libcudart.so.12")
    calls = load_calls("ctypes", str(library))
    assert len(SIGNATURES) == 25
    with pytest.raises(DeviceError, match=r"no working driver: cudaErrorInsufficientDriver \(35\)") as caught:
        Cuda(calls)
    assert "driver" in caught.value.hint
