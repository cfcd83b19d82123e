"""What can go wrong between ONNX bytes and a latency on a GPU, one class each, so that none is taken for another."""

from __future__ import annotations

from typing import ClassVar

from hwprune.core.errors import DeviceError, NetworkUnfit, UsageError

MEMORY = (
    "close other programs, or lower the options workspace_mib and tactic_mib; raise workspace_mib only where TensorRT "
    "asks for more workspace"
)


class ParseFailed(UsageError):
    """TensorRT's ONNX parser refused the model."""


class BuildFailed(NetworkUnfit):
    """The builder found no engine for the model; the message holds what it logged."""


class EngineRefused(DeviceError):
    """TensorRT could not make one of its objects: an engine out of a plan, a context, the builder itself."""


class RunFailed(NetworkUnfit):
    """TensorRT refused to enqueue an inference."""


class MixedPrecision(NetworkUnfit):
    """Weak typing left layers in fp32, and the option `mixed` says to refuse such an engine."""


class CudaError(DeviceError):
    """A CUDA call failed. `code` is its number."""

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DeviceLost(CudaError):
    """The GPU is out of use for this process: a sticky error, which every later call would only repeat."""

    ends_process: ClassVar[bool] = True
