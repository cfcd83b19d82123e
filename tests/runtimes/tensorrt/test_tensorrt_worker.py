"""A lost GPU ends the worker process that met it; any other error of a device is reported and the worker goes on."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from hwprune.core.errors import DeviceError
from hwprune.devices.agent.worker import Worker
from hwprune.runtimes._tensorrt.errors import BuildFailed, CudaError, DeviceLost


def answered(error: DeviceError) -> list[dict[str, Any]]:
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


@pytest.mark.parametrize("kind", [BuildFailed, CudaError])
def test_an_ordinary_error_is_reported(kind: type[DeviceError]) -> None:
    (said,) = answered(kind("no engine", hint="try another"))
    assert (said["type"], said["class"], said["message"], said["hint"]) == (
        "error",
        kind.__name__,
        "no engine",
        "try another",
    )


def test_a_lost_gpu_ends_the_process() -> None:
    with pytest.raises(DeviceLost, match="gone"):
        answered(DeviceLost("gone", code=700))
