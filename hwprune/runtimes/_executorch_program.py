"""ONNX to an ExecuTorch program whose operators run in XNNPACK, through torch.export: seconds a network, so kept.

There is no shorter way: the program's format is made by torch's own passes. What was converted once is kept in the
user's cache folder, under a hash of the model and of the versions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.files import atomic_write_bytes
from hwprune.core.specs import cache_folder
from hwprune.runtimes._inputs import example_inputs, fixed_inputs, onnx_inputs
from hwprune.runtimes._torch.from_onnx import convert, load_onnx
from hwprune.runtimes._torch.session import torch_package

_DIGEST_BYTES = 32


@lru_cache(maxsize=1)
def bindings() -> Any:
    """ExecuTorch's Python bindings. Raises `DeviceError` where they are not installed."""
    try:
        with quietly():
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise DeviceError(f"ExecuTorch cannot be imported: {error}", hint="pip install executorch") from error
    return portable_lib


def version() -> str:
    """The version of the installed package."""
    from executorch.version import __version__

    return str(__version__)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what ExecuTorch and its packages log and warn about at every import and conversion from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def program(model: bytes, batch: int, *, keep_bytes: int) -> bytes:
    """The program of an ONNX model, out of the cache where it was converted before.

    Raises `UsageError` for bytes that are no model, another batch, and operators that cannot be converted.
    """
    folder = cache_folder() / "executorch"
    key = hashlib.sha256(model + f"{batch} {version()} {torch_package().__version__}".encode()).hexdigest()
    path = folder / f"{key}.pte"
    found = _read(path)
    if found is None:
        found = _converted(model, batch)
        if keep_bytes > 0:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, hashlib.sha256(found).digest() + found)
            _forget(folder, keep_bytes)
    return found


def _read(path: Path) -> bytes | None:
    """A kept program, or None when there is none or it is damaged."""
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, found = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return found if hashlib.sha256(found).digest() == digest else None


def _forget(folder: Path, keep_bytes: int) -> None:
    """Delete the programs that were used longest ago until the rest fits."""
    total = 0
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.pte")]
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > keep_bytes:
            with suppress(OSError):
                path.unlink()


def _converted(model: bytes, batch: int) -> bytes:
    torch = torch_package()
    proto = load_onnx(model, batch=batch, reader="ExecuTorch")
    inputs = fixed_inputs(onnx_inputs(proto), batch)
    module = convert(proto)
    examples = tuple(torch.from_numpy(values) for values in example_inputs(inputs).values())
    try:
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(module, examples)
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # ExecuTorch's passes raise nothing more special
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"ExecuTorch cannot convert the model: {first}", hint="use --runtime litert") from error
