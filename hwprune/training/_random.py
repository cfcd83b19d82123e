"""Randomness as a function of a seed and names, so that nothing needs a generator's state to be resumed."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def mix(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every name: `mix(0, "order", epoch)`."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator for `mix(seed, *names)`."""
    return torch.Generator().manual_seed(mix(seed, *names))


def redraw(module: nn.Module) -> bool:
    """Let a module draw its own weights anew, from torch's global generator; False where it has no way to."""
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if not callable(reset):
        return False
    reset()
    return True
