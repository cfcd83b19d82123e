"""A lost GPU ends the worker process that met it; any other error of a device is reported and the worker goes on."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from hwprune.core.errors import DeviceError, HwpruneError, NetworkUnfit, UsageError
from hwprune.devices.agent.worker import Worker
from hwprune.devices.remote.client import ERRORS
from hwprune.runtimes._tensorrt.errors import BuildFailed, CudaError, DeviceLost, MixedPrecision, ParseFailed


def answered(error: HwpruneError) -> list[dict[str, Any]]:
    """What a worker says when its job ends with this error."""
    source, out = os.pipe()
    worker = Worker(io.BytesIO(), out)

    def measure(arguments: object) -> dict[str, Any]:
        raise error

    worker._measure = measure  # type: ignore[method-assign]
    try:
        worker._answer({"kind": "measure", "arguments": {}})
    finally:
        os.close(out)
        with os.fdopen(source, "rb") as lines:
            said = lines.read().splitlines()
    return [json.loads(line[line.index(b"{") :]) for line in said]


@pytest.mark.parametrize(
    ("kind", "known"),
    [(BuildFailed, NetworkUnfit), (MixedPrecision, NetworkUnfit), (ParseFailed, UsageError), (CudaError, DeviceError)],
)
def test_an_ordinary_error_is_reported_by_a_class_that_the_host_knows(
    kind: type[HwpruneError], known: type[HwpruneError]
) -> None:
    (said,) = answered(kind("no engine", hint="try another"))
    assert (said["type"], said["message"], said["hint"]) == ("error", "no engine", "try another")
    assert ERRORS.get(said["class"], DeviceError) is known
    assert issubclass(kind, known)


def test_a_lost_gpu_ends_the_process() -> None:
    with pytest.raises(DeviceLost, match="gone"):
        answered(DeviceLost("gone", code=700))
