"""The fakes: a CUDA runtime compiled from C, and a TensorRT with the names of one real version."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gpu import Gpu
from fake_trt_base import NAMES_FILE

from hwprune.runtimes._tensorrt.platform import platform

HELPERS = Path(__file__).parents[2] / "helpers"
DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def names_file() -> Path:
    """The names in the real bindings."""
    path = DATA / NAMES_FILE
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/{NAMES_FILE}")
    return path


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake CUDA runtime, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the fake CUDA runtime takes a C compiler")
    library = tmp_path_factory.mktemp("cudart") / "libcudart_fake.so"
    flags = ["-Wall", "-Werror", "-shared", "-fPIC", "-O1"]
    subprocess.run([compiler, *flags, "-o", str(library), str(HELPERS / "fake_cudart.c"), "-lm"], check=True)
    return library


@pytest.fixture
def chip(cudart: Path) -> Gpu:
    """A GPU without TensorRT."""
    found = Gpu(ctypes.CDLL(str(cudart)), cudart)
    found.reset()
    return found


@pytest.fixture
def gpu(cudart: Path, names_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A GPU with TensorRT 10.13 that nothing is wrong with."""
    found = Gpu(ctypes.CDLL(str(cudart)), cudart, names_file, tmp_path / "cache")
    found.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", found.tensorrt("10.13.3.9"))
    platform.cache_clear()
    yield found
    platform.cache_clear()
