"""What all tests share."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from hwprune.graph.onnx import template
from hwprune.search import survey

T = TypeVar("T")


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


class TensorsByValue(pickle.Pickler):
    """Equal bytes for equal modules: torch's own way to pickle a tensor writes the address of its storage."""

    def reducer_override(self, item: object) -> Any:
        if isinstance(item, Tensor):
            values = hashlib.sha256(item.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            named = f"{type(item).__name__} {item.dtype} {tuple(item.shape)} {item.requires_grad}"
            return str, (f"{named} {values.hexdigest()}",)
        return NotImplemented


def once(function: Callable[..., T]) -> Callable[..., T]:
    """The function, asked once for each network: the same is everything that pickle finds in what it is given.

    What cannot be pickled is asked anew.
    """
    kept: dict[bytes, T] = {}

    def asked(*given: Any, **options: Any) -> T:
        buffer = io.BytesIO()
        try:
            TensorsByValue(buffer).dump((given, options))
        except (AttributeError, RuntimeError, TypeError, pickle.PicklingError):
            return function(*given, **options)
        key = hashlib.sha256(buffer.getvalue()).digest()
        if key not in kept:
            kept[key] = function(*given, **options)
        return kept[key]

    return asked


@pytest.fixture(scope="session", autouse=True)
def _each_network_is_traced_and_exported_once() -> Iterator[None]:
    """Together they take three seconds, and a hundred runs begin with the same network: the first one's are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "export_network", once(template.export_network))
        patch.setattr(survey, "trace", once(survey.trace))
        yield
