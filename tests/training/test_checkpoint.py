"""Checkpoint files: exact round trips, damage of every kind, two generations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hwprune.training._checkpoint import (
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)

TENSORS = {
    "weights": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "count": torch.tensor(7),
    "half": torch.randn(5).bfloat16(),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def test_tensors_and_document_come_back_exactly(tmp_path: Path) -> None:
    document = {"loss": 0.1 + 0.2, "step": 12, "nested": {"rates": [1e-300, 0.1]}}
    save_checkpoint(tmp_path, 12, Checkpoint(TENSORS, document))
    found, damaged = load_checkpoint(tmp_path)
    assert found is not None
    assert damaged == ()
    assert found.document == document
    assert set(found.tensors) == set(TENSORS)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert all(found.tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_shared_and_strided_tensors_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {"a": whole, "tied": whole, "slice": whole[1:], "last": whole.to(memory_format=torch.channels_last)}
    save_checkpoint(tmp_path, 1, Checkpoint(tensors, {}))
    found, _ = load_checkpoint(tmp_path)
    assert found is not None
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_the_last_two_generations_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 999_999_999):
        save_checkpoint(tmp_path, step, Checkpoint(TENSORS, {"step": step}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-999999999.safetensors",
    ]
    found, _ = load_checkpoint(tmp_path)
    assert found is not None
    assert found.document == {"step": 999_999_999}


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) == (None, ())
    assert load_checkpoint(tmp_path / "absent") == (None, ())


def test_any_flipped_bit_or_cut_falls_back_to_the_generation_before(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, Checkpoint(TENSORS, {"step": step}))
    newest = tmp_path / "step-000000002.safetensors"
    content = newest.read_bytes()
    damages = [content[:position] for position in range(0, len(content), 37)]
    damages += [_flipped(content, position) for position in range(0, len(content), 11)]
    for damaged in damages:
        newest.write_bytes(damaged)
        found, lines = load_checkpoint(tmp_path)
        assert found is not None
        if lines:
            assert found.document == {"step": 1}
            assert lines == (f"{newest} is damaged and was passed over",)
        else:  # white space of the header
            assert found.document == {"step": 2}
            assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def _flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 0x04
    return bytes(changed)


def test_when_all_generations_are_damaged_nothing_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, Checkpoint(TENSORS, {"step": step}))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    found, lines = load_checkpoint(tmp_path)
    assert found is None
    assert len(lines) == 2


def _stepped(make: type[Optimizer], **options: object) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    net = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make(net.parameters(), lr=0.1, **options)
    for _ in range(3):
        _step(net, optimizer)
    return net, optimizer


def _step(net: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(1, 2, 5, 5)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "options"),
    [(SGD, {"momentum": 0.9}), (SGD, {}), (AdamW, {"betas": (0.5, 0.99)}), (AdamW, {"amsgrad": True})],
)
def test_optimizers_go_on_as_if_never_saved(tmp_path: Path, make: type[Optimizer], options: dict[str, object]) -> None:
    net, optimizer = _stepped(make, **options)
    tensors, document = pack_optimizer(optimizer)
    save_checkpoint(tmp_path, 3, Checkpoint(tensors, document))
    found, _ = load_checkpoint(tmp_path)
    assert found is not None
    copy, fresh = _stepped(make, **options)
    _step(copy, fresh)
    copy.load_state_dict(net.state_dict())
    unpack_optimizer(fresh, found.tensors, found.document)
    for _ in range(3):
        _step(net, optimizer)
        _step(copy, fresh)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copy.parameters(), strict=True))
