"""Checkpoints: one safetensors file a generation, written atomically, verified by SHA-256, the last two kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from hwprune.core.files import atomic_write_bytes

GENERATIONS = 2
# The names of the format, with the longest elements first: then every tensor lies at a multiple of its element.
_DTYPES = {
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as a JSON document."""

    tensors: Mapping[str, Tensor]
    document: Mapping[str, Any]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write generation `step` and delete all but the newest two. Raises `DeviceError` when it cannot be written.

    Needs as much memory again as the tensors take, and no more.
    """
    document = json.dumps(checkpoint.document, allow_nan=False)
    whole = _packed(checkpoint.tensors, document)
    atomic_write_bytes(folder / f"step-{step:09d}.safetensors", whole)  # type: ignore[arg-type]  # any buffer will do
    for old in _files(folder)[GENERATIONS:]:
        with contextlib.suppress(OSError):
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest intact checkpoint (None when there is none) and a line for each damaged file that was passed over."""
    damaged: list[str] = []
    for path in _files(folder):
        checkpoint = _read(path)
        if checkpoint is not None:
            return checkpoint, tuple(damaged)
        damaged.append(f"{path} is damaged and was passed over")
    return None, tuple(damaged)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _read(path: Path) -> Checkpoint | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        document = header["document"]
        if _digest(tensors, document) != header["sha256"]:
            return None
        return Checkpoint(tensors, json.loads(document))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _packed(tensors: Mapping[str, Tensor], document: str) -> bytearray:
    """The content of a file, each tensor copied straight to its place: the library's `save` holds three copies of all.

    Copies, because tensors that share storage (tied weights, slices) cannot be written as they are.
    """
    order = {dtype: place for place, dtype in enumerate(_DTYPES)}
    entries: dict[str, Any] = {"__metadata__": {"document": document, "sha256": hashlib.sha256().hexdigest()}}
    end = 0
    for name in sorted(tensors, key=lambda name: (order[tensors[name].dtype], name)):
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    first = 8 + len(_header(entries))
    whole = bytearray(first + end)
    copies = {name: _place(whole, first + entries[name]["data_offsets"][0], tensor) for name, tensor in tensors.items()}
    entries["__metadata__"]["sha256"] = _digest(copies, document)  # as long as the one that was counted
    whole[:8] = (first - 8).to_bytes(8, "little")
    whole[8:first] = _header(entries)
    return whole


def _header(entries: Mapping[str, Any]) -> bytes:
    header = json.dumps(entries).encode()
    return header.ljust(math.ceil(len(header) / _ALIGNMENT) * _ALIGNMENT)


def _place(whole: bytearray, start: int, tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor whose memory is `whole` from `start` on."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    place = torch.frombuffer(whole, dtype=tensor.dtype, count=tensor.numel(), offset=start).reshape(tensor.shape)
    return place.copy_(tensor.detach())


def _digest(tensors: Mapping[str, Tensor], document: str) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named `INDEX.KEY` and a JSON document."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    return tensors, {"state": plain, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Put back, in place, what `pack_optimizer` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*document["state"].items(), *tensors.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = _in_layout_of(parameters[int(index)], value)
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in document["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _in_layout_of(parameter: Tensor, value: Any) -> Any:
    # A momentum in another memory layout than its parameter takes other kernels, whose last bit may differ.
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
