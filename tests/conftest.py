"""What all tests share."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from hypothesis import settings


def _define_torchvision_operators() -> None:
    """Let a torchvision from PyPI import beside a CPU build of torch, whose binaries do not know each other.

    Only models and transforms are used here; the two operators are looked up at import and never run.
    """
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    if "+" in torch.__version__ and "+" not in version:
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
_define_torchvision_operators()
torch.set_num_threads(1)


CLOCK_TESTS = ("test_more_work_takes_longer", "test_thread_time_is_the_time_of_the_thread_that_computes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asserts times of a machine that others use too is asked again; a wrong time stays wrong."""
    for item in items:
        if item.get_closest_marker("timed") or item.name in CLOCK_TESTS:
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("HWPRUNE_CACHE", f"{tmp_path}/cache")
