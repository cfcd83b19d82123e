"""What the torch runtimes share: sessions on a converted ONNX graph, and torch's settings held while it runs.

The convolutions run in channels_last, the layout torch is fast in. The number of threads and the flushing of denormals
are settings of the process and of the thread; both are put back after a run, since training may go on in this process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from hwprune.core.errors import DeviceError
from hwprune.core.measurement import Fingerprint, Target
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._cpu import check_threads, cpu_clock, cpu_fingerprint
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import check_inputs, example_inputs, fixed_inputs, onnx_inputs
from hwprune.runtimes._refusals import check_precision
from hwprune.runtimes._torch.from_onnx import convert, load_onnx

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx


@lru_cache(maxsize=1)
def torch_package() -> Any:
    """The torch package, without its gradients anywhere in this file. Raises `DeviceError` when it is missing."""
    try:
        import torch
    except ImportError as error:
        raise DeviceError("torch is not installed", hint="pip install torch") from error
    return torch


class TorchSession(AbstractSession):
    """A converted network with its inputs as channels_last tensors."""

    def __init__(self, model: bytes, target: Target) -> None:
        torch = torch_package()
        proto = load_onnx(model, batch=target.batch)
        self.inputs = fixed_inputs(onnx_inputs(proto), target.batch)
        self.module: fx.GraphModule = convert(proto)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub forgets it
        self.examples = tuple(as_tensor(values) for values in example_inputs(self.inputs).values())
        self.threads = target.threads
        self.function: Any = self.module

    def compute(self, inputs: tuple[Tensor, ...]) -> Any:
        """The outputs, as the network gives them."""
        with torch_package().no_grad():
            return self.function(*inputs)

    def run(self) -> None:
        self.compute(self.examples)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self.inputs)
        given = tuple(as_tensor(inputs[name]) for name in self.inputs)
        with settings(self.threads):
            found = self.compute(given)
        return [value.contiguous().numpy() for value in (found if isinstance(found, (tuple, list)) else (found,))]

    def close(self) -> None:
        del self.function, self.module, self.examples


def as_tensor(values: np.ndarray) -> Tensor:
    """A copy as a tensor; images in channels_last."""
    torch = torch_package()
    made = torch.from_numpy(values.copy())
    tensor: Tensor = made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made
    return tensor


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """Hold torch to so many threads and to flushed denormals (in the calling thread); undone afterwards."""
    torch = torch_package()
    before, flushed = torch.get_num_threads(), flushes_denormals()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def flushes_denormals() -> bool:
    """Whether torch takes denormal numbers for zero in this thread now."""
    torch = torch_package()
    return not bool(torch.full((1,), 1e-38).mul(0.5).any())


@dataclass(frozen=True)
class TorchRuntime(AbstractRuntime):
    """Torch on a CPU in fp32."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    name: ClassVar[str]

    @abstractmethod
    def flags(self, target: Target) -> tuple[tuple[str, str], ...]:
        """The settings that only this runtime has."""

    def check(self, target: Target) -> None:
        torch_package()
        check_precision(self.name, self.precisions, target)
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        torch = torch_package()
        flags = (
            ("layout", "channels_last"),
            ("denormals", "flushed" if target.threads == 1 else "flushed in one thread"),
            ("onednn", str(torch.backends.mkldnn.is_available()).lower()),
            ("matmul_precision", str(torch.get_float32_matmul_precision())),
            *self.flags(target),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(target, runtime=self.name, version=str(torch.__version__), flags=flags)

    def clock(self, target: Target) -> AbstractClock:
        return cpu_clock(target)

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return _measuring(target.threads)


@contextmanager
def _measuring(threads: int) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(undisturbed(threads))
        stack.enter_context(settings(threads))
        yield
